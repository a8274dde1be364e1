"""What is told of a WebSocket: one request, that ended with the connection, and all bytes of both ways."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx_ws
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.telemetry import Told
from support.websocket_server import websocket_server
from websockets.exceptions import InvalidStatus

import meshlib
import meshlib_websockets
import meshlib_websockets.sync
from meshlib.bootstrap import bootstrap

WHO = bootstrap({}, service="productpage", namespace="shop", state_dir="")
PAYLOAD = "x" * 100_000
HEADS = 2_000
"""More than the heads and the frames around the payload take."""
Talk = Callable[[FakeMesh, Callable[[], None]], Awaitable[None]]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with websocket_server(compression=None) as made:
        yield made


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


async def by_websockets(mesh: FakeMesh, during: Callable[[], None]) -> None:
    made = meshlib_websockets.connect("ws://reviews:9080/live", mesh=mesh, compression=None)  # type: ignore[arg-type]
    async with made as connection:
        await connection.send(PAYLOAD)
        assert await connection.recv() == PAYLOAD
        during()


async def by_websockets_of_threads(mesh: FakeMesh, during: Callable[[], None]) -> None:
    def talk() -> None:
        made = meshlib_websockets.sync.connect("ws://reviews:9080/live", mesh=mesh, compression=None)  # type: ignore[arg-type]
        with made as connection:  # type: ignore[union-attr]
            connection.send(PAYLOAD)
            assert connection.recv() == PAYLOAD
            during()

    await asyncio.to_thread(talk)


async def by_httpx_ws(mesh: FakeMesh, during: Callable[[], None]) -> None:
    async with (
        meshlib.AsyncClient(mesh=mesh) as client,  # type: ignore[arg-type]
        httpx_ws.aconnect_ws("http://reviews:9080/live", client) as connection,
    ):
        await connection.send_text(PAYLOAD)
        assert await connection.receive_text() == PAYLOAD
        during()


async def by_httpx_ws_of_threads(mesh: FakeMesh, during: Callable[[], None]) -> None:
    def talk() -> None:
        with (
            meshlib.Client(mesh=mesh) as client,  # type: ignore[arg-type]
            httpx_ws.connect_ws("http://reviews:9080/live", client) as connection,
        ):
            connection.send_text(PAYLOAD)
            assert connection.receive_text() == PAYLOAD
            during()

    await asyncio.to_thread(talk)


@pytest.mark.parametrize(
    "talk", [by_websockets, by_websockets_of_threads, by_httpx_ws, by_httpx_ws_of_threads]
)
async def test_a_websocket_is_one_request_until_its_end(port: int, told: Told, talk: Talk) -> None:
    mesh = fake_mesh([port])
    now = [1000.0]
    mesh.telemetry = told.telemetry(WHO, lambda: mesh.view, clock=lambda: now[0])

    def during() -> None:
        assert told.metrics() == {}
        assert told.spans == []
        now[0] += 42.0

    await talk(mesh, during)
    found = told.metrics()
    [count] = found["istio_requests_total"]
    assert (count.value, count.attributes["response_code"]) == (1, "101")
    assert (count.attributes["request_protocol"], count.attributes["response_flags"]) == ("http", "-")
    [duration] = found["istio_request_duration_milliseconds"]
    assert (duration.count, duration.sum) == (1, 42_000)
    for name in ("istio_request_bytes", "istio_response_bytes"):
        [size] = found[name]
        assert size.count == 1
        assert len(PAYLOAD) < size.sum < len(PAYLOAD) + HEADS
    [span] = told.spans
    attributes: Any = span.attributes
    assert attributes["http.status_code"] == "101"


async def test_one_that_is_refused_is_a_request_as_any_other(port: int, told: Told) -> None:
    mesh = fake_mesh([port])
    mesh.telemetry = told.telemetry(WHO, lambda: mesh.view)
    with pytest.raises(InvalidStatus):
        async with meshlib_websockets.connect("ws://reviews:9080/no", mesh=mesh):  # type: ignore[arg-type]
            pass
    [count] = told.metrics()["istio_requests_total"]
    assert (count.value, count.attributes["response_code"]) == (1, "403")
