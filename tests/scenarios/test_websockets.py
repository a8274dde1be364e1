"""WebSockets from one workload to another: mutual TLS, policy by path and caller, whoever the client is."""

import asyncio
from collections.abc import Iterator

import httpx_ws
import pytest
from support.secure_mesh import SecureMesh, secure_mesh
from websockets.exceptions import InvalidStatus

import meshlib
import meshlib_websockets
import meshlib_websockets.sync

PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
BIG = "x" * 300_000
POLICIES = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-the-page}
spec:
  selector: {matchLabels: {app: reviews}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/productpage]}}]
    to: [{operation: {notPaths: ["/admin*"]}}]
"""
LIVE, ADMIN = "ws://reviews:9080/live", "ws://reviews:9080/admin"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("world"), POLICIES) as made, made.served("serve-websockets"):
        yield made


@pytest.fixture(scope="module")
def page(world: SecureMesh) -> Iterator[meshlib.Mesh]:
    with world.joined("productpage") as mesh:
        yield mesh


async def test_the_librarys_clients(page: meshlib.Mesh) -> None:
    async with meshlib_websockets.connect(LIVE, mesh=page) as websocket:
        assert await websocket.recv() == PAGE
        for message in ("hello", BIG, BIG):
            await websocket.send(message)
        assert [await websocket.recv() for _ in range(3)] == ["hello", BIG, BIG]
    with pytest.raises(InvalidStatus) as caught:
        await meshlib_websockets.connect(ADMIN, mesh=page)
    assert caught.value.response.status_code == 403
    await asyncio.to_thread(threads, page)


def threads(page: meshlib.Mesh) -> None:
    with meshlib_websockets.sync.connect(LIVE, mesh=page) as websocket:
        assert websocket.recv(10) == PAGE
        for message in ("hello", BIG, BIG):
            websocket.send(message)
        assert [websocket.recv(10) for _ in range(3)] == ["hello", BIG, BIG]
    with pytest.raises(InvalidStatus) as caught, meshlib_websockets.sync.connect(ADMIN, mesh=page):
        pass
    assert caught.value.response.status_code == 403


async def test_httpx_ws(page: meshlib.Mesh) -> None:
    async with (
        meshlib.AsyncClient(mesh=page) as client,
        httpx_ws.aconnect_ws("http://reviews:9080/live", client) as ws,
    ):
        assert await ws.receive_text() == PAGE
        for message in ("hello", BIG, BIG):
            await ws.send_text(message)
        assert [await ws.receive_text() for _ in range(3)] == ["hello", BIG, BIG]
    await asyncio.to_thread(httpx_threads, page)


def httpx_threads(page: meshlib.Mesh) -> None:
    with meshlib.Client(mesh=page) as client:
        with httpx_ws.connect_ws("http://reviews:9080/live", client) as ws:
            assert ws.response.extensions["network_stream"].get_extra_info("ssl_object") is not None
            assert ws.receive_text(10) == PAGE
            for message in ("hello", BIG, BIG):
                ws.send_text(message)
            assert [ws.receive_text(10) for _ in range(3)] == ["hello", BIG, BIG]
        with (
            pytest.raises(httpx_ws.WebSocketUpgradeError),
            httpx_ws.connect_ws("http://reviews:9080/admin", client),
        ):
            pass


async def test_a_stranger(world: SecureMesh) -> None:
    with world.joined("stranger") as mesh:
        with pytest.raises(InvalidStatus) as caught:
            await meshlib_websockets.connect(LIVE, mesh=mesh)
        assert caught.value.response.status_code == 403
