"""gRPC and WebSockets from and to nodes: plain programs in pods at both ends, by HBONE, and Python in the
mesh, by mutual TLS at the port. Needs root.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import websockets.sync.client
import websockets.sync.server
from support.commands import wait_until
from support.grpc_talk import HEARD, service, talk
from support.namespaces import Pod, pod
from support.node_mesh import Node, node, registered
from support.ports import free_port
from support.secure_mesh import SecureMesh, secure_mesh

import meshlib
import meshlib_grpc
import meshlib_websockets.sync

SERVICES = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: chats}
spec: {selector: {app: chats}, ports: [{name: grpc, port: 50051}, {name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: greets}
spec: {selector: {app: greets}, ports: [{name: grpc, port: 50051, targetPort: grpc}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: chats}
spec:
  selector: {matchLabels: {app: chats}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/caller]}}]
    to: [{operation: {notPaths: ["/test.Service/forbidden", "/admin*"]}}]
"""
PORTS = (("grpc", 50051), ("http", 9080))
ANY = "10.96.0.9"
"""At a port of HTTP the host decides, not the address."""
BIG = "x" * 300_000


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), SERVICES) as made:
        yield made


@pytest.fixture(scope="module")
def nodes(mesh: SecureMesh) -> Iterator[tuple[Node, Node]]:
    with (
        node(mesh, "vm1", "--skip-deprecated-logs") as one,
        node(mesh, "vm2", "--skip-deprecated-logs") as two,
    ):
        yield one, two


@pytest.fixture(scope="module")
def caller(mesh: SecureMesh, nodes: tuple[Node, Node]) -> Iterator[Pod]:
    with pod() as made, registered(mesh, "vm1", "caller", made):
        wait_until(lambda: "caller/inbound" in nodes[0].get("/listeners"), 20, "its listeners")
        yield made


@pytest.fixture(scope="module")
def page(mesh: SecureMesh) -> Iterator[meshlib.Mesh]:
    with mesh.joined("caller") as made:
        yield made


@pytest.fixture(scope="module")
def chats(mesh: SecureMesh, nodes: tuple[Node, Node]) -> Iterator[None]:
    """What speaks gRPC and WebSockets in a pod."""
    with pod() as made, registered(mesh, "vm2", "chats", made, ports=PORTS):
        process = started(made, "serve", "50051")
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serves\n"
            with websocket_server(made):
                wait_until(lambda: "chats/inbound" in nodes[1].get("/listeners"), 20, "its listeners")
                yield
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def greets(mesh: SecureMesh) -> Iterator[None]:
    """What speaks gRPC in Python, in the mesh."""
    port = free_port()
    own = {"ports": {"grpc": port}, "labels": "app=greets", "address": "127.0.0.1"}
    with mesh.joined("greets", **own) as joined, ThreadPoolExecutor(4) as pool:
        server = meshlib_grpc.server(pool, mesh=joined)
        server.add_generic_rpc_handlers((service(),))
        server.add_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield
        finally:
            server.stop(0).wait()


def started(where: Pod, *words: str) -> "subprocess.Popen[str]":
    """Talks in a pod."""
    own = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = ["ip", "netns", "exec", where.name, sys.executable, "-m", "support.grpc_talk", *words]
    return subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def websocket_server(where: Pod) -> Iterator[None]:
    """Says who calls, then gives back what it is sent."""

    def answer(connection: websockets.sync.server.ServerConnection) -> None:
        assert connection.request is not None
        connection.send(connection.request.headers["x-forwarded-client-cert"])
        for message in connection:
            connection.send(message)

    server = websockets.sync.server.serve(answer, sock=where.listen(9080))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(10)


def asked(where: Pod, host: str) -> dict[str, Any]:
    """What a plain program in a pod hears."""
    process = started(where, "ask", f"ipv4:{ANY}:50051", f"{host}:50051")
    said, _ = process.communicate(timeout=60)
    found: dict[str, Any] = json.loads(said)
    return found


def test_grpc_from_a_pod_to_a_pod(caller: Pod, chats: None, nodes: tuple[Node, Node]) -> None:
    assert asked(caller, "chats.default") == HEARD
    assert nodes[1].stat(r"http\.hbone\.downstream_rq_2xx") > 0


def test_grpc_from_a_pod_to_python(caller: Pod, greets: None) -> None:
    assert asked(caller, "greets.default") == HEARD


def test_grpc_from_python_to_a_pod(page: meshlib.Mesh, chats: None) -> None:
    with meshlib_grpc.channel("chats:50051", mesh=page) as channel:
        assert talk(channel) == HEARD
        with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
            channel.unary_unary("/test.Service/forbidden")(b"", timeout=20)


def echoed(made: Any) -> None:
    assert "URI=spiffe://cluster.local/ns/default/sa/caller" in made.recv(20)
    for message in ("hello", BIG, b"\x00" * 70_000):
        made.send(message)
        assert made.recv(20) == message
    made.ping().wait(20)


def opened(where: Pod, host: str, path: str) -> Any:
    """By a plain client in a pod, which does not wait for the end: an Envoy takes a second for it."""
    url = f"ws://{host}.default:9080{path}"
    return websockets.sync.client.connect(url, sock=where.connect(ANY, 9080), close_timeout=0.1)


def test_websockets_from_a_pod_to_a_pod(caller: Pod, chats: None) -> None:
    with opened(caller, "chats", "/x") as made:
        echoed(made)
    with pytest.raises(websockets.InvalidStatus, match="403"):
        opened(caller, "chats", "/admin")


def test_websockets_from_python_to_a_pod(page: meshlib.Mesh, chats: None) -> None:
    with meshlib_websockets.sync.connect("ws://chats:9080/x", mesh=page) as made:
        echoed(made)


def test_websockets_from_a_pod_to_python(mesh: SecureMesh, caller: Pod) -> None:
    def answers() -> bool:
        """It may serve before all have heard of it."""
        with contextlib.suppress(websockets.InvalidStatus), opened(caller, "reviews", "/x"):
            return True
        return False

    with mesh.served("serve-websockets"):
        wait_until(answers, 20, "it")
        with opened(caller, "reviews", "/x") as made:
            assert made.recv(20) == "spiffe://cluster.local/ns/default/sa/caller"
            for message in ("hello", BIG):
                made.send(message)
                assert made.recv(20) == message
