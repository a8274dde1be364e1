"""gRPC's interoperability cases of security: who may call whom, by which certificate, with four clients.

Two servers of one account each have a port for mutual TLS and one for plain text: gRPC's own, and ours.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from support.commands import wait_until
from support.grpc_workloads import TESTS, Workloads
from support.interop_clients import Client, foreign, tasks, threads
from support.interop_page import agrees, table
from support.node_modules import install
from support.ports import free_port
from support.secure_mesh import secure_mesh
from support.small_ca import SmallCa

import meshlib
import meshlib_grpc

COLUMNS = {"threads": "ours", "tasks": "ours", "grpcio": "grpcio", "grpc-js": "grpc-js"}
EXPECTED = table("Security")
SERVERS = {"grpcs": "gRPC's own server", "ours": "`server()`"}
HELLO = "/greeter.Greeter/Hello"
POLICIES = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: greeter}}
spec:
  selector: {{matchLabels: {{app: greeter}}}}
  mtls: {{mode: STRICT}}
  portLevelMtls: {{{plain}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: greeter}}
spec:
  selector: {{matchLabels: {{app: greeter}}}}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/cart]}}}}]
    to: [{{operation: {{paths: [/greeter.Greeter/Hello]}}}}]
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/another]}}}}]
    to: [{{operation: {{paths: [/greeter.Greeter/Admin]}}}}]
  - to: [{{operation: {{paths: [/greeter.Greeter/Hello], ports: [{ports}]}}}}]
"""
SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  ports: [{{number: 7000, name: grpc, protocol: GRPC}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: {port}}}, serviceAccount: {account}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec: {{host: {name}, trafficPolicy: {{tls: {{{tls}}}}}}}
"""
MUTUAL, PLAIN = "mode: ISTIO_MUTUAL", "mode: DISABLE"


@dataclass(frozen=True)
class Case:
    """A row of the page: a call of a method of a service; `port` is one of a server's."""

    service: str
    port: str = "mutual"
    tls: str = MUTUAL
    account: str = "greeter"
    method: str = "Hello"


CASES = {
    "mutual TLS": Case("mutual"),
    "plain text, to a port in PERMISSIVE": Case("plain", "plain", PLAIN),
    "plain text, to a port in STRICT": Case("unsafe", "mutual", PLAIN),
    "the server has another account": Case("impostor", account="somebody"),
    "the method is for another account": Case("mutual", method="Admin"),
    "the method is for nobody": Case("mutual", method="Other"),
}
SIMPLE = "mode: SIMPLE, to a server with a certificate"


@dataclass
class Theatre:
    """Who calls, and where servers are."""

    clients: dict[str, Client]


@contextmanager
def grpcs(workloads: Workloads, ports: dict[str, int]) -> Iterator[None]:
    """gRPC's own servers, in a process of their own."""
    served = [f"{name}=127.0.0.1:{port}" for name, port in ports.items()]
    bootstrap = workloads.once("greeter", "--label", "app=greeter")
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "support/grpcio_greeters.py"), *served],
        env=os.environ | {"GRPC_XDS_BOOTSTRAP": str(bootstrap)},
        stdin=subprocess.PIPE,
    )
    try:
        yield
    finally:
        process.communicate(timeout=20)


@contextmanager
def ours(mesh: meshlib.Mesh, ports: dict[str, int]) -> Iterator[None]:
    """Ours, in this process."""

    def hello(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        caller = meshlib_grpc.caller()
        return f"ours {(caller and caller.principal) or ''} -".encode()

    handler = grpc.unary_unary_rpc_method_handler(hello)
    methods = dict.fromkeys(("Hello", "Admin", "Other"), handler)
    with ThreadPoolExecutor(4) as pool:
        server = meshlib_grpc.server(pool, mesh=mesh, register=False)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("greeter.Greeter", methods),))
        for port in ports.values():
            server.add_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield
        finally:
            server.stop(0).wait()


@contextmanager
def simple(folder: Path) -> Iterator[tuple[int, Path]]:
    """A server outside the mesh that has a certificate and asks for none: its port, and a file of roots."""
    ca = SmallCa()
    held = ca.issue("spiffe://cluster.local/ns/default/sa/simple", dns=["simple.example"])
    roots = folder / "roots.pem"
    roots.write_text(ca.pem)
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"simple answered -")
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("greeter.Greeter", {"Hello": handler}),)
        )
        credentials = grpc.ssl_server_credentials([(held.key_pem, held.pem.encode())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield port, roots
        finally:
            server.stop(0).wait()


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    install()
    base = tmp_path_factory.mktemp("secure")
    short = Path(tempfile.mkdtemp(prefix="m-"))  # for the paths of sockets
    ports = {server: {kind: free_port() for kind in ("mutual", "plain")} for server in SERVERS}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, short)
        port, roots = stack.enter_context(simple(base))
        plain = [str(each["plain"]) for each in ports.values()]
        permissive = ", ".join(f"{each}: {{mode: PERMISSIVE}}" for each in plain)
        quoted = ", ".join(f'"{each}"' for each in plain)
        documents = [POLICIES.format(plain=permissive, ports=quoted)]
        for case in {case.service: case for case in CASES.values()}.values():
            documents += [
                SERVICE.format(
                    name=f"{case.service}-{server}",
                    port=each[case.port],
                    account=case.account,
                    tls=case.tls,
                )
                for server, each in ports.items()
            ]
        by_tls = f"mode: SIMPLE, caCertificates: {roots}, subjectAltNames: [simple.example]"
        documents.append(SERVICE.format(name="simple", port=port, account="simple", tls=by_tls))
        control = stack.enter_context(secure_mesh(base, *documents))
        workloads = Workloads(control, short)
        stack.enter_context(grpcs(workloads, ports["grpcs"]))
        served = stack.enter_context(control.joined("greeter", labels="app=greeter"))
        stack.enter_context(ours(served, ports["ours"]))
        bootstrap = stack.enter_context(workloads.kept("cart"))
        clients = {
            "threads": stack.enter_context(threads(stack.enter_context(control.joined("cart")))),
            "tasks": stack.enter_context(tasks(stack.enter_context(control.joined("cart")))),
            "grpcio": stack.enter_context(foreign("python", bootstrap)),
            "grpc-js": stack.enter_context(foreign("node", bootstrap)),
        }
        for each in (*ports["grpcs"].values(), *ports["ours"].values()):
            wait_until(lambda number=each: listens(number), 60, "the servers")
        yield Theatre(clients)
        assert control.service is not None
        kinds = [kind for each in control.service.status()["clients"] for kind in each["kinds"]]
        assert [kind["nack"] for kind in kinds if kind["nacked"]] == []


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def outcome(client: Client, host: str, method: str = "Hello") -> str:
    """`as cart`, `as nobody`, or the code."""
    found = client(f"{host}:7000", calls=2, method=f"/greeter.Greeter/{method}", deadline=60)
    if found.errors:
        return found.words
    principals = {answer.split(" ")[1].rpartition("/")[2] for answer in found.answers}
    return f"as {principals.pop() or 'nobody'}".removeprefix("as answered") or "answered"


@pytest.mark.parametrize("client", COLUMNS)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", CASES)
def test_a_case(name: str, server: str, client: str, theatre: Theatre) -> None:
    case = CASES[name]
    found = outcome(theatre.clients[client], f"{case.service}-{server}", case.method)
    assert agrees(EXPECTED[name][COLUMNS[client]], found), found


@pytest.mark.parametrize("client", COLUMNS)
def test_tls(client: str, theatre: Theatre) -> None:
    found = outcome(theatre.clients[client], "simple")
    assert agrees(EXPECTED[SIMPLE][COLUMNS[client]], found), found


def test_the_page_tells_of_these_cases() -> None:
    assert list(EXPECTED) == [*CASES, SIMPLE]
