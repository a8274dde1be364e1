"""What a real Envoy puts on the wire for `tunnel` and `proxyProtocol`, and what this library does."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.envoy import run_envoy

import meshlib
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.istio.problem import Severity
from meshlib.control.sources.text import documents_in
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour

HOST = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}.test]
  ports: [{{number: 7000, name: p, protocol: {protocol}}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{p: {port}}}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec:
  host: {name}.test
  trafficPolicy: {policy}
"""
ENDS = {0: b"\r\n\r\n", -1: b"\r\n"}
FINE = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine"
ANSWERS = {
    "ok": b"HTTP/1.1 200 OK\r\n\r\n",
    "at-once": b"HTTP/1.1 200 Connection established\r\nvia: x\r\n\r\nhello, ",
    "no-content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "with-length": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
    "informational": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nlocation: http://x/\r\n\r\n",
    "forbidden": b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
    "unknown-proxy-user": b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n",
    "unavailable": b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
    "no-http": b"SSH-2.0-OpenSSH\r\n\r\n",
    "settings": b"\0\0\0\x04\0\0\0\0\0",  # of HTTP/2, and nothing else
    "nothing": b"",
}


@dataclass
class Proxy:
    """A server that reads a head, gives one answer, and echoes."""

    port: int
    answer: bytes
    heads: list[bytes] = field(default_factory=list)


@contextmanager
def server(answer: bytes, length: int = 0) -> Iterator[Proxy]:
    """`length` of the head; 0: it ends with an empty line, -1: with a line. `FINE` answers each request."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Proxy(listening.getsockname()[1], answer)

        def serve(far: socket.socket) -> None:
            with far, suppress(OSError):
                head = b""
                while not (head.endswith(ENDS[length]) if length in ENDS else len(head) == length):
                    data = far.recv(1)
                    if not data:
                        return
                    head += data
                made.heads.append(head)
                if answer is not FINE:
                    far.sendall(answer)
                while (answer or length) and (data := far.recv(65536)):
                    far.sendall(FINE if answer is FINE else data)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield made
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def resources(text: str, asked: list[str]) -> dict[tuple[Kind, str], Any]:
    read = documents_in(text, "in.yaml")
    assert [str(one) for one in read.problems if one.severity is Severity.ERROR] == []
    compiler = GraphCompiler(build_graph(read.documents), "1")
    return {
        (one.kind, one.name): one.message()
        for one in compiler.resources(Client(Flavour.MESHLIB), frozenset(asked))
    }


def static_cluster(message: Any, endpoints: Any) -> dict[str, Any]:
    made = pb.to_dict(message) | {"type": "STATIC", "load_assignment": pb.to_dict(endpoints)}
    del made["eds_cluster_config"]
    return made


def listener(message: Any, name: str) -> dict[str, Any]:
    """The chains of connections, at a port of their own."""
    return {
        "name": name,
        "filter_chains": pb.to_dict(message)["filter_chains"][1:],
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
    }


def spoken(made: socket.socket) -> bytes:
    """What comes of saying hello."""
    made.settimeout(10)
    try:
        made.sendall(b"world")
        found = b""
        while not found.endswith(b"world"):
            data = made.recv(1000)
            if not data:
                break
            found += data
        return found
    except ConnectionError:
        return b""


def by_library(mesh: meshlib.Mesh, name: str) -> bytes:
    try:
        with meshlib.create_connection((f"{name}.test", 7000), 10, mesh=mesh) as made:
            return spoken(made)
    except meshlib.ConnectFailed:
        return b""


async def by_streams(mesh: meshlib.Mesh, name: str) -> bytes:
    try:
        reader, writer = await meshlib.open_connection(f"{name}.test", 7000, mesh=mesh)
    except meshlib.ConnectFailed:
        return b""
    writer.write(b"world")
    found = b""
    while not found.endswith(b"world"):
        found += await reader.read(1000)
    writer.close()
    await writer.wait_closed()
    return found


async def test_a_tunnel_is_asked_for_as_envoy_does(tmp_path: Path) -> None:
    with ExitStack() as stack:
        proxies = {name: stack.enter_context(server(answer)) for name, answer in ANSWERS.items()}
        policy = "{{tunnel: {{targetHost: {host}, targetPort: 443}}}}"
        text = "---".join(
            HOST.format(
                name=name,
                protocol="TCP",
                port=proxy.port,
                policy=policy.format(host="'fd00::1'" if name == "at-once" else "far.example"),
            )
            for name, proxy in proxies.items()
        )
        (tmp_path / "mesh.yaml").write_text(text)
        mesh = stack.enter_context(meshlib.connect(tmp_path))
        made = resources(text, [f"{name}.test:7000" for name in proxies])
        clusters, listeners = [], []
        for name in proxies:
            cluster = f"outbound|7000||{name}.test"
            clusters.append(static_cluster(made[Kind.CLUSTER, cluster], made[Kind.ENDPOINTS, cluster]))
            listeners.append(listener(made[Kind.LISTENER, f"{name}.test:7000"], name))
        static = {"static_resources": {"listeners": listeners, "clusters": clusters}}
        seen: dict[str, bytes] = {}
        async with run_envoy(static, tmp_path) as running:
            for name, proxy in proxies.items():
                with socket.create_connection(("127.0.0.1", running.listeners[name]), 10) as by_envoy:
                    seen[name] = spoken(by_envoy)
                assert by_library(mesh, name) == seen[name], name
                assert await by_streams(mesh, name) == seen[name], name
                envoys, *ours = proxy.heads
                assert ours == [envoys] * 2, name
    assert {name for name, found in seen.items() if found} == {
        *("ok", "at-once", "no-content", "with-length", "informational")
    }
    assert (seen["ok"], seen["at-once"]) == (b"world", b"hello, world")
    assert proxies["ok"].heads[0] == b"CONNECT far.example:443 HTTP/1.1\r\nhost: far.example:443\r\n\r\n"


POSTED = {
    "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    "refused": b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", ["chunked", "refused"])
async def test_a_tunnel_of_chunks_is_envoys(name: str, tmp_path: Path) -> None:
    """The server echoes what comes, and what comes is chunks."""
    with ExitStack() as stack:
        proxy = stack.enter_context(server(POSTED[name]))
        policy = "{tunnel: {protocol: POST, targetHost: far.example, targetPort: 443}}"
        text = HOST.format(name="posted", protocol="TCP", port=proxy.port, policy=policy)
        (tmp_path / "mesh.yaml").write_text(text)
        mesh = stack.enter_context(meshlib.connect(tmp_path))
        made = resources(text, ["posted.test:7000"])
        cluster = "outbound|7000||posted.test"
        static = {
            "static_resources": {
                "listeners": [listener(made[Kind.LISTENER, "posted.test:7000"], "l")],
                "clusters": [static_cluster(made[Kind.CLUSTER, cluster], made[Kind.ENDPOINTS, cluster])],
            }
        }
        async with run_envoy(static, tmp_path) as running:
            with socket.create_connection(("127.0.0.1", running.listeners["l"]), 10) as by_envoy:
                seen = spoken(by_envoy)
        assert by_library(mesh, "posted") == seen
        assert await by_streams(mesh, "posted") == seen
        assert seen == (b"world" if name == "chunked" else b"")
        envoys, *ours = proxy.heads
        assert [fields_of(head) for head in ours] == [fields_of(envoys)] * 2


def fields_of(head: bytes) -> tuple[bytes, set[bytes]]:
    """The line, and the fields in no order."""
    line, *fields = head.split(b"\r\n")
    return line, set(fields)


Address = tuple[str, int]
LENGTHS = {"V1": 0, "V2": 28}


def header(version: str, source: Address, destination: Address) -> bytes:
    """https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt"""
    if version == "V1":
        return f"PROXY TCP4 {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode()
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    ports = struct.pack("!HH", source[1], destination[1])
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + addresses + ports


@pytest.mark.parametrize("version", ["V1", "V2"])
async def test_a_proxy_header_is_envoys(version: str, tmp_path: Path) -> None:
    """But for its addresses: a sidecar tells of the connection behind it, a process has only its own."""
    with ExitStack() as stack:
        tcp, http = (stack.enter_context(headed(version, answer)) for answer in (b"", FINE))
        policy = f"{{proxyProtocol: {{version: {version}}}}}"
        text = "---".join(
            HOST.format(name=name, protocol=name.upper(), port=one.port, policy=policy)
            for name, one in (("tcp", tcp), ("http", http))
        )
        (tmp_path / "mesh.yaml").write_text(text)
        mesh = stack.enter_context(meshlib.connect(tmp_path))
        made = resources(text, ["tcp.test:7000"])
        cluster = "outbound|7000||tcp.test"
        static = {
            "static_resources": {
                "listeners": [listener(made[Kind.LISTENER, "tcp.test:7000"], "tcp")],
                "clusters": [static_cluster(made[Kind.CLUSTER, cluster], made[Kind.ENDPOINTS, cluster])],
            }
        }
        async with run_envoy(static, tmp_path) as running:
            with socket.create_connection(("127.0.0.1", running.listeners["tcp"]), 10) as near:
                expected = header(version, near.getsockname(), near.getpeername())
                assert spoken(near) == b"world"
            assert tcp.heads.pop() == expected
        with meshlib.create_connection(("tcp.test", 7000), 10, mesh=mesh) as near:
            assert spoken(near) == b"world"
            assert tcp.heads.pop() == header(version, near.getsockname(), near.getpeername())
        reader, writer = await meshlib.open_connection("tcp.test", 7000, mesh=mesh)
        writer.write(b"world")
        assert await reader.readexactly(5) == b"world"
        ends = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        assert tcp.heads.pop() == header(version, *ends)
        writer.close()
        await writer.wait_closed()
        with meshlib.Client(mesh=mesh) as client:
            assert client.get("http://http.test:7000/").text == "fine"
        async with meshlib.AsyncClient(mesh=mesh) as tasks:
            for _ in range(2):
                assert (await tasks.get("http://http.test:7000/")).text == "fine"
        assert len(http.heads) == 2
        for head in http.heads:
            port = int.from_bytes(head[24:26]) if version == "V2" else int(head.split(b" ")[4])
            assert head == header(version, ("127.0.0.1", port), ("127.0.0.1", http.port))


@contextmanager
def headed(version: str, answer: bytes) -> Iterator[Proxy]:
    """A server whose connections begin with such a header."""
    with server(answer, LENGTHS[version] or -1) as made:
        yield made
