"""A call ends when gRPC knows that it has, whoever waits for it or reads, and with its channel."""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.grpc_callers import NOTHING_SHARED, until
from support.grpc_peer import GrpcPeer, grpc_peer
from support.grpc_server import PATH, Seen
from support.telemetry import Told

import meshlib_grpc
from meshlib.bootstrap import bootstrap

OK = grpc.StatusCode.OK
LATE, AGAIN = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE
RETRY = {"num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}
RETRIED = {"retry_policy": {"retry_on": "unavailable", **RETRY}}
DELAYED = {"delay": {"fixed_delay": "0.01s", "percentage": {"numerator": 100}}}
HEDGED = {
    "retry_policy": {"retry_on": "unavailable", "per_try_timeout": "5s", **RETRY},
    "hedge_policy": {"hedge_on_per_try_timeout": True},
}
ONE_TRY = {"retry_policy": {"retry_on": "reset", "per_try_timeout": "0.05s", **RETRY, "num_retries": 1}}
CASES: list[tuple[str, bytes, float | None, dict[str, Any], grpc.StatusCode, int]] = [
    ("forever", b"", 0.3, {}, LATE, 1),
    ("status", b"5 words", None, {}, grpc.StatusCode.NOT_FOUND, 1),
    ("status", b"14 words", None, {"route": RETRIED}, AGAIN, 3),
    ("count", b"0", None, {}, OK, 1),
    ("count", b"0", None, {"fault": DELAYED}, OK, 1),
    ("count", b"0", None, {"route": HEDGED}, OK, 1),
    ("slow", b"30", None, {"route": ONE_TRY}, LATE, 2),
]
"""A method and its message, the caller's time, what the mesh does; how it ends, and after how many tries."""
cases = pytest.mark.parametrize(("method", "message", "timeout", "rules", "code", "tries"), CASES)


@pytest.fixture
def told() -> Iterator[Told]:
    found = Told()
    yield found
    found.close()


def watched(port: int, told: Told, **rules: Any) -> FakeMesh:
    mesh = fake_mesh([port], **rules)
    mesh.telemetry = told.telemetry(bootstrap({}, service="page", state_dir=""), lambda: mesh.view)
    return mesh


@cases
def test_a_stream_that_nobody_reads_ends(
    method: str,
    message: bytes,
    timeout: float | None,
    rules: dict[str, Any],
    code: grpc.StatusCode,
    tries: int,
    server: Seen,
    told: Told,
) -> None:
    mesh: Any = watched(server.port, told, **rules)
    with meshlib_grpc.channel("reviews:9080", mesh) as channel:
        channel.unary_unary(PATH + "who")(b"")
        told.spans_forgotten()
        ended = threading.Event()
        call = channel.unary_stream(PATH + method)(message, timeout=timeout)
        assert call.add_callback(ended.set) or call.done()
        until(call.done)
        assert not call.is_active()
        assert ended.is_set() or not call.add_callback(ended.set)
        assert (mesh.in_flight(), len(told.spans), server.calls[method]) == (0, 1, tries)
        # Whoever comes later is told the same.
        assert (call.code(), call.meshlib.attempts) == (code, tries)
        if code is OK:
            assert list(call) == []
        else:
            with pytest.raises(grpc.RpcError):
                next(call)


@cases
def test_tasks_are_told_that_a_stream_has_ended(
    method: str,
    message: bytes,
    timeout: float | None,
    rules: dict[str, Any],
    code: grpc.StatusCode,
    tries: int,
    server: Seen,
    told: Told,
) -> None:
    mesh: Any = watched(server.port, told, **rules)

    async def run() -> None:
        async with meshlib_grpc.aio_channel("reviews:9080", mesh) as channel:
            await channel.unary_unary(PATH + "who")(b"")
            told.spans_forgotten()
            ended = asyncio.Event()
            call = channel.unary_stream(PATH + method)(message, timeout=timeout)
            call.add_done_callback(lambda _: ended.set())
            await asyncio.wait_for(ended.wait(), 60)
            assert (call.done(), await call.code()) == (True, code)
            assert (mesh.in_flight(), len(told.spans), server.calls[method]) == (0, 1, tries)

    asyncio.run(run())


def test_what_came_before_the_end_can_be_read_after_it(server: Seen) -> None:
    mesh: Any = fake_mesh([server.port])
    with meshlib_grpc.channel("reviews:9080", mesh) as channel:
        call = channel.unary_stream(PATH + "count")(b"1")
        assert call.code() is OK
        until(call.done)
        assert list(call) == [b"0"]
        call = channel.unary_stream(PATH + "forever")(b"", timeout=0.2)
        assert next(call) == b"0"
        until(call.done)
        assert (call.code(), mesh.in_flight()) == (LATE, 0)
        with pytest.raises(grpc.RpcError):
            next(call)


def test_tasks_read_after_the_end_what_came_before(server: Seen) -> None:
    mesh: Any = fake_mesh([server.port])

    async def run() -> None:
        async with meshlib_grpc.aio_channel("reviews:9080", mesh) as channel:
            call = channel.unary_stream(PATH + "count")(b"1")
            assert await call.code() is OK
            assert await call.read() == b"0"
            assert await call.read() is grpc.aio.EOF
            call = channel.unary_stream(PATH + "forever")(b"", timeout=0.2)
            assert await call.read() == b"0"
            assert await call.code() is LATE
            assert (call.done(), mesh.in_flight()) == (True, 0)
            with pytest.raises(grpc.RpcError):
                await call.read()

    asyncio.run(run())


def test_a_stream_is_told_once_while_it_is_read(server: Seen) -> None:
    mesh: Any = fake_mesh([server.port])
    with meshlib_grpc.channel("reviews:9080", mesh) as channel:
        for _ in range(50):
            times: list[int] = []
            call = channel.unary_stream(PATH + "count")(b"3")
            call.add_callback(partial(times.append, 1))
            assert list(call) == [b"0", b"1", b"2"]
            assert times == [1]
        assert mesh.in_flight() == 0


def test_a_stream_that_is_dropped_after_its_end_leaves_nothing(server: Seen) -> None:
    mesh: Any = fake_mesh([server.port])
    with meshlib_grpc.channel("reviews:9080", mesh) as channel:
        for _ in range(20):
            channel.unary_stream(PATH + "count")(b"0")
        gc.collect()
        until(lambda: mesh.in_flight() == 0)
        until(lambda: not channel._sender._calls)


@pytest.mark.parametrize("rules", [{"route": RETRIED}, {"fault": DELAYED}, {"route": HEDGED}])
def test_a_stream_that_is_dropped_while_it_goes_on_ends(rules: dict[str, Any], server: Seen) -> None:
    mesh: Any = fake_mesh([server.port], **rules)
    with meshlib_grpc.channel("reviews:9080", mesh) as channel:
        server.failing["count"], server.stalling["count"] = 1, 1
        call = channel.unary_stream(PATH + "count")(b"1")
        until(lambda: server.calls["count"] == 2 or (server.calls["count"] and "route" not in rules))
        del call
        until(lambda: mesh.in_flight() == 0)
        until(lambda: not channel._sender._calls)
        until(lambda: "meshlib-grpc-call" not in [one.name for one in threading.enumerate()])


def test_tries_out_of_time_need_no_thread_each(server: Seen) -> None:
    route = {"retry_policy": {"retry_on": "cancelled", "per_try_timeout": "60s", **RETRY}}
    mesh: Any = fake_mesh([server.port], route=route)
    with meshlib_grpc.channel("reviews:9080", mesh) as channel:
        channel.unary_unary(PATH + "who")(b"")
        list(channel.unary_stream(PATH + "count")(b"1"))
        calls = [channel.unary_stream(PATH + "forever")(b"") for _ in range(5)]
        assert not [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
        assert [next(call) for call in calls] == [b"0"] * 5


# Channels that are closed


def test_a_channel_is_closed_while_calls_begin(server: Seen) -> None:
    mesh: Any = fake_mesh([server.port])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(8):
            channel = meshlib_grpc.channel("reviews:9080", mesh)
            channel.unary_unary(PATH + "who")(b"")
            calls: list[Any] = []
            workers = [threading.Thread(target=_begin, args=(channel, calls)) for _ in range(4)]
            for worker in workers:
                worker.start()
            until(lambda: len(calls) > 20)  # noqa: B023 - in this turn
            channel.close()
            for worker in workers:
                worker.join()
            assert [call for call in calls if call.is_active()] == []
            until(lambda: mesh.in_flight() == 0)
    finally:
        sys.setswitchinterval(interval)


def _begin(channel: Any, calls: list[Any]) -> None:
    begin: Callable[..., Any] = channel.unary_stream(PATH + "forever")
    while True:
        try:
            calls.append(begin(b"", timeout=60))
        except ValueError:
            return


class _Passing(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details, request)


def test_methods_with_interceptors_around_them_need_no_channel_each(server: Seen) -> None:
    mesh: Any = fake_mesh([server.port])

    async def run(channel: Any) -> None:
        calls = [channel.unary_unary(PATH + name, str.encode, bytes.decode) for name in ("who", "echo") * 50]
        found = await asyncio.gather(*(call(str(number)) for number, call in enumerate(calls)))
        assert found[:4] == ["v1", "1", "v1", "3"]
        assert isinstance(calls[0], grpc.aio.UnaryUnaryMultiCallable)
        gc.collect()
        grpc_channel = grpc.aio.insecure_channel("127.0.0.1:1")
        made = [one for one in gc.get_objects() if type(one) is type(grpc_channel)]
        await grpc_channel.close()
        assert len(made) == 3  # this one, where the calls go, and where their interceptors are run

    async def run_and_close(channel: Any) -> None:
        await run(channel)
        await channel.close()

    channel = meshlib_grpc.aio_channel("reviews:9080", mesh, interceptors=[_Passing()])
    asyncio.run(run_and_close(channel))
    gc.collect()


@pytest.fixture(scope="module")
def peer() -> Iterator[GrpcPeer]:
    with grpc_peer() as found:
        yield found


@pytest.mark.parametrize("retries", [0, 2])
def test_grpc_tries_nothing_again_by_itself(retries: int, peer: GrpcPeer) -> None:
    route = {"retry_policy": {"retry_on": "reset", **RETRY, "num_retries": retries}}
    mesh: Any = fake_mesh([peer.port], route=route)
    options = [("grpc.enable_retries", 1), *NOTHING_SHARED]
    with meshlib_grpc.channel("reviews:9080", mesh, options) as channel:
        peer.asked.clear()
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(PATH + "goaway")(b"", timeout=30)
        assert peer.asked["goaway"] == retries + 1
