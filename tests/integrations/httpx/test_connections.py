"""Connections on real sockets: used again, given back once, closed when they must be; nothing is left."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.commands import wait_until
from support.fake_mesh import FakeMesh, fake_mesh
from support.ports import free_port
from support.raw_server import RawServer, raw_server

import meshlib
from meshlib.core.balance.cluster import Limits
from meshlib.dataplane.http.pool import Pool

URL = "http://reviews:9080"
FIVE_MB = b"0123456789" * 524_288


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@contextlib.contextmanager
def client(mesh: FakeMesh) -> Iterator[httpx.Client]:
    with meshlib.Client(mesh=mesh, base_url=URL) as made:  # type: ignore[arg-type]
        yield made
        assert mesh.in_flight() == 0
    assert pool_of(made).opened == 0


@contextlib.asynccontextmanager
async def async_client(mesh: FakeMesh) -> AsyncIterator[httpx.AsyncClient]:
    async with meshlib.AsyncClient(mesh=mesh, base_url=URL) as made:  # type: ignore[arg-type]
        yield made
        assert mesh.in_flight() == 0
    assert pool_of(made).opened == 0
    assert len(asyncio.all_tasks()) == 1


def pool_of(made: httpx.Client | httpx.AsyncClient) -> Pool:  # type: ignore[type-arg]
    pool: Pool = made._transport._sender._connections._pools["c"]  # type: ignore[union-attr,type-arg]
    return pool


def counts(made: httpx.Client | httpx.AsyncClient) -> tuple[int, int, int]:
    made_of = made._transport._sender._connections  # type: ignore[union-attr]
    if made_of is None or "c" not in made_of._pools:
        return 0, 0, 0
    pool = pool_of(made)
    return pool.opened, pool.idle, len(pool.waiting)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(true: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


# Reuse


async def test_connections_are_used_again(server: RawServer) -> None:
    with client(fake_mesh([server.port])) as c:
        for _ in range(5):
            c.post("/echo", content=b"x")
            c.head("/echo")
            c.get("/status/204")
        assert counts(c) == (1, 1, 0)
    assert server.connections == 1
    async with async_client(fake_mesh([server.port])) as a:
        for _ in range(5):
            await a.get("/chunks/3")
        assert counts(a) == (1, 1, 0)
    assert server.connections == 2


async def test_a_connection_that_the_server_closed_while_idle_is_not_used(server: RawServer) -> None:
    with client(fake_mesh([server.port])) as c:
        for _ in range(3):
            assert c.post("/echo", content=b"x").status_code == 200
            server.hang_up()
            time.sleep(0.01)
    async with async_client(fake_mesh([server.port])) as a:
        for _ in range(3):
            assert (await a.post("/echo", content=b"x")).status_code == 200
            server.hang_up()
            time.sleep(0.01)  # the loop has not seen the end yet
    assert server.connections == 6


async def test_bytes_that_nobody_asked_for_cost_the_connection(server: RawServer) -> None:
    with client(fake_mesh([server.port])) as c:
        assert [c.get("/surplus").text for _ in range(2)] == ["ok", "ok"]
        assert counts(c) == (0, 0, 0)
    async with async_client(fake_mesh([server.port])) as a:
        assert [(await a.get("/surplus")).text for _ in range(2)] == ["ok", "ok"]


def test_requests_of_a_connection_are_limited(server: RawServer) -> None:
    with client(fake_mesh([server.port], max_requests_per_connection=2)) as c:
        for _ in range(5):
            c.get("/echo")
    assert server.connections == 3


async def test_idle_connections_are_closed_though_nothing_is_sent(server: RawServer) -> None:
    with client(fake_mesh([server.port], idle_timeout=0.01)) as c:
        for _ in range(2):
            c.get("/echo")
            await until(lambda: counts(c) == (0, 0, 0) and not server.open)
    assert server.connections == 2
    async with async_client(fake_mesh([server.port], idle_timeout=0.01)) as a:
        for _ in range(2):
            await a.get("/echo")
            await until(lambda: counts(a) == (0, 0, 0) and not server.open)
    assert server.connections == 4


async def test_connections_that_have_lived_are_closed_though_nothing_is_sent(server: RawServer) -> None:
    with client(fake_mesh([server.port], max_connection_duration=0.05)) as c:
        c.get("/echo")
        await until(lambda: counts(c) == (0, 0, 0) and not server.open)
    async with async_client(fake_mesh([server.port], max_connection_duration=0.05)) as a:
        await a.get("/echo")
        await until(lambda: counts(a) == (0, 0, 0) and not server.open)


async def test_connections_to_what_left_the_configuration_are_closed(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    empty = replace(mesh.view, endpoints={})
    with client(mesh) as c:
        c.get("/echo")
        with c.stream("GET", "/big/5242880") as response:
            c.get("/echo")
            assert counts(c) == (2, 1, 0)
            c._transport._sender._connections.endpoints_changed(empty, ["c"])  # type: ignore[attr-defined]
            assert counts(c) == (1, 0, 0)
            response.read()
        assert counts(c) == (0, 0, 0)
    async with async_client(mesh) as a:
        async with a.stream("GET", "/big/5242880") as response:
            await a.get("/echo")
            a._transport._sender._connections.endpoints_changed(empty, ["c"])  # type: ignore[attr-defined]
            await until(lambda: counts(a) == (1, 0, 0))
            await response.aread()
        assert counts(a) == (0, 0, 0)
    await until(lambda: not server.open)


def test_where_there_is_no_descriptor_idle_connections_make_room(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.create_connection

    def create(*given: Any, **more: Any) -> socket.socket:
        if counts(c)[1]:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*given, **more)

    with raw_server() as other, client(fake_mesh([server.port, other.port])) as c:
        monkeypatch.setattr(socket, "create_connection", create)
        for _ in range(4):
            assert c.get("/echo").status_code == 200
            assert counts(c) == (1, 1, 0)
        assert min(server.connections, other.connections) > 0


def test_a_process_that_has_none_says_so(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: Any, **__: Any) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with client(fake_mesh([server.port])) as c:
        monkeypatch.setattr(socket, "create_connection", create)
        with pytest.raises(meshlib.ConnectFailed, match="Too many open files"):
            c.get("/echo")


def test_no_more_than_the_settings_say_stay_idle_where_another_is_made(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    mesh.bootstrap = replace(mesh.bootstrap, idle_connections=2)
    with raw_server() as b, raw_server() as c, raw_server() as d:
        mesh.view = fake_mesh([server.port, b.port, c.port, d.port]).view
        with client(mesh) as made:
            for _ in range(30):
                made.get("/echo")
                assert counts(made)[1] <= 3
        assert all(one.connections for one in (server, b, c, d))


# Bodies


def test_a_response_that_is_closed_early_costs_its_connection(server: RawServer) -> None:
    with client(fake_mesh([server.port])) as c:
        with c.stream("GET", "/big/5242880") as response:
            chunks = response.iter_raw()
            assert next(chunks)[:16] == b"0123456789abcdef"
            assert counts(c) == (1, 0, 0)
        assert counts(c) == (0, 0, 0)


async def test_a_response_dropped_without_a_word_is_noticed(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    with client(mesh) as c:
        c.send(c.build_request("GET", "/big/9999999"), stream=True)
        gc.collect()
        assert mesh.in_flight() == 0
        await until(lambda: counts(c) == (0, 0, 0))
    async with async_client(mesh) as a:
        await a.send(a.build_request("GET", "/big/9999999"), stream=True)
        gc.collect()
        await until(lambda: counts(a) == (0, 0, 0))


class Later:
    """A clock on which time can be let pass."""

    def __init__(self) -> None:
        self.more = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.more


@pytest.mark.parametrize("tasks", [False, True])
async def test_a_post_that_was_lost_on_an_idle_connection_is_the_last(server: RawServer, tasks: bool) -> None:
    """Something on the way has forgotten the connection, and says so when it is used again."""
    mesh = fake_mesh([server.port])
    mesh.clock = later = Later()

    async def ask(client: httpx.Client | httpx.AsyncClient, method: str, path: str) -> int:
        if isinstance(client, httpx.Client):
            return (await asyncio.to_thread(client.request, method, path)).status_code
        return (await client.request(method, path)).status_code

    async with contextlib.AsyncExitStack() as stack:
        client_of = async_client(mesh) if tasks else contextlib.nullcontext(stack.enter_context(client(mesh)))
        c = await stack.enter_async_context(client_of)
        await ask(c, "GET", "/echo")
        later.more += 20
        with pytest.raises(meshlib.UpstreamReset):
            await ask(c, "POST", "/reset")
        assert await ask(c, "POST", "/echo") == 200
        later.more += 14
        assert await ask(c, "POST", "/echo") == 200
        assert server.connections == 2
        later.more += 16
        assert await ask(c, "POST", "/echo") == 200
        assert server.connections == 3


def test_a_dropped_response_wakes_a_thread_that_waits_for_its_connection(server: RawServer) -> None:
    with client(fake_mesh([server.port], limits=Limits(max_connections=1))) as c:
        dropped = [c.send(c.build_request("GET", "/big/9999999"), stream=True)]
        with ThreadPoolExecutor(1) as thread:
            waits = thread.submit(c.get, "/echo", timeout=None)
            wait_until(lambda: bool(pool_of(c).waiting), 10, "a place in the queue")
            dropped.clear()
            gc.collect()
            assert waits.result(10).status_code == 200
        assert counts(c) == (1, 1, 0)


async def test_uploads_wait_for_a_slow_server_and_downloads_for_a_slow_reader(server: RawServer) -> None:
    made = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield b"x" * 64 * 1024

    async with async_client(fake_mesh([server.port])) as a:
        with pytest.raises(httpx.WriteTimeout):
            await a.post("/deaf", content=chunks(), timeout=0.2)
        assert made < 200
        async with a.stream("GET", "/big/52428800", timeout=10) as response:
            connection = response.stream._stream._body._response._lease.kept.connection  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)
            assert len(connection._received) < 1_000_000
            size = 0
            async for chunk in response.aiter_raw():
                size += len(chunk)
        assert size == 52_428_800


async def test_a_body_that_breaks_off_is_told_with_its_flight(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    with client(mesh) as c, pytest.raises(meshlib.UpstreamReset) as raised:
        c.get("/halfbody")
    assert raised.value.flight.endpoint == f"127.0.0.1:{server.port}"
    assert isinstance(raised.value, httpx.RemoteProtocolError)
    assert str(raised.value).startswith(
        "connection lost before the end of the response: the body broke off: "
    )
    assert raised.value.request.url == f"{URL}/halfbody"


async def test_a_body_that_is_not_http_breaks_the_protocol(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    with client(mesh) as c, pytest.raises(meshlib.UpstreamProtocolError, match="the body is not HTTP"):
        c.get("/badchunk")
    async with async_client(mesh) as a:
        with pytest.raises(meshlib.UpstreamProtocolError) as raised:
            await a.get("/badchunk")
    assert (raised.value.flag, raised.value.retryable) == ("UPE", False)


async def test_the_time_of_the_route_counts_while_the_body_streams(server: RawServer) -> None:
    mesh = fake_mesh([server.port], route={"timeout": "0.25s"})
    for path in ("/slowbody/2", "/drip", "/slow/2"):
        with client(mesh) as c, pytest.raises(meshlib.UpstreamTimedOut) as raised:
            c.get(path)
        assert isinstance(raised.value, httpx.ReadTimeout)
        assert raised.value.flight.cluster == "c"
        async with async_client(mesh) as a:
            with pytest.raises(meshlib.UpstreamTimedOut):
                await a.get(path)


async def test_an_answer_that_comes_after_the_time_of_the_route_is_none(server: RawServer) -> None:
    async with async_client(fake_mesh([server.port], route={"timeout": "0.5s"})) as a:
        asked = asyncio.create_task(a.get("/slow/0.6"))
        await until(lambda: any(head.startswith(b"GET /slow/0.6 ") for head in server.heads))
        # The loop is busy: when it looks, the time has passed, and the answer has come as well.
        threading.Event().wait(1.0)
        with pytest.raises(meshlib.UpstreamTimedOut):
            await asked


async def test_the_time_of_a_try_does_not_count_while_the_body_streams(server: RawServer) -> None:
    retry = {"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.25s"}
    mesh = fake_mesh([server.port], route={"retry_policy": retry})
    with client(mesh) as c:
        assert c.get("/slowbody/0.5").text == "halfwhole!"
        with pytest.raises(meshlib.UpstreamTimedOut) as raised:
            c.get("/slow/2")
        assert raised.value.flight.attempts == 2
    async with async_client(mesh) as a:
        assert (await a.get("/slowbody/0.5")).text == "halfwhole!"
        with pytest.raises(meshlib.UpstreamTimedOut):
            await a.get("/slow/2")


async def test_own_limits_in_the_body_are_plain_httpx(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    with client(mesh) as c, pytest.raises(httpx.ReadTimeout) as raised:
        c.get("/slowbody/2", timeout=0.1)
    assert not isinstance(raised.value, meshlib.MeshError)
    response = None
    async with async_client(mesh) as a:
        response = await a.send(a.build_request("GET", "/slowbody/2", timeout=0.1), stream=True)
        with pytest.raises(httpx.ReadTimeout):
            await response.aread()
        assert (mesh.in_flight(), counts(a)) == (0, (0, 0, 0))


# Retries


async def test_bodies_are_sent_again(server: RawServer) -> None:
    retry = {"retry_on": "5xx", "num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}
    mesh = fake_mesh([server.port], route={"retry_policy": retry})

    async def achunks() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    with client(mesh) as c:
        assert c.post("/status/503", content=iter([b"a", b"b"])).status_code == 503
        assert c.post("/status/503", files={"f": b"x" * 10}).status_code == 503
    async with async_client(mesh) as a:
        assert (await a.post("/status/503", content=achunks())).status_code == 503
    assert server.bodies[:3] == server.bodies[6:] == [b"ab"] * 3
    assert len(set(server.bodies[3:6])) == 1
    assert len(server.bodies[3]) > 100


async def test_a_stream_too_long_to_keep_is_sent_once(server: RawServer) -> None:
    retry = {"retry_on": "5xx", "num_retries": 2}
    with client(fake_mesh([server.port], route={"retry_policy": retry})) as c:
        assert c.post("/status/503", content=iter([b"x" * 600_000] * 2)).status_code == 503
    assert [len(body) for body in server.bodies] == [1_200_000]


async def test_a_request_of_which_a_part_has_left_counts_as_sent(server: RawServer) -> None:
    """Retried as `reset-before-request` it might be done twice."""
    retry = {"retry_on": "reset-before-request", "num_retries": 3}
    mesh = fake_mesh([server.port], route={"retry_policy": retry})
    with client(mesh) as c, pytest.raises(meshlib.UpstreamReset) as raised:
        c.post("/reset", content=FIVE_MB * 2)
    assert raised.value.flight.attempts == 1
    async with async_client(mesh) as a:
        with pytest.raises(meshlib.UpstreamReset) as raised:
            await a.post("/reset", content=FIVE_MB * 2)
        assert raised.value.flight.attempts == 1
    assert len(server.heads) == 2


async def test_the_head_does_not_wait_for_the_body(server: RawServer) -> None:
    """What a stream gives may depend on what the server does with the head."""

    def chunks() -> Iterator[bytes]:
        end = time.monotonic() + 30
        while not server.heads:
            assert time.monotonic() < end
            time.sleep(0.001)
        yield b"x"

    async def achunks() -> AsyncIterator[bytes]:
        await until(lambda: len(server.heads) == 2)
        yield b"x"

    mesh = fake_mesh([server.port])
    with client(mesh) as c:
        assert c.post("/echo", content=chunks()).json()["size"] == 1
    async with async_client(mesh) as a:
        assert (await a.post("/echo", content=achunks())).json()["size"] == 1


async def test_a_dead_endpoint_is_passed_over() -> None:
    retry = {
        "retry_on": "connect-failure",
        "num_retries": 5,
        "retry_back_off": {"base_interval": "0.001s"},
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts"}],
        "host_selection_retry_max_attempts": 5,
    }
    with raw_server() as server:
        mesh = fake_mesh([free_port(), server.port], route={"retry_policy": retry})
        with client(mesh) as c:
            assert [c.get("/echo").status_code for _ in range(4)] == [200] * 4


async def test_connect_errors() -> None:
    mesh = fake_mesh([free_port()])
    with (
        meshlib.Client(mesh=mesh) as c,  # type: ignore[arg-type]
        pytest.raises(meshlib.ConnectFailed) as raised,
    ):
        c.get(f"{URL}/")
    assert isinstance(raised.value, httpx.ConnectError)
    assert raised.value.flight.attempts == 1
    async with meshlib.AsyncClient(mesh=mesh) as a:  # type: ignore[arg-type]
        with pytest.raises(httpx.ConnectError):
            await a.get(f"{URL}/")
    assert mesh.in_flight() == 0


# Limits of the cluster


async def test_at_the_limit_requests_wait_their_turn(server: RawServer) -> None:
    mesh = fake_mesh([server.port], limits=Limits(max_connections=2))
    with client(mesh) as c, ThreadPoolExecutor(16) as threads:
        assert [r.status_code for r in threads.map(lambda _: c.get("/echo"), range(200))] == [200] * 200
        assert counts(c)[0] <= 2
    assert server.connections <= 2
    async with async_client(mesh) as a:
        answers = await asyncio.gather(*(a.get("/echo") for _ in range(50)))
        assert {r.status_code for r in answers} == {200}
        assert counts(a) == (2, 2, 0)


async def test_who_gives_up_waiting_leaves_the_place_to_the_next(server: RawServer) -> None:
    mesh = fake_mesh([server.port], limits=Limits(max_connections=1))
    async with async_client(mesh) as a:
        first = asyncio.create_task(a.get("/slow/60"))
        await until(lambda: counts(a)[0] == 1)
        with pytest.raises(httpx.PoolTimeout):
            await a.get("/echo", timeout=httpx.Timeout(60, pool=0.05))
        cancelled, last = (asyncio.create_task(a.get("/echo")) for _ in range(2))
        await until(lambda: counts(a)[2] == 2)
        cancelled.cancel()
        server.closing.set()  # what is slow is answered now
        assert [(await t).status_code for t in (first, last)] == [200, 200]
        assert counts(a) == (1, 1, 0)


async def test_too_many_that_wait_are_answered_as_a_sidecar_does(server: RawServer) -> None:
    mesh = fake_mesh([server.port], limits=Limits(max_connections=1, max_pending=1))
    async with async_client(mesh) as a:
        # As for Envoy, who makes the connection is pending until it is made.
        answers = await asyncio.gather(*(a.get("/slow/0.1") for _ in range(4)))
        assert sorted(r.status_code for r in answers) == [200, 503, 503, 503]
        asking = [asyncio.create_task(a.get("/slow/60")) for _ in range(4)]
        await until(lambda: sum(one.done() for one in asking) == 2)
        server.closing.set()  # what is slow is answered now
        answers = await asyncio.gather(*asking)
        assert sorted(r.status_code for r in answers) == [200, 200, 503, 503]
        refused = next(r for r in answers if r.status_code == 503)
        assert refused.headers["x-envoy-overloaded"] == "true"
        assert refused.extensions["meshlib"].flag == "UO"


def test_a_closed_client_wakes_those_who_wait(server: RawServer) -> None:
    mesh = fake_mesh([server.port], limits=Limits(max_connections=1))
    made = meshlib.Client(mesh=mesh, base_url=URL)  # type: ignore[arg-type]
    with made.stream("GET", "/big/5242880"), ThreadPoolExecutor(1) as threads:
        waits = threads.submit(made.get, "/echo", timeout=None)
        while counts(made)[2] == 0:
            time.sleep(0.001)
        made.close()
        made.close()
        with pytest.raises(httpx.ConnectError):
            waits.result(30)
    assert (counts(made), mesh.in_flight()) == ((0, 0, 0), 0)


# Many at once, and cancellation


def test_sixteen_threads_on_one_client(server: RawServer) -> None:
    mesh = fake_mesh([server.port])

    def work(number: int) -> bool:
        body = b"%d" % number
        return c.post(f"/echo?{number}", content=body).json()["body"] == body.hex()

    with client(mesh) as c, ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(400)))
        opened, idle, _ = counts(c)
        assert opened == idle <= 16


async def test_cancelled_requests_leave_nothing(server: RawServer) -> None:
    mesh = fake_mesh([server.port])

    async def body(a: httpx.AsyncClient) -> None:
        async with a.stream("GET", "/slowbody/5") as response:
            await response.aread()

    async def upload(a: httpx.AsyncClient) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.sleep(5)

        await a.post("/echo", content=chunks())

    async with async_client(mesh) as a:
        await a.get("/echo")
        before = descriptors()
        for make in (lambda: a.get("/slow/5"), lambda: body(a), lambda: upload(a)):
            for _ in range(5):
                task = asyncio.create_task(make())
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert (mesh.in_flight(), counts(a)[0] - counts(a)[1]) == (0, 0)
        # The server, in this process too, may take a moment to close its side of what it still answers.
        server.closing.set()
        await until(lambda: descriptors() <= before)


def test_descriptors_stay_flat(server: RawServer) -> None:
    with client(fake_mesh([server.port])) as c:
        c.get("/echo")
        before = descriptors()
        for path in ("/untilclose", "/hangup", "/halfbody", "/nonsense?", "/close") * 5:
            server.closing.set()
            with contextlib.suppress(httpx.TransportError):
                c.get(path)
        end = time.monotonic() + 30
        while descriptors() > before and time.monotonic() < end:
            time.sleep(0.01)
        assert descriptors() <= before


# Lives of a client


def test_a_client_lives_through_several_loops(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    made = meshlib.AsyncClient(mesh=mesh, base_url=URL)  # type: ignore[arg-type]

    async def two() -> None:
        for _ in range(2):
            assert (await made.get("/close")).text == "bye"

    asyncio.run(two())
    asyncio.run(two())
    asyncio.run(made.aclose())
    assert mesh.in_flight() == 0


def test_a_client_in_the_child_of_a_fork_has_connections_of_its_own(server: RawServer) -> None:
    mesh = fake_mesh([server.port])
    with client(mesh) as c:
        c.get("/echo")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process with threads
            child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                fresh = c._transport._sender._connections is None  # type: ignore[attr-defined]
                status = 0 if fresh and c.get("/echo").status_code == 200 else 2
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert c.get("/echo").status_code == 200
        assert server.connections == 2


# Copies


def mirrored(server: RawServer, copy: int) -> FakeMesh:
    policies = {"request_mirror_policies": [{"cluster": "m"}], "timeout": "0.3s"}
    return fake_mesh([server.port], route=policies, mirror_ports=[copy])


async def test_copies_arrive_and_their_failures_do_not_show(
    server: RawServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with raw_server() as copy:
        with client(mirrored(server, copy.port)) as c:
            assert c.post("/echo", content=iter([b"a", b"b"])).status_code == 200
            await until(lambda: copy.bodies == [b"ab"])
        async with async_client(mirrored(server, copy.port)) as a:
            assert (await a.post("/echo", content=b"whole")).status_code == 200
            await until(lambda: copy.bodies == [b"ab", b"whole"])
    for port in (free_port(), server.port):
        with client(mirrored(server, port)) as c:
            for path in ("/echo", "/hangup", "/nonsense", "/halfbody"):
                with contextlib.suppress(httpx.TransportError):
                    c.get(path)
        async with async_client(mirrored(server, port)) as a:
            for path in ("/echo", "/hangup", "/halfbody"):
                with contextlib.suppress(httpx.TransportError):
                    await a.get(path)
    assert caplog.records == []


async def test_a_copy_never_delays_the_caller_and_ends_with_the_client(server: RawServer) -> None:
    with raw_server() as copy:
        mesh = mirrored(server, copy.port)
        with client(mesh) as c:
            start = time.perf_counter()
            for _ in range(150):
                assert c.get("/status/200").status_code == 200
            assert time.perf_counter() - start < 30
        async with async_client(mesh) as a:
            for _ in range(10):
                await a.get("/slow/0")
            assert len(a._transport._sender._mirrors._tasks) <= 10  # type: ignore[attr-defined]
    end = time.monotonic() + 30
    while any(t.name == "meshlib-mirror" for t in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.005)


async def test_connections_of_copies_to_what_left_the_configuration_are_closed(server: RawServer) -> None:
    with raw_server() as copy:
        mesh = mirrored(server, copy.port)
        empty = replace(mesh.view, endpoints={})

        def idle(made: httpx.Client | httpx.AsyncClient) -> int:
            pools = made._transport._sender._connections._pools  # type: ignore[union-attr]
            return int(pools["mirror|m"].idle) if "mirror|m" in pools else 0

        with client(mesh) as c:
            c.get("/echo")
            await until(lambda: idle(c) == 1)
            c._transport._sender._connections.endpoints_changed(empty, ["m"])  # type: ignore[attr-defined]
            assert idle(c) == 0
            assert counts(c) == (1, 1, 0)
        async with async_client(mesh) as a:
            await a.get("/echo")
            await until(lambda: idle(a) == 1)
            a._transport._sender._connections.endpoints_changed(empty, ["m"])  # type: ignore[attr-defined]
            await until(lambda: idle(a) == 0)
            assert counts(a) == (1, 1, 0)
        await until(lambda: not copy.open)
