"""Streamed uploads: the loop goes on, limits act, early answers are heard, no part is lost between tries."""

import asyncio
import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
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


class Losing(RawServer):
    """Resets each of the first two connections when it has read a part of a body, or does not answer it."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = [threading.Event(), threading.Event()]

    def serve(self, accepted: socket.socket, number: int) -> None:
        if number > 2:
            super().serve(accepted, number)
            return
        while b"\r\n\r\n3\r\n" not in accepted.recv(65536, socket.MSG_PEEK):
            pass
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        self.lost[number - 1].set()


RETRY: dict[str, Any] = {
    "retry_on": "reset",
    "num_retries": 2,
    "per_try_timeout": "30s",
    "retry_back_off": {"base_interval": "0.001s"},
}


@pytest.mark.parametrize("hedged", [False, True])
@pytest.mark.parametrize("tasks", [False, True])
async def test_a_try_that_is_lost_while_the_application_is_asked_loses_no_part(
    tasks: bool, hedged: bool
) -> None:
    server = Losing()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    route = {"retry_policy": RETRY, "hedge_policy": {"hedge_on_per_try_timeout": hedged}}
    mesh: Any = fake_mesh([server.port], route=route)

    def stream() -> Iterator[bytes]:
        """Each part is asked for by a try that is lost before it is there."""
        yield b"one"
        assert server.lost[0].wait(60)
        yield b"two"
        assert server.lost[1].wait(60)
        yield b"three"

    async def astream() -> AsyncIterator[bytes]:
        parts = stream()
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            yield part

    def ask() -> httpx.Response:
        with meshlib.Client(mesh=mesh, base_url=URL, timeout=60) as client:
            return client.post("/echo", content=stream())

    if tasks:
        async with meshlib.AsyncClient(mesh=mesh, base_url=URL, timeout=60) as client:
            answer = await client.post("/echo", content=astream())
    else:
        answer = await asyncio.to_thread(ask)
    server.stop()
    thread.join(5)
    assert (server.bodies, answer.extensions["meshlib"].attempts) == ([b"onetwothree"], 3)


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
