"""A mesh with nodes: a real Envoy each, fed by a control service with an authority, and workloads behind
them.

Workloads are put into the registry of the control service itself, and an authority beside it signs for
them: who may speak for whom is tried elsewhere.
"""

import asyncio
import contextlib
import http.server
import json
import socket
import socketserver
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived
from support.envoy import RealEnvoy, run_envoy
from support.namespaces import Pod
from support.secure_control import workload
from support.secure_mesh import SecureMesh

from meshlib.agent.bootstrap import NODE_INTERNAL, NODE_RUNTIME, SDS_SOCKET, XDS_CLUSTER
from meshlib.agent.sds import SecretServer
from meshlib.control.ca.authority import Authority
from meshlib.control.ca.nodes import allow
from meshlib.control.registration import Place, Registration
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import (
    CONTROL_SERVER,
    HBONE_PORT,
    MUTUAL,
    NODE_NAMESPACE,
    ROOTS_SECRET,
    SDS_CLUSTER,
    TLS_MODE_LABEL,
    TUNNEL_HTTP,
    TUNNEL_LABEL,
)
from meshlib.xds.node import Client, Flavour, to_node
from meshlib.xds.snapshot import Resource

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

MAX_CONNECTIONS = 100
"""To each listener of a workload."""
QUIET_SECONDS = 0.5
"""After which nothing more is said."""


class Signed:
    """Secrets by SPIFFE id, signed by an authority when they are first asked for."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._made: dict[str, Resource] = {}

    def of(self, names: Iterable[str]) -> list[Resource]:
        """Those of these names."""
        return [self._made.get(name) or self._make(name) for name in names]

    def _make(self, name: str) -> Resource:
        secret = pb.Secret(name=name)
        if name == ROOTS_SECRET:
            secret.validation_context.trusted_ca.inline_bytes = self._authority.roots_pem.encode()
        else:
            key, chain = workload(self._authority, SpiffeId.parse(name))
            secret.tls_certificate.private_key.inline_bytes = key
            secret.tls_certificate.certificate_chain.inline_bytes = chain
        self._made[name] = made = Resource.of(Kind.SECRET, name, secret)
        return made


def bootstrap(mesh: SecureMesh, name: str, folder: Path) -> dict[str, Any]:
    """Of a node's Envoy."""
    own = str(SpiffeId("cluster.local", NODE_NAMESPACE, name))
    client = Client(
        Flavour.NODE,
        namespace=NODE_NAMESPACE,
        service_account=name,
        node=name,
        max_connections=MAX_CONNECTIONS,
        id=f"node~{name}",
    )
    node = pb.to_dict(to_node(client))
    node.pop("user_agent_name", None)
    host, _, port = mesh.address.rpartition(":")
    control = _grpc(XDS_CLUSTER, {"socket_address": {"address": host, "port_value": int(port)}})
    control["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": _TLS,
            "sni": CONTROL_SERVER,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificate_sds_secret_configs": [_secret(own)],
                "combined_validation_context": {
                    "default_validation_context": {},
                    "validation_context_sds_secret_config": _secret(ROOTS_SECRET),
                },
            },
        },
    }
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    stream = {
        "api_type": "DELTA_GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER}}],
    }
    return {
        "node": node,
        "dynamic_resources": {"ads_config": stream, "cds_config": ads, "lds_config": ads},
        "layered_runtime": NODE_RUNTIME,
        "static_resources": {
            "clusters": [control, _grpc(SDS_CLUSTER, {"pipe": {"path": str(folder / SDS_SOCKET)}})]
        },
        "bootstrap_extensions": [NODE_INTERNAL],
    }


def _secret(name: str) -> dict[str, Any]:
    services = [{"envoy_grpc": {"cluster_name": SDS_CLUSTER}}]
    source = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": services}
    return {"name": name, "sds_config": {"api_config_source": source, "resource_api_version": "V3"}}


def _grpc(name: str, address: dict[str, Any]) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": address}}
    second: dict[str, Any] = {"http2_protocol_options": {}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            _OPTIONS: {"@type": f"type.googleapis.com/{_OPTIONS}", "explicit_http_config": second}
        },
    }


@dataclass
class Node:
    """A node whose Envoy runs on the loop of the mesh."""

    name: str
    mesh: SecureMesh
    envoy: RealEnvoy
    log: Path
    _streams: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    @property
    def said(self) -> str:
        """What the Envoy logged."""
        return self.log.read_text()

    def get(self, path: str) -> str:
        """What its admin interface answers."""
        made = asyncio.run_coroutine_threadsafe(self.envoy.get(path), self.mesh.loop)
        return made.result(20).decode()

    def stat(self, name: str) -> int:
        """A counter; 0 as long as there is none."""
        for line in self.get(f"/stats?filter=^{name}$").splitlines():
            return int(line.rpartition(": ")[2])
        return 0


@contextlib.contextmanager
def node(mesh: SecureMesh, name: str, *options: str) -> Iterator[Node]:
    """A node for the time of the block."""
    folder = mesh.folder / name
    folder.mkdir()
    allow(mesh.folder / "ca", name, ["default/*"])
    stack = contextlib.AsyncExitStack()

    async def start() -> RealEnvoy:
        await stack.enter_async_context(SecretServer(Signed(mesh.authority), folder / SDS_SOCKET))  # type: ignore[arg-type]
        return await stack.enter_async_context(run_envoy(bootstrap(mesh, name, folder), folder, *options))

    async def stop() -> None:
        await stack.aclose()

    envoy = asyncio.run_coroutine_threadsafe(start(), mesh.loop).result(70)
    made = Node(name, mesh, envoy, folder / "envoy.log")
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(stop(), mesh.loop).result(20)
        print(made.said[-6000:])


_STREAMS = iter(range(1_000_000, 2_000_000))


@contextlib.contextmanager
def registered(
    mesh: SecureMesh,
    node_name: str,
    app: str,
    pod: Pod | None = None,
    *,
    ports: tuple[tuple[str, int], ...] = (("http", 9080),),
    place: Place | None = None,
    address: str = "",
    namespace: str = "default",
    **labels: str,
) -> Iterator[Registration]:
    """A workload of a node, for the time of the block; its account is the app."""
    said = {"app": app, TLS_MODE_LABEL: MUTUAL, **labels}
    if pod is not None:
        said.setdefault(TUNNEL_LABEL, TUNNEL_HTTP)
    where = pod.address if pod is not None else address
    made = Registration(
        id=f"{node_name}~{app}@{where}",
        namespace=namespace,
        service_account=app,
        labels=tuple(sorted(said.items())),
        address=where,
        ports=ports,
        node=node_name,
        place=place or Place(app, str(pod.path) if pod else ""),
    )
    stream = next(_STREAMS)

    def call(*arguments: Any) -> None:
        done = threading.Event()

        def run() -> None:
            assert mesh.service is not None
            registrar = mesh.service._server.registrar
            getattr(registrar, arguments[0])(*arguments[1:])
            done.set()

        mesh.loop.call_soon_threadsafe(run)
        assert done.wait(10)

    call("reported", stream, made, time.monotonic())
    try:
        yield made
    finally:
        call("reported", stream, None, time.monotonic())


class _Telling(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = int(self.headers.get("content-length", 0))
        told = {
            "app": self.server.name,  # type: ignore[attr-defined]
            "path": self.path,
            "method": self.command,
            "from": self.client_address[0],
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": self.rfile.read(size).decode(),
        }
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        return


@contextlib.contextmanager
def serving(made: socketserver.BaseServer) -> Iterator[None]:
    """A server at work, on a thread of its own."""
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        made.shutdown()
        thread.join(10)
        made.server_close()


class _App(http.server.ThreadingHTTPServer):
    daemon_threads = True
    name = ""


@contextlib.contextmanager
def application(name: str, pod: Pod | None, port: int, host: str = "0.0.0.0") -> Iterator[None]:
    """A web application that tells what it was asked; of a pod, or of this namespace."""
    made = _App((host, port), _Telling, bind_and_activate=False)
    made.socket.close()
    if pod is not None:
        made.socket = pod.listen(port, host)
    else:
        made.socket = socket.create_server((host, port))
    made.name = name
    with serving(made):
        yield


@dataclass(frozen=True)
class Answer:
    """Of one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        """What the application told."""
        found: dict[str, Any] = json.loads(self.body)
        return found


def ask(
    pod: Pod, address: str, port: int, host: str, path: str = "/", method: str = "GET", **headers: str
) -> Answer:
    """One request on a connection of its own. OSError: there is no answer."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    with pod.connect(address, port) as made:
        made.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        with made.makefile("rb") as answer:
            first = answer.readline()
            if not first:
                raise ConnectionResetError("no answer")
            head = iter(lambda: answer.readline().decode().strip(), "")
            found = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
            # Envoy waits for the caller to close, after an answer of its own.
            size = found.get("content-length")
            body = answer.read(-1 if size is None else int(size))
    if found.get("transfer-encoding") == "chunked":
        body = _joined(body)
    return Answer(int(first.split()[1]), found, body)


def _joined(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        found += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
        if not int(size, 16):
            break
    return found


PARTING = 300_000


@contextlib.contextmanager
def greeting(pod: Pod, port: int) -> Iterator[None]:
    """A server of TCP that speaks first, and then says what it hears; to a q much more, and that is all."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.sendall(b"hello ")
                while data := self.request.recv(1000):
                    self.request.sendall(data if data != b"q" else b"y" * PARTING)
                    if data == b"q":
                        return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    made = Server(("", port), Handler, bind_and_activate=False)
    made.socket.close()
    made.socket = pod.listen(port)
    with serving(made):
        yield


def talk(pod: Pod, address: str, port: int) -> bytes:
    """What a server that says what it hears answers to an x, as far as it answers."""
    found = b""
    with contextlib.suppress(ConnectionError), pod.connect(address, port) as made:
        made.sendall(b"x")
        while not found.endswith(b"x") and (more := made.recv(100)):
            found += more
    return found


def lookup(pod: Pod, name: str, kind: int = 1) -> list[str]:
    """The addresses of a name, as a workload asks any server for them. LookupError: there is no such name."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    question = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">2H", kind, 1)
    with pod.datagrams() as made:
        made.settimeout(20)
        made.sendto(question, ("10.1.2.3", 53))
        answer = made.recv(2000)
    if answer[3] & 15:
        raise LookupError(f"{name}: {answer[3] & 15}")
    (count,), rest, found = struct.unpack(">H", answer[6:8]), answer[len(question) :], []
    for _ in range(count):
        end = 2 if rest[0] & 0xC0 else rest.index(b"\0") + 1
        (size,) = struct.unpack(">H", rest[end + 8 : end + 10])
        family = socket.AF_INET if size == 4 else socket.AF_INET6
        found.append(socket.inet_ntop(family, rest[end + 10 : end + 10 + size]))
        rest = rest[end + 10 + size :]
    return found


def tunnel(mesh: SecureMesh, address: str, account: str, method: str, authority: str, **more: str) -> str:
    """The status of one request to a workload at its port of tunnels; account empty: nobody asks."""
    headers = [(":method", method), (":authority", authority)]
    if method != "CONNECT":
        headers += [(":scheme", "https"), (":path", "/")]
    headers += [(name.replace("_", "-"), value) for name, value in more.items()]
    with _asked(mesh, address, account, headers, 1) as (status,):
        return status


def tunnels(
    mesh: SecureMesh, address: str, account: str, authority: str, count: int
) -> contextlib.AbstractContextManager[list[str]]:
    """The statuses of so many on one connection, of those that are answered, for the time of the block."""
    return _asked(mesh, address, account, [(":method", "CONNECT"), (":authority", authority)], count)


@contextlib.contextmanager
def _asked(
    mesh: SecureMesh, address: str, account: str, headers: list[tuple[str, str]], count: int
) -> Iterator[list[str]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if account:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "own.pem"
            key, chain = workload(mesh.authority, SpiffeId("cluster.local", "default", account))
            path.write_bytes(key + chain)
            context.load_cert_chain(path)
    h2 = H2Connection(H2Configuration(validate_outbound_headers=False))
    h2.initiate_connection()
    for number in range(count):
        h2.send_headers(2 * number + 1, headers)
    found: list[str] = []
    with socket.create_connection((address, HBONE_PORT), 10) as plain, context.wrap_socket(plain) as made:
        made.sendall(h2.data_to_send())
        while len(found) < count:
            try:
                data = made.recv(65536)
            except TimeoutError:
                break
            made.settimeout(QUIET_SECONDS)
            answers = [event for event in h2.receive_data(data) if isinstance(event, ResponseReceived)]
            found += [dict(event.headers)[b":status"].decode() for event in answers]
            if not data:
                raise ConnectionResetError("no answer")
        yield found
