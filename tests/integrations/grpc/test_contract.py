"""What both channels keep: all four kinds of calls, routes, retries, what ends early, time, errors, copies.

When a block of `calling` has ended, no slot is taken.
"""

import asyncio
import gc
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from support.fake_mesh import fake_mesh
from support.grpc_callers import CALLERS, INTERCEPTED, calling, until
from support.grpc_server import Seen, grpc_server
from support.ports import free_port

import meshlib
import meshlib_grpc
from meshlib.core.balance.cluster import Limits

RETRY = {"num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}
RETRYING = {"retry_policy": {"retry_on": "unavailable", **RETRY}}
HEDGED = {
    "retry_policy": {"retry_on": "unavailable", "per_try_timeout": "5s", **RETRY},
    "hedge_policy": {"hedge_on_per_try_timeout": True},
}
ONCE = {**HEDGED["retry_policy"], "num_retries": 1, "per_try_timeout": "0.3s"}
SOON = {**HEDGED, "retry_policy": ONCE, "timeout": "60s"}

kinds = pytest.mark.parametrize("kind", CALLERS)
everywhere = pytest.mark.parametrize("kind", [*CALLERS, *INTERCEPTED])
"""Also over a channel of the application's own."""


@everywhere
def test_four_kinds_of_calls(kind: str, server: Seen) -> None:
    mesh = fake_mesh([server.port])
    with calling(kind, mesh) as caller:
        assert caller.unary("echo", b"hello").messages == [b"hello"]
        assert caller.streamed("count", b"3").messages == [b"0", b"1", b"2"]
        assert caller.streamed("count", b"0").messages == []
        assert caller.uploaded("total", [b"a", b"", b"c"]).messages == [b"a,,c"]
        assert caller.uploaded("total", []).messages == [b""]
        assert caller.both("chat", [b"1", b"", b"3"]).messages == [b"1", b"", b"3"]
        assert mesh.in_flight() == 0
        assert kind in INTERCEPTED or caller.channels() == 1


@kinds
@pytest.mark.parametrize("limit", ["idle_timeout", "max_connection_duration"])
def test_a_channel_ends_when_it_is_due_though_nobody_calls(kind: str, limit: str, server: Seen) -> None:
    with calling(kind, fake_mesh([server.port], **{limit: 0.05})) as caller:
        assert caller.unary("who", b"").messages == [b"v1"]
        until(lambda: caller.turn() or caller.channels() == 0)
        assert caller.unary("who", b"").messages == [b"v1"]


@everywhere
def test_metadata_passes_both_ways(kind: str, server: Seen) -> None:
    with calling(kind, fake_mesh([server.port])) as caller:
        answer = caller.unary("echo", b"", metadata=(("x-user", "jason"), ("key-bin", b"\xfe\x00")))
        assert ("x-user", "jason") in server.metadata
        assert ("key-bin", b"\xfe\x00") in server.metadata
        assert ("x-forwarded-proto", "http") in server.metadata
        assert answer.initial == {"who": "v1", "raw-bin": b"\x00\xff"}
        assert answer.trailing == {"end": "here"}
        assert (answer.facts.cluster, answer.facts.attempts) == ("c", 1)
        assert caller.both("chat", [b"1"]).initial == {"who": "v1"}


@everywhere
def test_a_route_edits_headers_and_path(kind: str, server: Seen) -> None:
    rewrite = {"pattern": {"regex": "nowhere"}, "substitution": "who"}
    route = {"regex_rewrite": rewrite, "host_rewrite_literal": "other:1"}
    with calling(kind, fake_mesh([server.port], route=route)) as caller:
        assert caller.unary("nowhere", b"").messages == [b"v1"]
        assert ("x-envoy-original-path", "/test.Service/nowhere") in server.metadata


@everywhere
@pytest.mark.parametrize("method", ["who", "count", "total", "chat"])
@pytest.mark.parametrize("route", [RETRYING, HEDGED], ids=["retried", "hedged"])
def test_a_status_that_is_named_is_tried_again(
    kind: str, method: str, route: dict[str, Any], server: Seen
) -> None:
    mesh = fake_mesh([server.port], route=route)
    server.failing[method] = 2
    with calling(kind, mesh) as caller:
        found = {
            "who": lambda: caller.unary("who", b""),
            "count": lambda: caller.streamed("count", b"2"),
            "total": lambda: caller.uploaded("total", [b"a", b"b"]),
            "chat": lambda: caller.both("chat", [b"a", b"b"]),
        }[method]()
        assert found.messages in ([b"v1"], [b"0", b"1"], [b"a,b"], [b"a", b"b"])
        assert (found.facts.attempts, server.calls[method]) == (3, 3)
        assert mesh.in_flight() == 0


@everywhere
@pytest.mark.parametrize("method", ["who", "count", "total", "chat"])
def test_a_slow_try_is_hedged_and_given_up(kind: str, method: str, server: Seen) -> None:
    for_ever = kind == "threads-intercepted" and method in ("who", "total")
    mesh = fake_mesh([server.port], route={**SOON, "timeout": "3s"} if for_ever else SOON)
    server.stalling[method] = 1
    with calling(kind, mesh) as caller:
        found = {
            "who": lambda: caller.unary("who", b""),
            "count": lambda: caller.streamed("count", b"2"),
            "total": lambda: caller.uploaded("total", [b"a", b"b"]),
            "chat": lambda: caller.both("chat", [b"a", b"b"]),
        }[method]()
        assert found.messages in ([b"v1"], [b"0", b"1"], [b"a,b"], [b"a", b"b"])
        assert found.facts.attempts == server.calls[method] == 2
        # gRPC's interceptors for threads can't end such a call: it has the time of the whole.
        until(lambda: server.given_up[method] == 1)
        assert mesh.in_flight() == 0


@everywhere
def test_a_status_that_is_not_named_is_not_tried_again(kind: str, server: Seen) -> None:
    with calling(kind, fake_mesh([server.port], route=RETRYING)) as caller:
        with pytest.raises(grpc.RpcError) as raised:
            caller.unary("status", b"5 no such thing")
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
        assert server.calls["status"] == 1


@everywhere
@pytest.mark.parametrize(
    ("number", "word"),
    [
        (1, "cancelled"),
        (4, "deadline-exceeded"),
        (8, "resource-exhausted"),
        (13, "internal"),
        (14, "unavailable"),
    ],
)
def test_each_of_the_five_conditions(kind: str, number: int, word: str, server: Seen) -> None:
    route = {"retry_policy": {"retry_on": word, **RETRY}}
    with calling(kind, fake_mesh([server.port], route=route)) as caller:
        with pytest.raises(grpc.RpcError) as raised:
            caller.unary("status", b"%d x" % number)
        assert raised.value.code().value[0] == number
        assert raised.value.meshlib.flag == "URX"
        assert server.calls["status"] == 3


@everywhere
def test_when_the_tries_are_used_up_the_last_status_counts(kind: str, server: Seen) -> None:
    mesh = fake_mesh([server.port], route=RETRYING)
    server.failing["count"] = 9
    with calling(kind, mesh) as caller:
        with pytest.raises(grpc.RpcError) as raised:
            caller.streamed("count", b"2")
        error = raised.value
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "told to")
        assert ("why", "told to") in list(error.trailing_metadata())
        assert (error.meshlib.flag, error.meshlib.attempts) == ("URX", 3)
        assert mesh.in_flight() == 0


@everywhere
def test_a_stream_that_breaks_in_the_middle_is_not_tried_again(kind: str, server: Seen) -> None:
    route = {"retry_policy": {"retry_on": "5xx,unavailable,internal", **RETRY}}
    mesh = fake_mesh([server.port], route=route)
    with calling(kind, mesh) as caller:
        with pytest.raises(grpc.RpcError) as raised:
            caller.streamed("broken", b"")
        assert raised.value.code() is grpc.StatusCode.DATA_LOSS
        assert list(raised.value.trailing_metadata()) == [("end", "broken")]
        assert (server.calls["broken"], mesh.in_flight()) == (1, 0)


@everywhere
def test_who_cancels_gives_the_slot_back(kind: str, server: Seen) -> None:
    mesh = fake_mesh([server.port])
    with calling(kind, mesh) as caller:
        assert caller.first_and_cancel("forever", b"") == b"0"
        assert mesh.in_flight() == 0
        assert server.cancelled.wait(60)


@everywhere
def test_a_call_that_is_dropped_gives_the_slot_back(kind: str, server: Seen) -> None:
    mesh = fake_mesh([server.port])
    with calling(kind, mesh) as caller:
        assert caller.first_and_drop("forever", b"") == b"0"
        gc.collect()
        until(lambda: mesh.in_flight() == 0)
        assert server.cancelled.wait(60)


@kinds
def test_a_unary_call_that_is_cancelled(kind: str, server: Seen) -> None:
    mesh = fake_mesh([server.port])
    with calling(kind, mesh) as caller:
        caller.cancel_unary("slow", b"60")
        until(lambda: mesh.in_flight() == 0)


@everywhere
@pytest.mark.parametrize("how", ["call", "route", "try"])
def test_time(kind: str, how: str, server: Seen) -> None:
    route: dict[str, Any] = {"route": {"timeout": "0.2s"}}.get(how, {})
    if how == "try":
        route = {"retry_policy": {"retry_on": "5xx", **RETRY, "num_retries": 1, "per_try_timeout": "0.1s"}}
    mesh = fake_mesh([server.port], route=route)
    with calling(kind, mesh) as caller:
        for call in (
            lambda **own: caller.unary("slow", b"60", **own),
            lambda **own: caller.streamed("forever", b"", **own),
        ):
            if how == "try" and server.calls["slow"]:
                break  # of a stream that goes on, the first message ends the try's time
            with pytest.raises(grpc.RpcError) as raised:
                call(**({"timeout": 0.2} if how == "call" else {}))
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert isinstance(raised.value, meshlib.UpstreamTimedOut)
            assert "UT" in dict(raised.value.trailing_metadata())["x-envoy-response-flags"]
        assert server.calls["slow"] == (2 if how == "try" else 1)
        assert mesh.in_flight() == 0


@everywhere
def test_the_server_is_told_of_the_time_that_is_left(kind: str, server: Seen) -> None:
    with calling(kind, fake_mesh([server.port], route={"timeout": "30s"})) as caller:
        caller.unary("who", b"")
        assert server.left is not None
        assert 20 < server.left < 32  # gRPC rounds it up
        caller.unary("who", b"", timeout=10)
        assert server.left is not None
        assert 5 < server.left < 12


@kinds
def test_nobody_listens(kind: str) -> None:
    mesh = fake_mesh([free_port()], route={"retry_policy": {"retry_on": "connect-failure", **RETRY}})
    with calling(kind, mesh) as caller:
        for call in (lambda: caller.unary("who", b""), lambda: caller.streamed("count", b"1")):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            error = raised.value
            assert isinstance(error, meshlib.ConnectFailed)
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "[UF,URX]" in error.details()
            assert dict(error.trailing_metadata())["x-envoy-response-flags"] == "UF,URX"
            assert error.flight.attempts == 3
        assert caller.channels() == 0
        assert mesh.in_flight() == 0


@kinds
def test_another_endpoint_is_tried(kind: str, server: Seen) -> None:
    policy = {"retry_on": "connect-failure", "num_retries": 20, "retry_back_off": {"base_interval": "0.001s"}}
    mesh = fake_mesh([free_port(), server.port], route={"retry_policy": policy})
    with calling(kind, mesh) as caller:
        for _ in range(6):
            assert caller.unary("who", b"").messages == [b"v1"]


@kinds
def test_an_endpoint_that_comes_back_is_called_at_once(kind: str) -> None:
    port = free_port()
    with calling(kind, fake_mesh([port])) as caller:
        with pytest.raises(grpc.RpcError):
            caller.unary("who", b"")
        with grpc_server("back", port=port):
            assert caller.unary("who", b"").messages == [b"back"]


@everywhere
def test_an_injected_abort(kind: str, server: Seen) -> None:
    abort = {"grpc_status": 8, "percentage": {"numerator": 100}}
    mesh = fake_mesh([server.port], fault={"abort": abort})
    with calling(kind, mesh) as caller:
        for call in (lambda: caller.unary("who", b""), lambda: caller.streamed("count", b"1")):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert raised.value.details() == "fault filter abort"
            assert dict(raised.value.trailing_metadata())["x-envoy-response-flags"] == "FI"
        assert not server.calls


@everywhere
def test_too_many_requests(kind: str, server: Seen) -> None:
    with calling(kind, fake_mesh([server.port], limits=Limits(max_requests=0))) as caller:
        with pytest.raises(grpc.RpcError) as raised:
            caller.unary("who", b"")
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(raised.value.trailing_metadata())["x-envoy-response-flags"] == "UO"
        assert not server.calls


@kinds
def test_a_connection_that_must_begin_with_a_proxy_header_is_not_made(kind: str, server: Seen) -> None:
    with calling(kind, fake_mesh([server.port], proxy_protocol=1)) as caller:
        with pytest.raises(meshlib.ConnectFailed, match="PROXY"):
            caller.unary("who", b"")
        assert not server.calls


@everywhere
def test_an_unknown_method_is_the_servers_word(kind: str, server: Seen) -> None:
    with calling(kind, fake_mesh([server.port])) as caller:
        with pytest.raises(grpc.RpcError) as raised:
            caller.unary("nowhere", b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@everywhere
def test_nothing_is_known_of_the_target(kind: str) -> None:
    mesh = fake_mesh([])
    mesh.failure = meshlib.ControlUnavailable("nobody answers")
    with calling(kind, mesh) as caller:
        for call in (lambda: caller.unary("who", b""), lambda: caller.streamed("count", b"1")):
            with pytest.raises(meshlib.ControlUnavailable, match="nobody answers") as raised:
                call()
            assert isinstance(raised.value, grpc.RpcError)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


@kinds
def test_copies_go_to_the_mirror(kind: str, server: Seen) -> None:
    with grpc_server("mirror") as mirror:
        route = {"request_mirror_policies": [{"cluster": "m"}]}
        mesh = fake_mesh([server.port], route=route, mirror_ports=[mirror.port])
        with calling(kind, mesh) as caller:
            assert caller.unary("who", b"").messages == [b"v1"]
            assert caller.uploaded("total", [b"a", b"b"]).messages == [b"a,b"]

            def copied() -> bool:
                caller.unary("who", b"")  # which gives tasks a turn
                return mirror.calls["who"] > 0 and mirror.calls["total"] == 1

            until(copied)


@kinds
def test_a_channel_whose_endpoint_is_gone_is_closed(kind: str, server: Seen) -> None:
    mesh = fake_mesh([server.port])
    with calling(kind, mesh) as caller, grpc_server("v2") as other:
        caller.unary("who", b"")
        mesh.view = fake_mesh([other.port]).view
        caller.connections().endpoints_changed(mesh.view, ["c"])
        caller.turn()
        assert caller.channels() == 0
        assert caller.unary("who", b"").messages == [b"v2"]
        assert caller.channels() == 1


@kinds
def test_messages_that_are_none_are_told_as_grpc_tells_them(kind: str, server: Seen) -> None:
    def refuse(_: Any) -> Any:
        raise ValueError("no message")

    with calling(kind, fake_mesh([server.port])) as caller:
        bad_in = caller.channel.unary_unary("/test.Service/who", refuse, None)
        with pytest.raises(grpc.RpcError) as raised:
            bad_in(b"")
        assert raised.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    "target", ["reviews", "dns:///reviews:9080", "reviews:http", ":1", "reviews:0", "reviews:70000"]
)
def test_what_is_no_target(target: str) -> None:
    for make in (meshlib_grpc.channel, meshlib_grpc.aio_channel):
        with pytest.raises(ValueError, match="host:port"):
            make(target)


def test_many_threads_share_a_channel(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    with calling("threads", mesh) as caller, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: caller.unary("echo", b"%d" % number).messages, range(300)))
        streams = list(pool.map(lambda _: caller.streamed("count", b"3").messages, range(50)))
        assert found == [[b"%d" % number] for number in range(300)]
        assert streams == [[b"0", b"1", b"2"]] * 50
        assert (caller.channels(), mesh.in_flight()) == (1, 0)


def test_many_tasks_share_a_channel(server: Seen) -> None:
    mesh = fake_mesh([server.port])

    async def run() -> None:
        async with meshlib_grpc.aio_channel("reviews:9080", mesh) as channel:  # type: ignore[arg-type]
            echo, count = (
                channel.unary_unary("/test.Service/echo"),
                channel.unary_stream("/test.Service/count"),
            )

            async def all_of(number: int) -> list[bytes]:
                return [one async for one in count(b"%d" % number)]

            calls = [echo(b"%d" % number) for number in range(200)]
            assert await asyncio.gather(*calls) == [b"%d" % number for number in range(200)]
            assert [len(one) for one in await asyncio.gather(*map(all_of, range(20)))] == list(range(20))

    asyncio.run(run())
    assert mesh.in_flight() == 0


def test_responses_that_wait_for_metadata_first(server: Seen) -> None:
    """A server may send metadata before it wants the first message, and a client wait for it."""
    mesh = fake_mesh([server.port])
    with calling("threads", mesh) as caller:
        more: queue.Queue[bytes | None] = queue.Queue()
        call = caller.channel.stream_stream("/test.Service/chat")(iter(more.get, None))
        assert dict(call.initial_metadata()) == {"who": "v1"}
        more.put(b"a")
        assert next(call) == b"a"
        more.put(None)
        assert list(call) == []
        assert call.code() is grpc.StatusCode.OK

    async def run() -> None:
        async with meshlib_grpc.aio_channel("reviews:9080", mesh) as channel:  # type: ignore[arg-type]
            call = channel.stream_stream("/test.Service/chat")()
            assert dict(await call.initial_metadata()) == {"who": "v1"}
            for one in (b"a", b"b"):
                await call.write(one)
                assert await call.read() == one
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    asyncio.run(run())
    assert mesh.in_flight() == 0


def test_a_future(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    with calling("threads", mesh) as caller:
        told: list[bytes] = []
        future = caller.channel.unary_unary("/test.Service/echo").future(b"a")
        future.add_done_callback(lambda one: told.append(one.result()))
        assert future.result(60) == b"a"
        until(lambda: told == [b"a"])
        bad = caller.channel.unary_unary("/test.Service/status").future(b"5 x")
        assert bad.exception(60).code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError):
            bad.result(60)
        slow = caller.channel.unary_unary("/test.Service/slow").future(b"60")
        with pytest.raises(grpc.FutureTimeoutError):
            slow.result(0.01)
        assert slow.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            slow.result(60)
        grpc.channel_ready_future(caller.channel).result(60)


def test_interceptors_of_the_application_stand_around_it(server: Seen) -> None:
    class Adding(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            response = continuation(details, request + b"!")
            assert response.code() is not None
            return response

    with calling("threads", fake_mesh([server.port])) as caller:
        channel = grpc.intercept_channel(caller.channel, Adding())
        assert channel.unary_unary("/test.Service/echo")(b"a") == b"a!"
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/test.Service/status")(b"5 x")
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
