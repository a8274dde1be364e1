"""What the proxies of nodes cost: side by side, in turns, in one run. Needs root.

    pytest tests/benchmarks/test_node.py --benchmark-enable -s

- A request from one pod to another: in plain text without a proxy (from the machine to a pod: machines do
  not forward here); through two Envoys that were configured by
  hand, with mutual TLS at the port; through two nodes, with mutual TLS at the port, and by HBONE (goal:
  within 5 % of what was configured by hand).
- From a start to readiness, with a node's Envoy and one configured by hand.
- Memory of a node's Envoy with 1, 10 and 100 workloads.

The application is an Envoy that answers by itself with 100 bytes. Connections are kept; throughput is of 32
requests that are sent at once, on 32 of them. Without --benchmark-enable one short round only checks that
everything works.
"""

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import wait_until
from support.envoy import RealEnvoy, run_envoy
from support.namespaces import Pod, pod
from support.node_mesh import Node, node, registered
from support.secure_control import workload
from support.secure_mesh import SecureMesh, secure_mesh

from meshlib.control.registration import Place
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds.names import INBOUND_PORT, OUTBOUND_PORT, TUNNEL_LABEL

MESH = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: tunnelled}
spec: {selector: {app: tunnelled}, clusterIP: 10.96.0.7, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: mutual}
spec: {selector: {app: mutual}, clusterIP: 10.96.0.8, ports: [{name: http, port: 9080}]}
"""
_EXTENSIONS = "type.googleapis.com/envoy.extensions."
_MANAGER = _EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager"
_HTTP = _EXTENSIONS + "filters.http."
_RBAC, _CORS = "rbac.v3.RBAC", "cors.v3.Cors"
_ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": _HTTP + "router.v3.Router"},
}
_TLS = _EXTENSIONS + "transport_sockets.tls.v3."
BODY = "x" * 100
IN_FLIGHT = 32
HAND_OUT, HAND_IN = 14001, 14006
WAYS = ("plain", "TLS alone, by hand", "by hand", "mutual TLS", "HBONE")


@pytest.fixture(scope="module")
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether it is measured."""
    return bool(request.config.getoption("--benchmark-enable"))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), MESH) as made:
        yield made


def listener(
    name: str, where: Pod, host: str, port: int, route: dict[str, Any], *kinds: str, **manages: Any
) -> dict[str, Any]:
    """Of HTTP, in a namespace, with filters of these kinds."""
    address = {"address": host, "port_value": port, "network_namespace_filepath": str(where.path)}
    routes = [{"match": {"prefix": "/"}, **route}]
    manager = {
        "@type": _MANAGER,
        "stat_prefix": name,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            *({"name": f"{n}", "typed_config": {"@type": _HTTP + kind}} for n, kind in enumerate(kinds)),
            _ROUTER,
        ],
        **manages,
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "name": name,
        "address": {"socket_address": address},
        "filter_chains": [{"filters": filters}],
    }


def application(where: Pod) -> dict[str, Any]:
    answer = {"direct_response": {"status": 200, "body": {"inline_string": BODY}}}
    return listener(f"app-{where.name}", where, "0.0.0.0", 9080, answer)


def cluster(name: str, host: str, port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def tls(mesh: SecureMesh, account: str, kind: str, **more: Any) -> dict[str, Any]:
    """A transport socket with a certificate of the mesh."""
    key, chain = workload(mesh.authority, SpiffeId("cluster.local", "default", account))
    common = {
        "alpn_protocols": ["istio"],
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": chain.decode()},
                "private_key": {"inline_string": key.decode()},
            }
        ],
        "validation_context": {"trusted_ca": {"inline_string": mesh.authority.roots_pem}},
    }
    typed = {"@type": _TLS + kind, "common_tls_context": common, **more}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


def by_hand(
    mesh: SecureMesh, caller: Pod, server: Pod, *, all_of_it: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The bootstraps of two Envoys: with mutual TLS alone, or with all that nodes do beside it.

    That is to be redirected to, filters that have nothing to do, retries, and to say who calls.
    """
    (out, at, into) = (OUTBOUND_PORT, 9080, INBOUND_PORT) if all_of_it else (HAND_OUT, HAND_IN, HAND_IN)
    there = cluster("there", server.address, at)
    there["transport_socket"] = tls(mesh, "ratings", "UpstreamTlsContext")
    app = cluster("app", server.address, 9080)
    source = {"address": "127.0.0.6", "port_value": 0, "network_namespace_filepath": str(server.path)}
    app["upstream_bind_config"] = {"source_address": source}
    tidy: dict[str, Any] = {"normalize_path": True, "stream_idle_timeout": "0s"} if all_of_it else {}
    said = {
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {"subject": True, "uri": True, "dns": True},
    }
    retries = {"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2}
    more = {"timeout": "0s", "retry_policy": retries} if all_of_it else {}
    kinds = (("fault.v3.HTTPFault", _CORS), (_CORS, *[_RBAC] * 3)) if all_of_it else ((), ())
    outbound = listener(
        "out", caller, "127.0.0.1", out, {"route": {"cluster": "there", **more}}, *kinds[0], **tidy
    )
    inbound = listener(
        "in",
        server,
        "0.0.0.0",
        into,
        {"route": {"cluster": "app"}},
        *kinds[1],
        **tidy,
        **(said if tidy else {}),
    )
    inbound["filter_chains"][0]["transport_socket"] = tls(
        mesh, "hand", "DownstreamTlsContext", require_client_certificate=True
    )
    return {"static_resources": {"listeners": [outbound], "clusters": [there]}}, {
        "static_resources": {"listeners": [inbound], "clusters": [app]},
    }


@contextlib.contextmanager
def envoy(mesh: SecureMesh, folder: Path, bootstrap: dict[str, Any]) -> Iterator[RealEnvoy]:
    """One on the loop of the mesh."""
    folder.mkdir()
    stack = contextlib.AsyncExitStack()

    def done(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, mesh.loop).result(70)

    made = done(stack.enter_async_context(run_envoy(bootstrap, folder, "--skip-deprecated-logs")))
    try:
        yield made
    finally:
        done(stack.aclose())


class Asking:
    """Connections that are kept, and requests of a host on them."""

    def __init__(self, stack: contextlib.ExitStack, connect: Callable[[], socket.socket], host: str) -> None:
        self._request = f"GET /x HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
        self._all = [stack.enter_context(connect()) for _ in range(IN_FLIGHT)]
        for made in self._all:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, count: int = 1) -> float:
        """Seconds for so many at once."""
        begun = time.perf_counter()
        for made in self._all[:count]:
            made.sendall(self._request)
        for made in self._all[:count]:
            said = b""
            while not said.endswith(BODY.encode()):
                piece = made.recv(65536)
                assert piece, (self._request, said)
                said += piece
        return time.perf_counter() - begun


@pytest.fixture(scope="module")
def ways(mesh: SecureMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Asking]]:
    """A connection of each kind, which was asked once."""
    folder = tmp_path_factory.mktemp("ways")
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        open_one, open_two = enter(pod(captured=False)), enter(pod(captured=False))
        ratings, tunnelled, mutual, hand_one, hand_two = (enter(pod()) for _ in range(5))
        apps = [application(each) for each in (open_two, tunnelled, mutual, hand_two)]
        enter(envoy(mesh, folder / "apps", {"static_resources": {"listeners": apps}}))
        bootstraps = (
            *by_hand(mesh, open_one, open_two, all_of_it=False),
            *by_hand(mesh, hand_one, hand_two, all_of_it=True),
        )
        for number, bootstrap in enumerate(bootstraps):
            enter(envoy(mesh, folder / f"hand{number}", bootstrap))
        one, two = (enter(node(mesh, name, "--skip-deprecated-logs")) for name in ("vm1", "vm2"))
        enter(registered(mesh, "vm1", "ratings", ratings))
        enter(registered(mesh, "vm2", "tunnelled", tunnelled))
        enter(registered(mesh, "vm2", "mutual", mutual, **{TUNNEL_LABEL: ""}))
        for name, where in (("ratings", one), ("tunnelled", two), ("mutual", two)):
            wait_until(lambda: f"{name}/inbound" in where.get("/listeners"), 30, name)  # noqa: B023
        found = {
            "plain": Asking(stack, lambda: socket.create_connection((open_two.address, 9080), 10), "app"),
            "TLS alone, by hand": Asking(stack, lambda: open_one.connect("127.0.0.1", HAND_OUT), "app"),
            "by hand": Asking(stack, lambda: hand_one.connect(hand_two.address, 9080), "app"),
            "mutual TLS": Asking(stack, lambda: ratings.connect("10.96.0.8", 9080), "mutual:9080"),
            "HBONE": Asking(stack, lambda: ratings.connect("10.96.0.7", 9080), "tunnelled:9080"),
        }
        assert set(found) == set(WAYS)
        for asking in found.values():
            asking.ask()
        assert one.stat("cluster.ratings/hbone.upstream_rq_total") == 1
        yield found


def test_latency_and_throughput(ways: dict[str, Asking], thorough: bool) -> None:
    rounds, each, batches = (20, 300, 40) if thorough else (2, 5, 1)
    p50: dict[str, list[float]] = {name: [] for name in WAYS}
    speed: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds):
        order = WAYS if number % 2 else WAYS[::-1]
        for name in order:
            p50[name].append(statistics.median(ways[name].ask() for _ in range(each)) * 1e6)
        for name in order:
            speed[name].append(IN_FLIGHT * batches / sum(ways[name].ask(IN_FLIGHT) for _ in range(batches)))

    def ratio(measure: dict[str, list[float]], name: str, to: str) -> float:
        pairs = zip(measure[name], measure[to], strict=True)
        return statistics.median(one / other for one, other in pairs)

    print("\n| way | p50, us | p50 / by hand | requests/s | requests/s / by hand |\n|---|---|---|---|---|")
    for name in WAYS:
        print(
            f"| {name} | {statistics.median(p50[name]):.0f} | {ratio(p50, name, 'by hand'):.2f} "
            f"| {statistics.median(speed[name]):.0f} | {ratio(speed, name, 'by hand'):.2f} |"
        )
    print(f"HBONE / mutual TLS at the port: p50 {ratio(p50, 'HBONE', 'mutual TLS'):.2f}, ", end="")
    print(f"requests/s {ratio(speed, 'HBONE', 'mutual TLS'):.2f}")


def test_start(mesh: SecureMesh, tmp_path: Path, thorough: bool) -> None:
    """Of a node's Envoy it holds that its workload's listeners are there."""
    times: dict[str, list[float]] = {"by hand": [], "node": []}
    with pod() as ratings, pod(captured=False) as other, registered(mesh, "vm9", "ratings", ratings):
        bootstrap, _ = by_hand(mesh, other, other, all_of_it=True)
        for number in range(7 if thorough else 1):
            begun = time.perf_counter()
            with envoy(mesh, tmp_path / f"hand{number}", bootstrap):
                times["by hand"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            with _another(mesh, "vm9", number) as made:
                wait_until(lambda: "ratings/inbound" in made.get("/listeners"), 60, "it")
                times["node"].append(time.perf_counter() - begun)
    said = ", ".join(f"{name} {statistics.median(took) * 1e3:.0f} ms" for name, took in times.items())
    ratio = statistics.median(b / a for a, b in zip(times["by hand"], times["node"], strict=True))
    print(f"\nstart to ready: {said}, ratio {ratio:.2f}")


@contextlib.contextmanager
def _another(mesh: SecureMesh, name: str, number: int) -> Iterator[Node]:
    """The node of a name that was there before."""
    folder = mesh.folder / name
    if folder.exists():
        folder.rename(mesh.folder / f"{name}-{number}")
    with node(mesh, name, "--skip-deprecated-logs") as made:
        yield made


@pytest.fixture
def namespaces(thorough: bool) -> Iterator[list[Path]]:
    """Bare ones."""
    names = [f"mlb{os.getpid()}-{number}" for number in range(100 if thorough else 2)]

    def ip(line: str) -> None:
        text = "\n".join(line.replace("NAME", name) for name in names)
        subprocess.run(["ip", "-batch", "-"], input=text, text=True, check=True, capture_output=True)

    ip("netns add NAME")
    try:
        for name in names:
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield [Path("/run/netns") / name for name in names]
    finally:
        ip("netns del NAME")


def test_memory(mesh: SecureMesh, namespaces: list[Path], thorough: bool) -> None:
    """Each workload sees three services."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(_another(mesh, "vm8", 0))
        print("\n| workloads | resident, MiB | of its own, MiB | to all listeners |\n|---|---|---|---|")
        print("| 0 | {:.0f} | {:.0f} | |".format(*memory(made)))
        count = 0
        for wanted in (1, 10, 100) if thorough else (1, 2):
            begun = time.perf_counter()
            while count < wanted:
                place = Place(f"w{count}", str(namespaces[count]))
                address = f"10.99.{count // 250}.{count % 250 + 1}"
                stack.enter_context(registered(mesh, "vm8", f"w{count}", place=place, address=address))
                count += 1
            wait_until(lambda: made.get("/listeners").count("/inbound") == wanted, 120, "all")  # noqa: B023
            took = time.perf_counter() - begun
            print("| {} | {:.0f} | {:.0f} | {:.1f} s |".format(wanted, *memory(made), took))


def memory(made: Node) -> tuple[float, float]:
    """Of its Envoy: resident, and what is not of files, in MiB."""
    said = dict(
        line.split(":", 1) for line in Path(f"/proc/{made.envoy.process}/status").read_text().splitlines()
    )
    return tuple(int(said[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]
