"""A request that asks for another protocol: routed as any other, and then bytes both ways."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator

import httpcore
import httpx
import httpx_ws
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.ports import free_port
from support.raw_server import RawServer, raw_server
from support.websocket_server import websocket_server

import meshlib
from meshlib.core.balance.cluster import Limits

URL = "http://reviews:9080"
FAR_TOO_MUCH = bytes(100_000_000)
NOW = httpx.Timeout(5.0, pool=0.01)
ASK = {"connection": "Upgrade", "upgrade": "echo"}
RETRIES = {
    "retry_policy": {
        "retry_on": "connect-failure,5xx",
        "num_retries": 30,
        "retry_back_off": {"base_interval": "0.001s"},
    }
}


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@contextlib.contextmanager
def client(mesh: FakeMesh) -> Iterator[httpx.Client]:
    with meshlib.Client(mesh=mesh, base_url=URL) as made:  # type: ignore[arg-type]
        yield made
    assert mesh.in_flight() == 0


@contextlib.asynccontextmanager
async def async_client(mesh: FakeMesh) -> AsyncIterator[httpx.AsyncClient]:
    async with meshlib.AsyncClient(mesh=mesh, base_url=URL) as made:  # type: ignore[arg-type]
        yield made
    assert mesh.in_flight() == 0


def stream_of(response: httpx.Response) -> httpcore.NetworkStream:
    stream = response.extensions["network_stream"]
    assert isinstance(stream, httpcore.NetworkStream)
    return stream


def async_stream_of(response: httpx.Response) -> httpcore.AsyncNetworkStream:
    stream = response.extensions["network_stream"]
    assert isinstance(stream, httpcore.AsyncNetworkStream)
    return stream


def test_bytes_go_both_ways(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    with client(mesh) as c, c.stream("GET", "/upgrade", headers=ASK) as response:
        assert (response.status_code, response.headers["upgrade"]) == (101, "echo")
        assert response.extensions["meshlib"].endpoint == f"127.0.0.1:{server.port}"
        stream = stream_of(response)
        assert stream.read(2) == b"he"
        assert stream.read(65536) == b"llo"
        stream.write(b"x" * 100_000)
        received = b""
        while len(received) < 100_000:
            received += stream.read(65536)
        assert mesh.in_flight() == 1
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
        assert stream.get_extra_info("ssl_object") is None
        stream.write(b"bye")
        assert stream.read(65536) == b""


async def test_bytes_go_both_ways_for_tasks(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    async with async_client(mesh) as c, c.stream("GET", "/upgrade", headers=ASK) as response:
        stream = async_stream_of(response)
        assert await stream.read(2) == b"he"
        assert await stream.read(65536) == b"llo"
        await stream.write(b"x" * 100_000)
        received = b""
        while len(received) < 100_000:
            received += await stream.read(65536)
        assert mesh.in_flight() == 1
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
        await stream.write(b"bye")
        assert await stream.read(65536) == b""


def test_it_ends_the_request_and_its_connection(server: RawServer) -> None:
    mesh = fake_mesh([server.port], limits=Limits(max_connections=1))
    with client(mesh) as c:
        for _ in range(3):
            with c.stream("GET", "/upgrade", headers=ASK) as response:
                stream = stream_of(response)
                with pytest.raises(httpx.PoolTimeout):
                    c.get("/echo", timeout=NOW)
                stream.close()
                with pytest.raises(httpcore.ReadError):
                    stream.read(1)
                with pytest.raises(httpcore.WriteError):
                    stream.write(b"x")
            assert c.get("/echo").status_code == 200
    assert server.connections == 4  # one upgraded connection is never used for anything else


async def test_it_ends_the_request_and_its_connection_for_tasks(server: RawServer) -> None:
    mesh = fake_mesh([server.port], limits=Limits(max_connections=1))
    async with async_client(mesh) as c:
        for _ in range(3):
            async with c.stream("GET", "/upgrade", headers=ASK) as response:
                stream = async_stream_of(response)
                with pytest.raises(httpx.PoolTimeout):
                    await c.get("/echo", timeout=NOW)
                await stream.aclose()
                with pytest.raises(httpcore.ReadError):
                    await stream.read(5)
                with pytest.raises(httpcore.WriteError):
                    await stream.write(b"x")
            assert (await c.get("/echo")).status_code == 200


def test_who_forgets_it_leaves_nothing(server: RawServer) -> None:
    mesh = fake_mesh([server.port], limits=Limits(max_connections=1))
    with client(mesh) as c:
        response = c.send(c.build_request("GET", "/upgrade", headers=ASK), stream=True)
        assert mesh.in_flight() == 1
        del response
        gc.collect()
        assert mesh.in_flight() == 0
        assert c.get("/echo").status_code == 200


def test_each_wait_has_its_limit(server: RawServer) -> None:
    mesh = fake_mesh([server.port], route={"timeout": "0.5s"})
    with client(mesh) as c, c.stream("GET", "/upgrade", headers=ASK) as response:
        stream = stream_of(response)
        stream.read(5)
        with pytest.raises(httpcore.ReadTimeout):
            stream.read(5, timeout=0.6)
        with pytest.raises(httpcore.WriteTimeout):  # nobody reads what the peer sends back
            stream.write(FAR_TOO_MUCH, timeout=0.05)


async def test_each_wait_has_its_limit_for_tasks(server: RawServer) -> None:
    mesh = fake_mesh([server.port], route={"timeout": "0.5s"})
    async with async_client(mesh) as c, c.stream("GET", "/upgrade", headers=ASK) as response:
        stream = async_stream_of(response)
        await stream.read(5)
        with pytest.raises(httpcore.ReadTimeout):
            await stream.read(5, timeout=0.6)
        with pytest.raises(httpcore.WriteTimeout):
            await stream.write(FAR_TOO_MUCH, timeout=0.05)


def test_close_wakes_who_reads(server: RawServer) -> None:
    with client(fake_mesh([server.port])) as c, c.stream("GET", "/upgrade", headers=ASK) as response:
        stream = stream_of(response)
        stream.read(5)
        timer = threading.Timer(0.02, stream.close)
        timer.start()
        with contextlib.suppress(httpcore.ReadError):
            assert stream.read(5) == b""
        timer.join()


def test_tries_before_it_are_repeated(server: RawServer) -> None:
    mesh = fake_mesh([free_port(), server.port], route=RETRIES)
    with client(mesh) as c:
        for _ in range(5):
            with c.stream("GET", "/upgrade", headers=ASK) as response:
                assert response.status_code == 101
                assert response.extensions["meshlib"].endpoint.endswith(str(server.port))


def test_an_answer_that_is_no_upgrade_is_one(server: RawServer) -> None:
    with client(fake_mesh([server.port])) as c:
        assert c.get("/echo", headers=ASK).status_code == 200
        answer = c.get("/upgrade", headers={"upgrade": "echo"})
        assert (answer.status_code, answer.text) == (426, "and upgrade?")
        assert "network_stream" not in answer.extensions
        assert c.get("/upgrade", headers=ASK).content == b""  # read as any other, it is closed


async def test_connect_is_refused(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    with client(mesh) as c, pytest.raises(httpx.LocalProtocolError, match="create_connection"):
        c.request("CONNECT", "/")
    async with async_client(mesh) as a:
        with pytest.raises(httpx.LocalProtocolError, match="create_connection"):
            await a.request("CONNECT", "/")
    assert server.connections == 0


# With httpx-ws, as it is


def test_httpx_ws() -> None:
    with websocket_server() as port, client(fake_mesh([port])) as c:
        with httpx_ws.connect_ws(f"{URL}/live", c) as ws:
            ws.send_text("hello")
            assert ws.receive_text() == "hello"
            ws.send_bytes(b"x" * 300_000)
            assert ws.receive_bytes() == b"x" * 300_000
        with pytest.raises(httpx_ws.WebSocketUpgradeError) as caught, httpx_ws.connect_ws(f"{URL}/no", c):
            pass
        assert caught.value.response.status_code == 403


async def test_httpx_ws_for_tasks() -> None:
    with websocket_server() as port:
        async with async_client(fake_mesh([port])) as c:
            async with httpx_ws.aconnect_ws(f"{URL}/live", c) as ws:
                await ws.send_text("hello")
                assert await ws.receive_text() == "hello"
                await ws.send_bytes(b"x" * 300_000)
                assert await ws.receive_bytes() == b"x" * 300_000
            sessions = [one async for one in _many(c)]
    assert sessions == ["0", "1", "2", "3", "4"]


async def _many(c: httpx.AsyncClient) -> AsyncIterator[str]:
    async def one(number: int) -> str:
        async with httpx_ws.aconnect_ws(f"{URL}/live", c) as ws:
            await ws.send_text(str(number))
            return await ws.receive_text()

    begun = time.monotonic()
    for answer in await asyncio.gather(*map(one, range(5))):
        yield answer
    assert time.monotonic() - begun < 5
