"""Rules of connections from YAML to the socket: a folder, no control service but that in the process."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support.named_server import named_server
from support.named_tcp import named_tcp
from support.ports import free_port

import meshlib
from meshlib.dataplane.telemetry.watch import Telemetry

ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: ['{host}']
  ports: [{{number: {port}, name: p, protocol: {protocol}}}]
  resolution: {resolution}
"""
LISTED = "  endpoints: [{{address: {address}, ports: {{p: {port}}}}}]\n"
RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tls}
spec:
  hosts: ['*.safe.example']
  tls:
  - match: [{sniHosts: [a.safe.example]}]
    route: [{destination: {host: a.example}}]
  - match: [{sniHosts: ['*.safe.example']}]
    route: [{destination: {host: b.example}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp}
spec:
  hosts: [spread.example]
  tcp:
  - match: [{destinationSubnets: [127.0.0.0/8]}]
    route: [{destination: {host: a.example, port: {number: 7000}}}]
  - route: [{destination: {host: b.example, port: {number: 7000}}}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: narrow, namespace: narrow}
spec:
  egress: [{hosts: ['default/spread.example']}]
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"""


def entry(name: str, host: str, port: int, protocol: str, resolution: str, *listed: tuple[str, int]) -> str:
    made = ENTRY.format(name=name, host=host, port=port, protocol=protocol, resolution=resolution)
    return made + "".join(LISTED.format(address=address, port=port) for address, port in listed)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        found = {name: stack.enter_context(named_tcp(name)) for name in ("a", "b")}
        yield {**found, "web": stack.enter_context(named_server("web"))}


@pytest.fixture(scope="module")
def folder(servers: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    a, b = servers["a"], servers["b"]
    documents = [
        entry("a", "a.example", 7000, "TCP", "STATIC", ("127.0.0.1", a)),
        entry("b", "b.example", 7000, "TCP", "DNS", ("localhost", b)),
        entry("safe", "*.safe.example", 7000, "TLS", "NONE"),
        entry("spread", "spread.example", 7000, "TCP", "STATIC", ("127.0.0.1", b)),
        entry("loopback", "localhost", a, "TCP", "NONE"),
        entry("web", "web.example", 80, "HTTP", "STATIC", ("127.0.0.1", servers["web"])),
        entry("odd", "odd.example", 81, "TCP", "STATIC", ("127.0.0.1", servers["web"])),
        RULES,
    ]
    made = tmp_path_factory.mktemp("mesh")
    (made / "mesh.yaml").write_text("---".join(documents))
    return made


@pytest.fixture(scope="module")
def mesh(folder: Path) -> Iterator[meshlib.Mesh]:
    with meshlib.connect(folder) as made:
        yield made


@pytest.fixture
def ask(mesh: meshlib.Mesh) -> Callable[..., str]:
    def asked(host: str, port: int = 7000, **more: str) -> str:
        with meshlib.create_connection((host, port), 10, mesh=mesh, **more) as made:  # type: ignore[arg-type]
            return made.makefile("rb").readline().decode().strip()

    return asked


def test_each_resolution(ask: Callable[..., str], servers: dict[str, int]) -> None:
    assert ask("a.example") == "a"
    assert ask("b.example") == "b"
    assert ask("localhost", servers["a"]) == "a"


def test_names_decide_at_a_port_of_tls(ask: Callable[..., str]) -> None:
    assert ask("a.safe.example") == "a"
    assert ask("A.Safe.Example") == "a"
    assert ask("other.safe.example") == "b"
    assert ask("other.safe.example", server_hostname="a.safe.example") == "a"
    with pytest.raises(meshlib.ConnectFailed, match="PassthroughCluster"):
        ask("a.safe.example", server_hostname="elsewhere.invalid")


def test_subnets_decide_by_the_address(ask: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("spread.example") == "b"  # which no resolver knows
    monkeypatch.setattr("meshlib.dataplane.tcp.sockets._lookup", lambda *_: ("127.9.9.9",))
    assert ask("spread.example") == "a"


async def test_streams_follow_the_same_rules(mesh: meshlib.Mesh) -> None:
    for host, expected in (
        ("a.safe.example", b"a\n"),
        ("x.safe.example", b"b\n"),
        ("spread.example", b"b\n"),
    ):
        reader, writer = await meshlib.open_connection(host, 7000, mesh=mesh)
        assert await reader.readline() == expected
        writer.close()
        await writer.wait_closed()
    with pytest.raises(meshlib.NoUpstream, match="speaks HTTP"):
        await meshlib.open_connection("web.example", 80, mesh=mesh)


def test_hosts_that_are_not_known(ask: Callable[..., str], servers: dict[str, int], folder: Path) -> None:
    assert ask("127.0.0.1", servers["b"]) == "b"
    with pytest.raises(ConnectionError, match="Connection refused"):
        ask("127.0.0.1", free_port())
    with meshlib.connect(folder, namespace="narrow") as narrow:
        for host in ("127.0.0.1", "unknown.example"):
            with pytest.raises(
                meshlib.NoUpstream, match="is unknown, and outboundTrafficPolicy is REGISTRY_ONLY"
            ):
                meshlib.create_connection((host, servers["b"]), mesh=narrow)
        # A destination of a rule that is seen is seen, too.
        with meshlib.create_connection(("spread.example", 7000), mesh=narrow) as made:
            assert made.recv(2) == b"b\n"


def test_requests_go_on_where_connections_go(mesh: meshlib.Mesh, servers: dict[str, int]) -> None:
    with pytest.raises(meshlib.NoUpstream, match=r"web\.example:80 speaks HTTP.*\[NR\]"):
        meshlib.create_connection(("web.example", 80), mesh=mesh)
    with meshlib.Client(mesh=mesh) as client:
        assert client.get("http://web.example/x").text == "web GET /x"
        assert client.get("http://odd.example:81/x").text == "web GET /x"
        assert client.get(f"http://127.0.0.1:{servers['web']}/x").text == "web GET /x"


def test_a_mesh_that_is_closed_or_cannot_be_asked(folder: Path) -> None:
    made = meshlib.connect(folder)
    made.close()
    with pytest.raises(ConnectionError) as raised:
        meshlib.create_connection(("a.example", 7000), mesh=made)
    assert isinstance(raised.value, meshlib.Closed)
    lost = meshlib.connect(
        f"127.0.0.1:{free_port()}", allow_plaintext=True, state_dir="", first_call_timeout=0.2
    )
    with lost, pytest.raises(ConnectionError) as raised:
        meshlib.create_connection(("a.example", 7000), mesh=lost)
    assert isinstance(raised.value, meshlib.ControlUnavailable)


def test_what_is_told_of_a_connection(folder: Path, tmp_path: Path, servers: dict[str, int]) -> None:
    log = tmp_path / "access.log"
    settings = {"access_log": str(log), "access_log_encoding": "JSON", "labels": "app=shop"}
    reader = InMemoryMetricReader()
    with meshlib.connect(folder, **settings) as mesh:
        mesh.telemetry = Telemetry(
            mesh.bootstrap, lambda: mesh.view, meters=MeterProvider(metric_readers=[reader])
        )
        with meshlib.create_connection(("a.example", 7000), mesh=mesh) as made:
            assert made.recv(2) == b"a\n"
            made.sendall(b"12345")
            assert counted(reader, "istio_tcp_connections_opened_total") == {"-": 1}
            assert counted(reader, "istio_tcp_connections_closed_total") == {}
            assert counted(reader, "istio_tcp_received_bytes_total") == {"-": 5}
            assert made.recv(5) == b"12345"
        with pytest.raises(ConnectionError):
            meshlib.create_connection(("127.0.0.1", free_port()), mesh=mesh)
        assert counted(reader, "istio_tcp_connections_opened_total") == {"-": 1, "UF,URX": 1}
        assert counted(reader, "istio_tcp_connections_closed_total") == {"-": 1, "UF,URX": 1}
        assert counted(reader, "istio_tcp_sent_bytes_total") == {"-": 7}
        assert counted(reader, "istio_tcp_received_bytes_total") == {"-": 5}
    good, bad = map(json.loads, log.read_text().splitlines())
    assert (good["bytes_received"], good["bytes_sent"], good["response_code"]) == (5, 7, 0)
    assert good["upstream_cluster"] == "outbound|7000||a.example"
    assert good["upstream_host"] == f"127.0.0.1:{servers['a']}"
    assert (good["method"], good["protocol"], good["response_flags"]) == (None, None, "-")
    assert bad["response_flags"] == "UF,URX"
    assert "Connection refused" in bad["upstream_transport_failure_reason"]


def counted(reader: InMemoryMetricReader, name: str) -> dict[str, int]:
    """Values of a counter by response flags."""
    data = reader.get_metrics_data()
    found: dict[str, int] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points if metric.name == name else ():
                    assert point.attributes is not None
                    assert "response_code" not in point.attributes
                    assert point.attributes["request_protocol"] == "tcp"
                    assert point.attributes["source_app"] == "shop"
                    flags = str(point.attributes["response_flags"])
                    found[flags] = found.get(flags, 0) + int(getattr(point, "value", 0))
    return found
