"""Hedged retries over real sockets, by threads and tasks, HTTP/1.1 and HTTP/2: one wins, the others go."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from support.commands import wait_until
from support.fake_mesh import FakeMesh, fake_mesh
from support.h2_server import h2_server
from support.threaded import Threaded

import meshlib
from meshlib.core.balance.cluster import Limits
from meshlib.core.http2 import Http2
from meshlib.dataplane.hedge_blocking import MOST

PER_TRY = 0.05
POLICY = {"retry_on": "retriable-4xx", "num_retries": 1, "per_try_timeout": f"{PER_TRY}s"}
POLICY["retry_back_off"] = {"base_interval": "0.001s"}
ROUTE = {"hedge_policy": {"hedge_on_per_try_timeout": True}, "retry_policy": POLICY, "timeout": "60s"}
URL = "http://reviews:9080"


class Stalling(Threaded):
    """An HTTP/1.1 server that answers every request but the first `most`, for which it waits."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.asked: list[bytes] = []
        self.gone = 0
        """Connections whose peer went while it was waiting for an answer."""
        self.lock = self.counting = threading.Lock()

    def serve(self, accepted: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), accepted, accepted.makefile("rb") as stream:
            while head := self._head(stream):
                if (length := re.search(rb"content-length: (\d+)", head.lower())) is not None:
                    stream.read(int(length[1]))
                elif b"chunked" in head:
                    while stream.readline() != b"0\r\n":
                        pass
                    stream.readline()
                with self.lock:
                    self.asked.append(head)
                    stalls = len(self.asked) <= self.most
                if stalls:
                    went = stream.read(1) == b""
                    with self.counting:
                        self.gone += went
                    return
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond")

    @staticmethod
    def _head(stream: Any) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline()
            if not line:
                return b""
            head += line
        return head


@pytest.fixture
def stalling() -> Iterator[Callable[[int], Stalling]]:
    servers: list[tuple[Stalling, threading.Thread]] = []

    def start(most: int) -> Stalling:
        server = Stalling(most)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.stop()
        thread.join(5)


def hedge_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "meshlib-hedge"]


def settle(mesh: FakeMesh) -> None:
    """Everything that was given up has come to its end."""
    wait_until(lambda: not hedge_threads(), 60, "the threads of hedged tries to end")
    assert mesh.in_flight() == 0


async def get(mesh: FakeMesh, tasks: bool, path: str = "/", **more: Any) -> httpx.Response:
    if tasks:
        async with meshlib.AsyncClient(mesh=mesh, base_url=URL, timeout=60) as client:  # type: ignore[arg-type]
            return await client.request("GET", path, **more)

    def ask() -> httpx.Response:
        with meshlib.Client(mesh=mesh, base_url=URL, timeout=60) as client:  # type: ignore[arg-type]
            return client.request("GET", path, **more)

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("tasks", [False, True])
async def test_the_slow_one_is_hung_up_on(stalling: Callable[[int], Stalling], tasks: bool) -> None:
    server = stalling(1)
    mesh = fake_mesh([server.port], route=ROUTE)
    answer = await get(mesh, tasks, content=b"")
    assert (answer.status_code, answer.content) == (200, b"second")
    assert answer.extensions["meshlib"].attempts == 2
    await asyncio.to_thread(settle, mesh)
    await asyncio.to_thread(wait_until, lambda: server.gone == 1, 60, "the server to see it")
    assert len(server.asked) == 2


@pytest.mark.parametrize("tasks", [False, True])
async def test_a_stream_of_http2_is_reset_and_its_connection_stays(tasks: bool) -> None:
    with h2_server() as server:
        mesh = fake_mesh([server.port], route=ROUTE, http2=Http2())
        answer = await get(mesh, tasks, "/once/wait", headers={"x-id": "one"})
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
        await asyncio.to_thread(settle, mesh)
        await asyncio.to_thread(wait_until, lambda: server.resets == [8], 60, "the server to see it")
        assert server.connections == 1


def test_threads_that_share_a_connection_are_cut_off_apart() -> None:
    """Whoever of them reads for all: each request is hedged, none waits for the slow ones."""
    with h2_server() as server:
        mesh = fake_mesh([server.port], route=ROUTE, http2=Http2())
        statuses: list[int] = []
        with meshlib.Client(mesh=mesh, base_url=URL, timeout=60) as client:  # type: ignore[arg-type]

            def ask(number: int) -> None:
                for turn in range(3):
                    found = client.get("/once/wait", headers={"x-id": f"{number}-{turn}"})
                    statuses.append(found.status_code)

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert statuses == [200] * 12
            settle(mesh)
            wait_until(lambda: server.resets == [8] * 12, 60, "the server to see it")
            assert client.get("/echo").status_code == 200
        assert server.connections == 1


@pytest.mark.parametrize("tasks", [False, True])
async def test_who_waits_for_a_connection_is_given_up_too(
    stalling: Callable[[int], Stalling], tasks: bool
) -> None:
    """One connection is allowed, and the first try has it: the second waits until its caller goes."""
    server = stalling(1)
    mesh = fake_mesh([server.port], route=ROUTE, limits=Limits(max_connections=1))
    with pytest.raises(httpx.ReadTimeout):
        await get(mesh, tasks, timeout=httpx.Timeout(60, read=0.2))
    await asyncio.to_thread(settle, mesh)
    assert mesh.ledger.cluster("c").waiting == 0
    assert (await get(mesh, tasks)).content == b"second"


class _Slow:
    """A lock that is free once an event has come."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __enter__(self) -> None:
        self.event.wait(60)

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("tasks", [False, True])
async def test_a_body_is_sent_again_once_it_is_known(
    stalling: Callable[[int], Stalling], tasks: bool
) -> None:
    server = stalling(1)
    mesh = fake_mesh([server.port], route=ROUTE)
    answer = await get(mesh, tasks, content=b"all of it")
    assert answer.content == b"second"
    assert all(b"ontent-length: 9" in head.lower() for head in server.asked)


async def test_tasks_hedge_a_stream_that_has_ended(stalling: Callable[[int], Stalling]) -> None:
    server = stalling(1)
    mesh = fake_mesh([server.port], route=ROUTE)
    more = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield b"one"
        await more.wait()
        yield b"two"

    asking = asyncio.create_task(get(mesh, True, content=stream()))
    await asyncio.sleep(PER_TRY * 4)
    assert server.connections == 1
    more.set()
    assert (await asking).content == b"second"
    assert len(server.asked) == 2


def test_a_stream_of_a_thread_is_read_by_that_thread_and_hedged_when_it_has_ended(
    stalling: Callable[[int], Stalling],
) -> None:
    server = stalling(1)
    mesh = fake_mesh([server.port], route=ROUTE)
    readers, asked_meanwhile = set(), list[int]()

    def stream() -> Iterator[bytes]:
        readers.add(threading.current_thread())
        yield b"one"
        time.sleep(PER_TRY * 2)
        asked_meanwhile.append(server.connections)
        yield b"two"

    with meshlib.Client(mesh=mesh, base_url=URL, timeout=60) as client:  # type: ignore[arg-type]
        answer = client.post("/", content=stream())
    assert (answer.content, answer.extensions["meshlib"].attempts) == (b"second", 2)
    assert readers == {threading.current_thread()}
    assert (asked_meanwhile, len(server.asked)) == ([1], 2)
    settle(mesh)


@pytest.mark.parametrize("http2", [False, True])
async def test_a_caller_that_gives_up_gives_up_all_tries(
    stalling: Callable[[int], Stalling], http2: bool
) -> None:
    with h2_server() as second:
        server = stalling(9)
        port = second.port if http2 else server.port
        mesh = fake_mesh([port], route=ROUTE, http2=Http2() if http2 else None)
        async with meshlib.AsyncClient(mesh=mesh, base_url=URL, timeout=60) as client:  # type: ignore[arg-type]
            asking = asyncio.create_task(client.get("/wait"))
            asked = second.requests if http2 else server.asked
            await asyncio.to_thread(wait_until, lambda: len(asked) == 2, 60, "the server to see it")
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert mesh.in_flight() == 0
            gone = (lambda: second.resets == [8, 8]) if http2 else (lambda: server.gone == 2)
            await asyncio.to_thread(wait_until, gone, 60, "the tries to be given up")


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("http2", [False, True])
async def test_the_time_of_the_route_ends_all_tries(
    stalling: Callable[[int], Stalling], tasks: bool, http2: bool
) -> None:
    with h2_server() as second:
        server = stalling(9)
        port = second.port if http2 else server.port
        route = {**ROUTE, "timeout": "0.3s"}
        mesh = fake_mesh([port], route=route, http2=Http2() if http2 else None)
        with pytest.raises(meshlib.UpstreamTimedOut) as raised:
            await get(mesh, tasks, "/wait")
        assert raised.value.flight is not None
        assert raised.value.flight.attempts == 2
        await asyncio.to_thread(settle, mesh)


@pytest.mark.parametrize("tasks", [False, True])
async def test_the_applications_own_limit_ends_all_tries(
    stalling: Callable[[int], Stalling], tasks: bool
) -> None:
    server = stalling(9)
    mesh = fake_mesh([server.port], route=ROUTE)
    if tasks:
        async with meshlib.AsyncClient(mesh=mesh, base_url=URL, timeout=0.3) as client:  # type: ignore[arg-type]
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/")
    else:
        with (
            meshlib.Client(mesh=mesh, base_url=URL, timeout=0.3) as client_,  # type: ignore[arg-type]
            pytest.raises(httpx.ReadTimeout),
        ):
            await asyncio.to_thread(client_.get, "/")
    await asyncio.to_thread(settle, mesh)
    await asyncio.to_thread(wait_until, lambda: server.gone == 2, 60, "the server to see it")


def test_no_more_threads_than_a_client_may_have(stalling: Callable[[int], Stalling]) -> None:
    """The one too many makes its try itself, without a second."""
    server = stalling(0)
    slow = threading.Event()
    server.lock = _Slow(slow)  # type: ignore[assignment]
    policy = {**POLICY, "per_try_timeout": "30s"}
    mesh = fake_mesh([server.port], route={**ROUTE, "retry_policy": policy})
    with meshlib.Client(mesh=mesh, base_url=URL, timeout=60) as client:  # type: ignore[arg-type]
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(client.get("/").status_code))
            for _ in range(MOST + 1)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.connections == MOST + 1, 60, "the server to see it")
        assert len(hedge_threads()) == MOST
        slow.set()
        for thread in threads:
            thread.join(60)
        assert found == [200] * (MOST + 1)
    settle(mesh)
