"""Which task goes on with a call that has one request and one response: it is all the same to its caller."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.grpc_server import PATH, Seen

import meshlib_grpc

WAIT = 60.0
SOON = {"num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}
LATE = {"num_retries": 2, "retry_back_off": {"base_interval": "60s", "max_interval": "60s"}}


def route(backs_off: dict[str, Any]) -> dict[str, Any]:
    return {"retry_policy": {"retry_on": "unavailable", **backs_off}}


@asynccontextmanager
async def called(mesh: FakeMesh) -> AsyncIterator[Callable[..., Any]]:
    """What calls `who`, and has done so: there is a connection."""
    async with meshlib_grpc.aio_channel("reviews:9080", mesh) as channel:
        call = channel.unary_unary(PATH + "who")
        assert await call(b"") == b"v1"
        yield call


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not holds():
            await asyncio.sleep(0.001)


async def within(seconds: float, call: Callable[..., Any]) -> None:
    async with asyncio.timeout(seconds):
        await call(b"")


def going() -> int:
    """How many tasks there are for calls."""
    return sum(task.get_name() == "meshlib-grpc-call" for task in asyncio.all_tasks())


async def test_who_awaits_a_call_at_once_needs_no_other_task(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    async with called(mesh) as call:
        server.stalling["who"] = 1
        waiting = asyncio.create_task(at_once(call))
        await until(lambda: server.calls["who"] == 2)
        assert going() == 0
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert mesh.in_flight() == 0


async def at_once(call: Callable[..., Any]) -> Any:
    return await call(b"")


async def test_a_call_that_nobody_awaits_goes_on(server: Seen) -> None:
    mesh = fake_mesh([server.port], route=route(SOON))
    async with called(mesh) as call:
        server.failing["who"] = 1
        told: list[Any] = []
        call(b"").add_done_callback(told.append)
        gc.collect()
        await until(lambda: bool(told))
        assert await told[0].code() is grpc.StatusCode.OK
        assert await told[0] == b"v1" == await told[0]
        assert (server.calls["who"], mesh.in_flight()) == (3, 0)


@pytest.mark.parametrize("asks", ["code", "trailing_metadata", "initial_metadata", "wait_for_connection"])
async def test_what_is_asked_of_a_call_that_nobody_awaits(asks: str, server: Seen) -> None:
    async with called(fake_mesh([server.port])) as call:
        one = call(b"")
        async with asyncio.timeout(WAIT):
            await getattr(one, asks)()
        assert await one == b"v1"


async def test_several_await_one_call(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    async with called(mesh) as call:
        one = call(b"")

        async def wait() -> Any:
            return await one

        assert await asyncio.gather(*(wait() for _ in range(3))) == [b"v1"] * 3
        assert (server.calls["who"], mesh.in_flight()) == (2, 0)


@pytest.mark.parametrize("awaited", [True, False])
@pytest.mark.parametrize("when", ["begun", "first", "pause", "second"])
async def test_a_call_that_another_task_cancels(when: str, awaited: bool, server: Seen) -> None:
    mesh = fake_mesh([server.port], route=route(LATE if when == "pause" else SOON))
    async with called(mesh) as call:
        failing = {"begun": 0, "first": 0, "pause": 1, "second": 1}[when]
        server.failing["who"] = failing
        server.stalling["who"] = 1
        one = call(b"")
        seen: list[int] = []

        async def wait() -> None:
            try:
                await one
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                seen.append(task.cancelling())

        waiting = asyncio.create_task(wait()) if awaited else None
        if when != "begun":
            wanted = 3 if when == "second" else 2
            await until(lambda: server.calls["who"] == wanted)
            await until(lambda: when != "pause" or not server.failing["who"])
            await asyncio.sleep(0.02 if when == "pause" else 0)
        assert one.cancel()
        assert one.cancelled()
        assert one.done()
        if waiting is not None:
            await waiting
            assert seen == [0]  # the task itself was not cancelled
        with pytest.raises(asyncio.CancelledError):
            await one
        assert await one.code() is grpc.StatusCode.CANCELLED
        await until(lambda: mesh.in_flight() == 0 and going() == 0)
        server.clear()
        assert await call(b"") == b"v1"


async def test_a_caller_that_is_cancelled_ends_its_call(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    async with called(mesh) as call:
        server.stalling["who"] = 1
        with pytest.raises(TimeoutError):
            await within(0.02, call)
        await until(lambda: mesh.in_flight() == 0 and going() == 0)
        one = call(b"")
        waiting = asyncio.ensure_future(one)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await call(b"") == b"v1"


async def test_a_channel_that_closes_ends_what_is_awaited(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    async with called(mesh) as call:
        server.stalling["who"] = 2
        waiting = asyncio.create_task(at_once(call))
        left = call(b"")
        await until(lambda: server.calls["who"] == 3)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert left.cancelled()
    assert (mesh.in_flight(), going()) == (0, 0)


async def test_what_can_not_be_sent_is_told_to_who_awaits_it(server: Seen) -> None:
    mesh = fake_mesh([server.port])
    async with called(mesh) as call:
        one = call("no bytes")
        with pytest.raises(TypeError):
            await one
        assert await one.code() is grpc.StatusCode.UNKNOWN
        assert mesh.in_flight() == 0
        assert await call(b"") == b"v1"


async def test_answers_of_the_mesh_and_of_no_channel(server: Seen) -> None:
    fault = {"abort": {"grpc_status": 8, "percentage": {"numerator": 100}}}
    async with called(fake_mesh([server.port])) as call:
        refused = fake_mesh([server.port], fault=fault)
        call._sender._mesh.view = refused.view
        with pytest.raises(grpc.RpcError) as raised:
            await call(b"")
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(b"").code() is grpc.StatusCode.RESOURCE_EXHAUSTED
