"""gRPC's interoperability cases of security: who may call whom, by which certificate, with four clients.

Servers of one account each have a port for mutual TLS and one for plain text: gRPC's own of two languages,
ours, and gRPC's with our interceptor. All but the last have one more port, whose mode changes.
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
from support.secure_mesh import SecureMesh, secure_mesh
from support.small_ca import SmallCa

import meshlib
import meshlib_grpc

COLUMNS = {"threads": "ours", "tasks": "ours", "grpcio": "grpcio", "grpc-js": "grpc-js"}
EXPECTED = table("Security")
SERVERS = ("grpcs", "js", "ours", "own")
CHANGING = ("grpcs", "js", "ours")
HELLO = "/greeter.Greeter/Hello"
POLICIES = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: greeter}}
spec:
  selector: {{matchLabels: {{app: greeter}}}}
  mtls: {{mode: STRICT}}
  portLevelMtls: {{{modes}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: greeter}}
spec:
  selector: {{matchLabels: {{app: greeter}}}}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/cart]}}}}]
    to: [{{operation: {{paths: [/greeter.Greeter/{cart}]}}}}]
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
CHANGED = (Case("changing", "changing"), Case("changing-plain", "changing", PLAIN))
SIMPLE = "mode: SIMPLE, to a server with a certificate"


Ports = dict[str, dict[str, int]]
"""Of each server, by kind."""


@dataclass
class Theatre:
    """Who calls, and where servers are."""

    control: SecureMesh
    ports: Ports
    clients: dict[str, Client]
    cart: meshlib.Mesh
    services: list[str]

    def edit(self, mode: str, cart: str = "Hello") -> None:
        """The mode of the ports that change, and what cart may call."""
        self.control.edit(policies(self.ports, mode, cart), *self.services)


def policies(ports: Ports, mode: str = "PERMISSIVE", cart: str = "Hello") -> str:
    """See `Theatre.edit`."""
    plain = {port: "PERMISSIVE" for each in ports.values() if (port := each["plain"])}
    changing = {port: mode for each in ports.values() if (port := each.get("changing"))}
    both = plain | changing
    modes = ", ".join(f"{port}: {{mode: {mode}}}" for port, mode in both.items())
    return POLICIES.format(modes=modes, ports=", ".join(f'"{port}"' for port in both), cart=cart)


@contextmanager
def grpcs(command: list[str], bootstrap: Path, ports: dict[str, int]) -> Iterator[None]:
    """gRPC's own servers, in a process of their own."""
    served = [f"{name}=127.0.0.1:{port}" for name, port in ports.items()]
    process = subprocess.Popen(
        [*command, *served],
        env=os.environ | {"GRPC_XDS_BOOTSTRAP": str(bootstrap), "GRPC_XDS_EXPERIMENTAL_RBAC": "true"},
        stdin=subprocess.PIPE,
    )
    try:
        yield
    finally:
        process.communicate(timeout=20)
        assert process.returncode == 0


def hello(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    caller = meshlib_grpc.caller()
    return f"ours {(caller and caller.principal) or ''} -".encode()


METHODS = dict.fromkeys(("Hello", "Admin", "Other"), grpc.unary_unary_rpc_method_handler(hello))
HANDLERS = (grpc.method_handlers_generic_handler("greeter.Greeter", METHODS),)


@contextmanager
def ours(mesh: meshlib.Mesh, ports: dict[str, int]) -> Iterator[None]:
    """Ours, in this process."""
    with ThreadPoolExecutor(4) as pool:
        server = meshlib_grpc.server(pool, HANDLERS, mesh=mesh, register=False)
        for port in ports.values():
            server.add_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield
        finally:
            server.stop(0).wait()


@contextmanager
def own(mesh: meshlib.Mesh, port: int, credentials: grpc.ServerCredentials) -> Iterator[None]:
    """gRPC's in this process, with our interceptor."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, HANDLERS, [meshlib_grpc.server_interceptor(mesh, port)])
        server.add_secure_port(f"127.0.0.1:{port}", credentials)
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
    ports = {server: {"mutual": free_port(), "plain": free_port()} for server in SERVERS}
    for server in CHANGING:
        ports[server]["changing"] = free_port()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, short)
        port, roots = stack.enter_context(simple(base))
        services = [
            SERVICE.format(
                name=f"{case.service}-{server}",
                port=each[case.port],
                account=case.account,
                tls=case.tls,
            )
            for case in {case.service: case for case in (*CASES.values(), *CHANGED)}.values()
            for server, each in ports.items()
            if case.port in each
        ]
        by_tls = f"mode: SIMPLE, caCertificates: {roots}, subjectAltNames: [simple.example]"
        services.append(SERVICE.format(name="simple", port=port, account="simple", tls=by_tls))
        control = stack.enter_context(secure_mesh(base, policies(ports), *services))
        workloads = Workloads(control, short)
        python = [sys.executable, str(TESTS / "support/grpcio_greeters.py")]
        bootstrap = stack.enter_context(workloads.kept("greeter", None, "--label", "app=greeter"))
        stack.enter_context(grpcs(python, bootstrap, ports["grpcs"]))
        node = ["node", str(TESTS / "scenarios/grpcjs/server.js")]
        stack.enter_context(grpcs(node, bootstrap, ports["js"]))
        served = stack.enter_context(control.joined("greeter", labels="app=greeter"))
        stack.enter_context(ours(served, ports["ours"]))
        secured = meshlib_grpc.server_credentials(served)
        stack.enter_context(own(served, ports["own"]["mutual"], secured))
        stack.enter_context(own(served, ports["own"]["plain"], grpc.insecure_server_credentials()))
        bootstrap = stack.enter_context(workloads.kept("cart"))
        cart = stack.enter_context(control.joined("cart"))
        clients = {
            "threads": stack.enter_context(threads(cart)),
            "tasks": stack.enter_context(tasks(stack.enter_context(control.joined("cart")))),
            "grpcio": stack.enter_context(foreign("python", bootstrap)),
            "grpc-js": stack.enter_context(foreign("node", bootstrap)),
        }
        for each in (number for server in ports.values() for number in server.values()):
            wait_until(lambda number=each: listens(number), 60, "the servers")
        yield Theatre(control, ports, clients, cart, services)
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


@pytest.mark.parametrize("server", CHANGING)
def test_a_mode_that_changes(server: str, theatre: Theatre) -> None:
    """In a server that serves on, both ways, for new connections."""

    def found(host: str) -> str:
        with threads(theatre.cart) as ask:
            return outcome(ask, f"{host}-{server}")

    def become(mode: str, mutual: str, plain: str) -> None:
        theatre.edit(mode)
        wanted = {"changing": mutual, "changing-plain": plain}
        wait_until(lambda: {host: found(host) for host in wanted} == wanted, 30, f"{wanted} in {mode}")

    # Of the two in PERMISSIVE gRPC's servers take one.
    either = "as cart" if server == "ours" else "UNAVAILABLE"
    become("STRICT", "as cart", "UNAVAILABLE")
    become("PERMISSIVE", either, "as nobody")
    become("STRICT", "as cart", "UNAVAILABLE")
    become("DISABLE", "UNAVAILABLE", "as nobody")
    become("STRICT", "as cart", "UNAVAILABLE")


@pytest.mark.parametrize("server", SERVERS)
def test_a_policy_that_changes(server: str, theatre: Theatre) -> None:
    """In a server that serves on, for calls on connections that there are."""
    ask = theatre.clients["threads"]
    for mine, others in (("Other", "Hello"), ("Hello", "Other")):
        theatre.edit("STRICT", cart=mine)
        wait_until(lambda method=mine: outcome(ask, f"mutual-{server}", method) == "as cart", 30, mine)
        assert outcome(ask, f"mutual-{server}", others) == "PERMISSION_DENIED"


@pytest.mark.parametrize("client", COLUMNS)
def test_tls(client: str, theatre: Theatre) -> None:
    found = outcome(theatre.clients[client], "simple")
    assert agrees(EXPECTED[SIMPLE][COLUMNS[client]], found), found


def test_the_page_tells_of_these_cases() -> None:
    assert list(EXPECTED) == [*CASES, SIMPLE]
