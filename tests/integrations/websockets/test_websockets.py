"""The `websockets` library through the mesh: its own connections and errors, by the mesh's rules."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.ports import free_port
from support.raw_server import raw_server
from support.websocket_server import websocket_server
from websockets.exceptions import ConnectionClosedOK, InvalidMessage, InvalidStatus
from websockets.frames import CloseCode
from websockets.utils import accept_key

import meshlib
import meshlib_websockets
import meshlib_websockets.sync
from meshlib.core.balance.cluster import Limits

URL = "ws://reviews:9080"
RETRIES = {
    "retry_policy": {
        "retry_on": "connect-failure,5xx",
        "num_retries": 30,
        "retry_back_off": {"base_interval": "0.001s"},
    }
}
BIG = "x" * 300_000


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with websocket_server() as made:
        yield made


@contextlib.contextmanager
def nothing_left(mesh: FakeMesh) -> Iterator[None]:
    """Slots and connections come back."""
    yield
    assert mesh.in_flight() == 0
    for sender in (
        meshlib_websockets.tasks._senders.get(mesh),  # type: ignore[attr-defined,call-overload]
        meshlib_websockets.sync._senders.get(mesh),  # type: ignore[call-overload]
    ):
        if sender is not None and sender._connections is not None:
            assert [pool.opened for pool in sender._connections._pools.values()] in ([0], [])


def connect(path: str, mesh: FakeMesh, **arguments: object) -> meshlib_websockets.connect:
    return meshlib_websockets.connect(URL + path, mesh=mesh, **arguments)  # type: ignore[arg-type]


def connect_sync(path: str, mesh: FakeMesh, **arguments: object) -> meshlib_websockets.sync.reconnect:
    made = meshlib_websockets.sync.connect(URL + path, mesh=mesh, **arguments)  # type: ignore[arg-type]
    assert isinstance(made, meshlib_websockets.sync.reconnect)
    return made


async def test_messages(port: int) -> None:
    mesh = fake_mesh([port])
    with nothing_left(mesh):
        async with connect("/live?a=1", mesh) as websocket:
            await websocket.send("hello")
            assert await websocket.recv() == "hello"
            await websocket.send(BIG)
            assert await websocket.recv() == BIG
            assert websocket.facts.endpoint == f"127.0.0.1:{port}"  # type: ignore[attr-defined]
            assert websocket.remote_address == ("127.0.0.1", port)
            assert mesh.in_flight() == 1
            await (await websocket.ping())
            await websocket.send("close")
            with pytest.raises(ConnectionClosedOK):
                await websocket.recv()
        assert websocket.close_code == CloseCode.NORMAL_CLOSURE
    await asyncio.sleep(0)


def test_messages_for_threads(port: int) -> None:
    mesh = fake_mesh([port])
    with nothing_left(mesh):
        with connect_sync("/live?a=1", mesh) as websocket:
            websocket.send("hello")
            assert websocket.recv(5) == "hello"
            websocket.send(BIG)
            assert websocket.recv(5) == BIG
            assert websocket.facts.endpoint == f"127.0.0.1:{port}"  # type: ignore[attr-defined]
            assert websocket.remote_address == ("127.0.0.1", port)
            assert mesh.in_flight() == 1
            websocket.send("close")
            with pytest.raises(ConnectionClosedOK):
                websocket.recv(5)
        assert websocket.close_code == CloseCode.NORMAL_CLOSURE


async def test_what_comes_with_the_response_is_not_lost(port: int) -> None:
    mesh = fake_mesh([port])
    with nothing_left(mesh):
        for _ in range(5):
            async with connect("/greets", mesh) as websocket:
                assert await websocket.recv() == "welcome"
            with connect_sync("/greets", mesh) as other:
                assert await asyncio.to_thread(other.recv, 5) == "welcome"


async def test_a_peer_that_says_all_at_once_and_leaves() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        told = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}"
        head = f"HTTP/1.1 101 Switching Protocols\r\n{told}\r\n\r\n"
        writer.write(head.encode() + b"\x81\x05hello\x88\x02\x03\xe8")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        mesh = fake_mesh([server.sockets[0].getsockname()[1]])
        with nothing_left(mesh):
            for _ in range(10):
                async with connect("/", mesh) as websocket:
                    assert await websocket.recv() == "hello"
                    with pytest.raises(ConnectionClosedOK):
                        await websocket.recv()
                assert await asyncio.to_thread(hello, mesh) == "hello"


def hello(mesh: FakeMesh) -> str | bytes:
    with connect_sync("/", mesh) as websocket:
        return websocket.recv(5)


async def test_a_response_that_is_no_101(port: int) -> None:
    mesh = fake_mesh([port])
    with nothing_left(mesh):
        with pytest.raises(InvalidStatus) as caught:
            await connect("/no", mesh)
        assert (caught.value.response.status_code, caught.value.response.body) == (403, b"not you\n")
        assert caught.value.flight.cluster == "c"  # type: ignore[attr-defined]
        with pytest.raises(InvalidStatus) as caught, connect_sync("/no", mesh):
            pass
        assert (caught.value.response.status_code, caught.value.response.body) == (403, b"not you\n")
        assert caught.value.flight.cluster == "c"  # type: ignore[attr-defined]


async def test_redirects_are_followed_through_the_mesh(port: int) -> None:
    mesh = fake_mesh([port])
    with nothing_left(mesh):
        async with connect("/moved", mesh) as websocket:
            assert websocket.request is not None
            assert websocket.request.path == "/live"
        with connect_sync("/moved", mesh) as other:
            assert other.request is not None
            assert other.request.path == "/live"


async def test_tries_are_repeated_until_there_is_one(port: int) -> None:
    mesh = fake_mesh([free_port(), port], route=RETRIES)
    with nothing_left(mesh):
        for _ in range(4):
            async with connect("/live", mesh) as websocket:
                await websocket.send("hello")
                assert await websocket.recv() == "hello"
            with connect_sync("/live", mesh) as other:
                other.send("hello")
                assert await asyncio.to_thread(other.recv, 5) == "hello"


async def test_nobody_there() -> None:
    mesh = fake_mesh([free_port()])
    with nothing_left(mesh):
        with pytest.raises(ConnectionError) as caught:
            await connect("/live", mesh)
        assert isinstance(caught.value, meshlib.ConnectFailed)
        assert caught.value.flight.attempts == 1
        with pytest.raises(meshlib.ConnectFailed), connect_sync("/live", mesh):
            pass


async def test_broken_peers() -> None:
    with raw_server() as server:
        mesh = fake_mesh([server.port])
        with nothing_left(mesh):
            for path, kind in (
                ("/hangup", meshlib.UpstreamReset),
                ("/nonsense", meshlib.UpstreamProtocolError),
            ):
                with pytest.raises(InvalidMessage) as caught:
                    await connect(path, mesh)
                assert isinstance(caught.value, kind)
                with pytest.raises(InvalidMessage), connect_sync(path, mesh):
                    pass
            with pytest.raises(TimeoutError):
                await connect("/deaf", mesh, open_timeout=0.05)
            with pytest.raises(TimeoutError), connect_sync("/deaf", mesh, open_timeout=0.05):
                pass


async def test_it_counts_until_it_ends(port: int) -> None:
    mesh = fake_mesh([port], limits=Limits(max_connections=1))
    with nothing_left(mesh):
        async with connect("/live", mesh):
            with pytest.raises(TimeoutError):
                await connect("/live", mesh, open_timeout=0.05)
        with connect_sync("/live", mesh), pytest.raises(TimeoutError):
            connect_sync("/live", mesh, open_timeout=0.05).connect()


async def test_a_connection_of_the_application_is_not_touched(port: int) -> None:
    mesh = fake_mesh([free_port()])
    async with connect("/live", mesh, host="127.0.0.1", port=port) as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"


async def test_flow_control(port: int) -> None:
    mesh = fake_mesh([port])
    with nothing_left(mesh):
        async with connect("/live", mesh, max_queue=1) as websocket:
            sending = asyncio.gather(*(websocket.send(BIG) for _ in range(20)))
            for _ in range(20):
                assert await websocket.recv() == BIG
            await sending
        with connect_sync("/live", mesh, max_queue=1) as other:
            thread = threading.Thread(target=lambda: [other.send(BIG) for _ in range(20)])
            thread.start()
            for _ in range(20):
                assert await asyncio.to_thread(other.recv, 5) == BIG
            thread.join()
