"""Streamed uploads on an event loop: the loop goes on, limits act, and an early answer is heard."""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from support.fake_mesh import fake_mesh
from support.raw_server import RawServer, raw_server

import meshlib

URL = "http://reviews:9080"
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@contextlib.contextmanager
def hasty_server() -> Iterator[int]:
    """A server that answers a head with 413 and closes, with the body unread: a reset."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted, _ = listening.accept()
                    with accepted:
                        accepted.recv(1024)
                        accepted.sendall(TOO_LARGE)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


class Stream:
    """A body whose chunks are there at once, for `seconds` at most; it counts them."""

    def __init__(self, chunk: bytes, number: int = 10**9, seconds: float = 20.0) -> None:
        self.chunk, self.number, self.seconds = chunk, number, seconds
        self.made = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        end = time.monotonic() + self.seconds
        while self.made < self.number and time.monotonic() < end:
            self.made += 1
            yield self.chunk


@pytest.mark.parametrize("size", [20_000, 1_000, 7])
async def test_an_early_answer_is_heard(size: int, caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream(b"x" * size)
    with hasty_server() as port, caplog.at_level(logging.WARNING, "asyncio"):
        async with meshlib.AsyncClient(mesh=fake_mesh([port]), base_url=URL) as a:  # type: ignore[arg-type]
            started = time.monotonic()
            answer = await a.post("/", content=stream)
    assert (answer.status_code, answer.text) == (413, "no")
    assert time.monotonic() - started < stream.seconds
    assert not caplog.records


@pytest.mark.parametrize("chunk", [b"x" * 1_000, b"x"])
async def test_the_loop_goes_on_while_a_stream_is_sent(server: RawServer, chunk: bytes) -> None:
    stream = Stream(chunk, number=1600)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while stream.made < stream.number:
            turns += 1
            await asyncio.sleep(0)

    async with meshlib.AsyncClient(mesh=fake_mesh([server.port]), base_url=URL) as a:  # type: ignore[arg-type]
        await a.get("/echo")
        other = asyncio.create_task(others())
        answer = await a.post("/echo", content=stream)
        await other
    assert answer.json()["size"] == 1600 * len(chunk)
    assert turns > 20


async def test_a_stream_without_an_end_is_ended_by_each_limit(server: RawServer) -> None:
    for chunk in (b"x" * 1_000, b"x"):
        mesh = fake_mesh([server.port], route={"timeout": "0.05s"})
        async with meshlib.AsyncClient(mesh=mesh, base_url=URL) as a:  # type: ignore[arg-type]
            with pytest.raises(meshlib.UpstreamTimedOut):
                await a.post("/echo", content=Stream(chunk))
        mesh = fake_mesh([server.port])
        async with meshlib.AsyncClient(mesh=mesh, base_url=URL) as a:  # type: ignore[arg-type]
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(a.post("/echo", content=Stream(chunk)), 0.05)
            assert time.monotonic() - started < 15
