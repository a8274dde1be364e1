"""What is gRPC's own about calls: what waits for what, how a channel ends them, what is kept of messages."""

import asyncio
import contextlib
import gc
import math
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.fake_mesh import fake_mesh
from support.grpc_callers import CALLERS, Blocking, calling, until
from support.grpc_server import PATH, Seen
from support.small_ca import SmallCa

import meshlib
import meshlib_grpc
from meshlib.core.mtls import ClientTls
from meshlib.dataplane.tls import Contexts

RETRY = {"num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}
RETRYING = {"retry_policy": {"retry_on": "unavailable", **RETRY}}


kinds = pytest.mark.parametrize("kind", CALLERS)


@pytest.fixture
def mute() -> Iterator[Any]:
    """A mesh whose peer accepts connections and says nothing."""
    held = SmallCa().held("spiffe://cluster.local/ns/default/sa/productpage")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        mesh = fake_mesh([listening.getsockname()[1]], tls=ClientTls(), connect_timeout=60.0)
        mesh.contexts = Contexts(lambda: held)
        yield mesh


# To begin a call waits for nothing


def test_a_call_begins_though_its_peer_says_nothing(mute: Any) -> None:
    with calling("threads", mute) as caller:
        assert isinstance(caller, Blocking)
        future = caller.channel.unary_unary(PATH + "who").future(b"", timeout=60)
        stream = caller.channel.unary_stream(PATH + "count")(b"1", timeout=60)
        assert not future.done()
        for one in (future, stream):
            assert one.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            future.result(60)
        assert stream.code() is grpc.StatusCode.CANCELLED
        until(lambda: mute.in_flight() == 0)
        late = caller.channel.unary_unary(PATH + "who").future(b"", timeout=0.05)
        assert isinstance(late.exception(60), meshlib.UpstreamTimedOut)


def test_a_call_begins_though_its_target_is_not_known_yet(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    known = threading.Event()
    prepare = mesh.prepare

    def prepared(name: str) -> Any:
        assert known.wait(60)
        return prepare(name)

    mesh.prepare, mesh.known = prepared, lambda name: None  # type: ignore[method-assign,assignment]
    with calling("threads", mesh) as caller:
        assert isinstance(caller, Blocking)
        given_up = caller.channel.unary_unary(PATH + "who").future(b"")
        future = caller.channel.unary_unary(PATH + "who").future(b"")
        stream = caller.channel.unary_stream(PATH + "count")(b"2")
        assert given_up.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            given_up.result(60)
        known.set()
        assert future.result(60) == b"v1"
        assert list(stream) == [b"0", b"1"]
        until(lambda: mesh.in_flight() == 0)
    assert server.calls["who"] == 1


@kinds
def test_time_until_the_target_is_known_counts(kind: str, server: Seen) -> None:
    mesh: Any = fake_mesh([server.port])
    now, prepare = [time.monotonic()], mesh.prepare

    def slowly(name: str) -> Any:
        now[0] += 10
        return prepare(name)

    mesh.clock, mesh.known, mesh.prepare = (lambda: now[0]), (lambda name: None), slowly
    with calling(kind, mesh) as caller:
        for call in (caller.unary, caller.streamed):
            with pytest.raises(meshlib.UpstreamTimedOut):
                call("who", b"", timeout=5)
    assert not server.calls


def test_who_wants_to_be_told_of_the_end_waits_for_nothing(server: Seen) -> None:
    with calling("threads", fake_mesh([server.port])) as caller:
        assert isinstance(caller, Blocking)
        told: list[str] = []
        future = caller.channel.unary_unary(PATH + "slow").future(b"60")
        future.add_done_callback(lambda call: told.append(call.code().name))
        assert (future.done(), told) == (False, [])
        assert future.cancel()
        until(lambda: told == ["CANCELLED"])

        stream = caller.channel.unary_stream(PATH + "forever")(b"")
        reading = threading.Thread(target=lambda: list(_quietly(stream)))
        reading.start()
        assert stream.add_callback(lambda: told.append("end"))
        assert dict(stream.initial_metadata()) == {}  # though it is being read
        assert reading.is_alive()
        stream.cancel()
        reading.join(60)
        assert told == ["CANCELLED", "end"]


def _quietly(call: Any) -> Iterator[bytes]:
    with contextlib.suppress(grpc.RpcError):
        yield from call


def test_metadata_have_keys_and_values(server: Seen) -> None:
    with calling("threads", fake_mesh([server.port])) as caller:
        assert isinstance(caller, Blocking)
        _, call = caller.channel.unary_unary(PATH + "echo").with_call(b"")
        stream = caller.channel.unary_stream(PATH + "broken")(b"")
        with pytest.raises(grpc.RpcError) as raised:
            list(stream)
        with pytest.raises(grpc.RpcError) as injected:
            caller.channel.unary_unary(PATH + "nothing")(b"")
        for found in (
            call.initial_metadata(),
            call.trailing_metadata(),
            stream.trailing_metadata(),
            raised.value.trailing_metadata(),
        ):
            assert [(one.key, one.value) for one in found] == list(found) != []
        assert isinstance(injected.value.trailing_metadata(), tuple)


# The end of a channel


def test_a_channel_that_closes_ends_its_calls(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    with calling("threads", mesh) as caller:
        assert isinstance(caller, Blocking)
        raised: list[Any] = []

        def slow() -> None:
            try:
                caller.channel.unary_unary(PATH + "slow")(b"60")
            except grpc.RpcError as error:
                raised.append(error)

        waiting = threading.Thread(target=slow)
        waiting.start()
        future = caller.channel.unary_unary(PATH + "slow").future(b"60")
        read = caller.channel.unary_stream(PATH + "forever")(b"")
        assert next(read) == b"0"
        unread = caller.channel.unary_stream(PATH + "forever")(b"")
        until(lambda: server.calls["slow"] == 2)
        caller.channel.close()
        waiting.join(60)
        for error in (*raised, future.exception(60), read, unread):
            assert (error.code(), error.details()) == (grpc.StatusCode.CANCELLED, "Channel closed!")
        with pytest.raises(grpc.RpcError):
            next(read)
        until(lambda: mesh.in_flight() == 0)
        for call in (
            lambda: caller.channel.unary_unary(PATH + "who")(b""),
            lambda: caller.channel.unary_unary(PATH + "who").future(b""),
            lambda: caller.channel.unary_stream(PATH + "count")(b"1"),
        ):
            with pytest.raises(ValueError, match="closed channel"):
                call()


def test_a_channel_that_closes_ends_its_calls_for_tasks(server: Seen) -> None:
    mesh = fake_mesh([server.port])

    async def run() -> None:
        channel = meshlib_grpc.aio_channel("reviews:9080", mesh)  # type: ignore[arg-type]
        slow = channel.unary_unary(PATH + "slow")(b"60")
        read = channel.unary_stream(PATH + "forever")(b"")
        assert await read.read() == b"0"
        written = channel.stream_stream(PATH + "chat")()
        await written.write(b"a")
        while server.calls["slow"] < 1:
            await asyncio.sleep(0.01)
        await channel.close(grace=0.05)
        for call in (slow, read, written):
            assert await call.code() is grpc.StatusCode.CANCELLED
        assert mesh.in_flight() == 0
        async with asyncio.timeout(20):  # gRPC's own tasks may end a little later
            while asyncio.all_tasks() != {asyncio.current_task()}:
                await asyncio.sleep(0.01)
        channel = meshlib_grpc.aio_channel("reviews:9080", mesh)  # type: ignore[arg-type]
        soon = channel.unary_unary(PATH + "slow")(b"0.1")
        closing = asyncio.ensure_future(channel.close(grace=60))
        await asyncio.sleep(0)
        with pytest.raises(grpc.aio.UsageError):
            channel.unary_unary(PATH + "who")(b"")
        assert await soon == b"late"
        await closing

    asyncio.run(run())


def test_a_stream_that_tasks_drop_is_ended_though_nobody_has_read_it(server: Seen) -> None:
    mesh = fake_mesh([server.port])

    async def run() -> None:
        async with meshlib_grpc.aio_channel("reviews:9080", mesh) as channel:  # type: ignore[arg-type]
            for _ in range(5):
                call = channel.stream_stream(PATH + "chat")()
                await asyncio.sleep(0.02)
                del call
            gc.collect()
            async with asyncio.timeout(60):
                while mesh.in_flight() or len(asyncio.all_tasks()) > 1:
                    await asyncio.sleep(0.01)

    asyncio.run(run())


# What is kept of messages


class Chat:
    """A stream of requests that is written one by one, by threads."""

    def __init__(self, caller: Blocking, method: str) -> None:
        self.more: queue.Queue[bytes | None] = queue.Queue()
        self.call = getattr(caller.channel, method)

    def begin(self, path: str, **wishes: Any) -> Any:
        return self.call(PATH + path)(iter(self.more.get, None), **wishes)


def kept(call: Any) -> int:
    body: Any = call._body
    return sum(map(len, body._kept_messages))


@pytest.mark.parametrize("route", [{}, RETRYING], ids=["no retry", "response begun"])
def test_messages_are_kept_only_where_they_may_be_sent_again(route: dict[str, Any], server: Seen) -> None:
    with calling("threads", fake_mesh([server.port], route=route)) as caller:
        assert isinstance(caller, Blocking)
        chat = Chat(caller, "stream_stream")
        call = chat.begin("chat")
        for _ in range(5):
            chat.more.put(b"x" * 1000)
            assert next(call) == b"x" * 1000
        assert kept(call) <= 1000
        chat.more.put(None)
        assert list(call) == []
        assert kept(call) == 0

    async def run() -> None:
        mesh: Any = fake_mesh([server.port], route=route)
        async with meshlib_grpc.aio_channel("reviews:9080", mesh) as channel:
            call = channel.stream_stream(PATH + "chat")()
            for _ in range(5):
                await call.write(b"x" * 1000)
                assert await call.read() == b"x" * 1000
            assert kept(call) <= 1000
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert kept(call) == 0

    asyncio.run(run())


def test_what_comes_between_two_tries_is_for_the_next(server: Seen) -> None:
    """However long it is: nobody has taken it."""
    long = b"x" * 1_500_000
    policy = {"retry_on": "unavailable", "num_retries": 2, "retry_back_off": {"base_interval": "0.3s"}}

    def between(mesh: Any) -> bool:
        return any(state.retries for state in mesh.ledger.clusters.values())

    mesh = fake_mesh([server.port], route={"retry_policy": policy})
    server.failing["total"] = 1

    def feed() -> Iterator[bytes]:
        yield b"a"
        until(lambda: between(mesh))
        yield long

    with calling("threads", mesh) as caller:
        answer = caller.uploaded("total", feed(), timeout=60)
        assert answer.messages == [b"a," + long]
        assert (answer.facts.attempts, mesh.in_flight()) == (2, 0)

    async def run() -> None:
        mesh: Any = fake_mesh([server.port], route={"retry_policy": policy})
        server.failing["total"] = 1
        async with meshlib_grpc.aio_channel("reviews:9080", mesh) as channel:
            call = channel.stream_unary(PATH + "total")()
            await call.write(b"a")
            while not between(mesh):
                await asyncio.sleep(0.001)
            await call.write(long)
            await call.done_writing()
            assert await call == b"a," + long
            assert call.meshlib.attempts == 2

    asyncio.run(run())


# What gRPC says itself


def test_a_message_of_a_stream_that_can_not_be_made_bytes(server: Seen) -> None:
    with calling("threads", fake_mesh([server.port])) as caller:
        assert isinstance(caller, Blocking)
        make = caller.channel.stream_unary(PATH + "total", request_serializer=lambda _: 1 // 0)
        with pytest.raises(grpc.RpcError) as raised:
            make(iter([b"a"]))
        error = raised.value
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == "Exception serializing request!"


@kinds
def test_time_without_end_is_none(kind: str, server: Seen) -> None:
    with calling(kind, fake_mesh([server.port])) as caller:
        assert caller.unary("who", b"", timeout=math.inf).messages == [b"v1"]
        assert caller.streamed("count", b"1", timeout=math.inf).messages == [b"0"]


@kinds
def test_a_name_of_metadata_with_capitals_is_refused(kind: str, server: Seen) -> None:
    with calling(kind, fake_mesh([server.port])) as caller:
        for call in (caller.unary, caller.streamed):
            with pytest.raises(grpc.RpcError) as raised:
                call("who", b"", metadata=(("X-User", "jason"),))
            error = raised.value
            assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "Invalid metadata")
    assert not server.calls


@kinds
def test_rules_edit_a_status_that_came_alone_and_no_other(kind: str, server: Seen) -> None:
    mesh = fake_mesh([server.port], answered={"grpc-status": "5"})
    with calling(kind, mesh) as caller:
        for call, code, trailing in (
            (lambda: caller.unary("status", b"14 x"), "NOT_FOUND", {}),
            (lambda: caller.streamed("broken", b""), "DATA_LOSS", {"end": "broken"}),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            error = raised.value
            assert (error.code().name, dict(error.trailing_metadata())) == (code, trailing)


# Interceptors of the application


async def test_interceptors_of_the_application_stand_around_tasks(server: Seen) -> None:
    seen: list[str] = []

    def noted(details: Any) -> Any:
        seen.append(details.method if isinstance(details.method, str) else details.method.decode())
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("x-added", "1"))
        return details._replace(metadata=metadata)

    class One(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            if request == b"mine":
                return b"answered"
            return await continuation(noted(details), request + b"!")

    class Stream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
        async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
            return await continuation(noted(details), requests)

    class Sum(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
            return await continuation(noted(details), requests)

    class Many(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
            return await continuation(noted(details), request)

    mesh: Any = fake_mesh([server.port], route=RETRYING)
    around = [One(), Stream(), Sum(), Many()]
    async with meshlib_grpc.aio_channel("reviews:9080", mesh, interceptors=around) as channel:
        echo = channel.unary_unary(PATH + "echo", bytes.lower, bytes.upper)
        server.failing["echo"] = 1
        assert await echo(b"Hello") == b"HELLO!"
        assert server.calls["echo"] == 2  # by the rules of the mesh
        assert ("x-added", "1") in server.metadata
        assert await echo(b"mine") == b"answered"
        assert [one async for one in channel.unary_stream(PATH + "count")(b"2")] == [b"0", b"1"]
        assert await channel.stream_unary(PATH + "total")(iter([b"a", b"b"])) == b"a,b"
        chat = channel.stream_stream(PATH + "chat")()
        await chat.write(b"a")
        assert await chat.read() == b"a"
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(PATH + "status")(b"5 x")
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert [one.removeprefix(PATH) for one in seen] == ["echo", "count", "total", "chat", "status"]
    assert mesh.in_flight() == 0
