"""A request in plain text goes out as TLS, by a ServiceEntry and a DestinationRule: to a real server."""

import itertools
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.named_tcp import named_tcp
from support.raw_server import RawServer, raw_server
from support.small_ca import SmallCa
from support.told_names import told_names

import meshlib

ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: ['{host}']
  ports:
  - {{number: 80, name: http, protocol: HTTP, targetPort: {port}}}
  - {{number: 7000, name: tcp, protocol: {kind}, targetPort: {tcp}}}
  resolution: {resolution}
  {more}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec:
  host: '{host}'
  trafficPolicy: {{tls: {{mode: {mode}, {tls}}}}}
---
"""
CALLER = "spiffe://partner.example/caller"


class Outside:
    """A server with a certificate for `api.example`, and what it was asked for."""

    def __init__(self, ca: SmallCa, folder: Path) -> None:
        self.asked: list[str | None] = []
        self.server: RawServer
        self.tcp = 0
        self.context = self._context(ca, folder)

    def _context(self, ca: SmallCa, folder: Path) -> ssl.SSLContext:
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made.verify_mode = ssl.CERT_OPTIONAL
        made.load_verify_locations(cadata=ca.pem)
        file = folder / "server.pem"
        self.ca, self.own = ca, (own := ca.issue(dns=["api.example"]))
        file.write_bytes(own.key_pem + own.pem.encode())
        made.load_cert_chain(file)
        made.sni_callback = lambda _made, name, _context: self.asked.append(name)
        return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def outside(files: Path) -> Iterator[Outside]:
    ca, other = SmallCa(), SmallCa("other")
    (files / "roots.pem").write_text(ca.pem)
    (files / "others.pem").write_text(other.pem)
    shown = ca.issue(CALLER)
    (files / "chain.pem").write_text(shown.pem)
    (files / "key.pem").write_bytes(shown.key_pem)
    made = Outside(ca, files)
    with ExitStack() as stack:
        made.server = stack.enter_context(raw_server(made.context))
        made.tcp = stack.enter_context(named_tcp("secret", made.context))
        yield made


Connect = Callable[..., meshlib.Mesh]


@pytest.fixture
def connect(outside: Outside, files: Path, tmp_path: Path) -> Iterator[Connect]:
    numbers = itertools.count()
    with ExitStack() as stack:
        names = stack.enter_context(told_names())
        names.addresses |= {"api.example": ["127.0.0.1"], "wrong.example": ["127.0.0.1"]}

        def made(
            host: str = "api.example",
            resolution: str = "DNS",
            mode: str = "SIMPLE",
            more: str = "",
            **tls: str,
        ) -> meshlib.Mesh:
            tls = {"caCertificates": str(files / "roots.pem"), **tls}
            said = ", ".join(f"{key}: {value}" for key, value in tls.items() if value)
            text = ENTRY.format(
                name="api",
                host=host,
                port=outside.server.port,
                tcp=outside.tcp,
                kind="TLS" if resolution == "DYNAMIC_DNS" else "TCP",
                resolution=resolution,
                mode=mode,
                tls=said,
                more=more,
            )
            folder = tmp_path / str(next(numbers))
            folder.mkdir()
            (folder / "mesh.yaml").write_text(text)
            return stack.enter_context(meshlib.connect(folder))

        yield made


def get(mesh: meshlib.Mesh, host: str = "api.example") -> int:
    with meshlib.Client(mesh=mesh) as client:
        return int(client.get(f"http://{host}/echo").status_code)


@pytest.mark.parametrize("resolution", ["DNS", "DNS_ROUND_ROBIN"])
def test_the_requests_host_is_asked_for_and_verified(
    connect: Connect, outside: Outside, resolution: str
) -> None:
    mesh = connect(resolution=resolution)
    assert get(mesh) == 200
    assert outside.asked[-1] == "api.example"
    assert b"host: api.example\r\n" in outside.server.heads[-1].lower()
    with meshlib.create_connection(("api.example", 7000), mesh=mesh) as made:
        assert made.recv(7) == b"secret\n"


async def test_for_tasks(connect: Connect, outside: Outside) -> None:
    async with meshlib.AsyncClient(mesh=connect()) as client:
        assert (await client.get("http://api.example/echo")).status_code == 200
    assert outside.asked[-1] == "api.example"


def test_a_server_of_another_name_is_refused(connect: Connect) -> None:
    with pytest.raises(meshlib.ConnectFailed, match=r"not trusted.*wrong\.example"):
        get(connect("wrong.example"), "wrong.example")


def test_a_server_of_another_authority_is_refused(connect: Connect, files: Path) -> None:
    for roots in (str(files / "others.pem"), ""):  # the second: those of the system
        with pytest.raises(meshlib.ConnectFailed, match="not trusted"):
            get(connect(caCertificates=roots))
    assert get(connect(caCertificates="", insecureSkipVerify="true")) == 200


def test_a_certificate_that_was_revoked(connect: Connect, outside: Outside, files: Path) -> None:
    (files / "none.pem").write_bytes(outside.ca.revoked(outside.ca.issue(dns=["other.example"])))
    (files / "own.pem").write_bytes(outside.ca.revoked(outside.own))
    assert get(connect(caCrl=str(files / "none.pem"))) == 200
    with pytest.raises(meshlib.ConnectFailed, match="revoked"):
        get(connect(caCrl=str(files / "own.pem")))
    with pytest.raises(meshlib.ConnectFailed, match="No such file"):
        get(connect(caCrl=str(files / "missing.pem")))
    mesh = connect(caCrl=str(files / "own.pem"))
    with pytest.raises(meshlib.ConnectFailed, match="revoked"):
        meshlib.create_connection(("api.example", 7000), mesh=mesh)


def test_names_that_are_listed_count_in_place_of_the_hosts(connect: Connect, outside: Outside) -> None:
    listed = "subjectAltNames: [api.example]"
    # Of the DestinationRule, else of the ServiceEntry.
    assert get(connect("wrong.example", subjectAltNames="[api.example]"), "wrong.example") == 200
    assert outside.asked[-1] == "wrong.example"
    assert get(connect("wrong.example", more=listed), "wrong.example") == 200
    with pytest.raises(meshlib.ConnectFailed, match="allowed is exact other"):
        get(connect(more=listed, subjectAltNames="[other.example]"))
    with pytest.raises(meshlib.ConnectFailed, match="allowed is exact other"):
        get(connect(more="subjectAltNames: [other.example]"))


def test_an_sni_of_its_own(connect: Connect, outside: Outside) -> None:
    assert get(connect("wrong.example", sni="api.example", subjectAltNames="[api.example]"), "wrong.example")
    assert outside.asked[-1] == "api.example"


def test_a_certificate_of_files_is_shown(connect: Connect, outside: Outside, files: Path) -> None:
    shown = {"clientCertificate": str(files / "chain.pem"), "privateKey": str(files / "key.pem")}
    assert get(connect(mode="MUTUAL", **shown)) == 200
    assert outside.server.callers[-1] == CALLER


def test_mutual_tls_of_the_mesh_needs_a_certificate_of_the_mesh(connect: Connect) -> None:
    # Without roots of a mesh nobody is told to do it (the control service runs in this process).
    with pytest.raises(meshlib.MeshError):
        get(connect(mode="ISTIO_MUTUAL", caCertificates=""))


def test_a_wildcard_asks_for_the_host_of_each_request(connect: Connect, outside: Outside) -> None:
    mesh = connect("*.example", "DYNAMIC_DNS")
    with meshlib.Client(mesh=mesh) as client:
        # The port of the request is the one it is looked up for: only the host is the entry's.
        with pytest.raises(meshlib.ConnectFailed, match="refused"):
            client.get("http://api.example/echo")
        host = f"api.example:{outside.server.port}"
        assert client.get("http://api.example/echo", headers={"host": host}).status_code == 200
        assert outside.asked[-1] == "api.example"
        host = f"wrong.example:{outside.server.port}"
        with pytest.raises(meshlib.ConnectFailed, match=r"not trusted.*wrong\.example"):
            client.get("http://wrong.example/echo", headers={"host": host})
