"""One way to call a gRPC server for tests, with a channel for threads and with one for tasks."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grpc
from support.grpc_server import PATH

import meshlib_grpc


class Answered(NamedTuple):
    """What a call came to."""

    messages: list[bytes]
    initial: dict[str, Any]
    trailing: dict[str, Any]
    facts: Any


class Blocking:
    """Threads."""

    def __init__(self, mesh: Any) -> None:
        self.channel = meshlib_grpc.channel("reviews:9080", mesh)

    def unary(self, method: str, message: bytes, **wishes: Any) -> Answered:
        response, call = self.channel.unary_unary(PATH + method).with_call(message, **wishes)
        return _answered([response], call)

    def streamed(self, method: str, message: bytes, **wishes: Any) -> Answered:
        call = self.channel.unary_stream(PATH + method)(message, **wishes)
        return _answered(list(call), call)

    def uploaded(self, method: str, messages: Iterable[bytes], **wishes: Any) -> Answered:
        response, call = self.channel.stream_unary(PATH + method).with_call(iter(messages), **wishes)
        return _answered([response], call)

    def both(self, method: str, messages: Iterable[bytes], **wishes: Any) -> Answered:
        call = self.channel.stream_stream(PATH + method)(iter(messages), **wishes)
        return _answered(list(call), call)

    def first_and_cancel(self, method: str, message: bytes) -> bytes:
        call = self.channel.unary_stream(PATH + method)(message)
        first: bytes = next(call)
        assert call.cancel()
        assert call.cancelled()
        return first

    def first_and_drop(self, method: str, message: bytes) -> bytes:
        first: bytes = next(self.channel.unary_stream(PATH + method)(message))
        return first

    def cancel_unary(self, method: str, message: bytes) -> None:
        call = self.channel.unary_unary(PATH + method).future(message)
        assert call.cancel()

    def pool(self) -> Any:
        return self.channel._sender.channels()._pool

    def connections(self) -> Any:
        return self.channel._sender.channels()

    def turn(self) -> None:
        """Nothing turns here by itself."""

    def channels(self) -> int:
        return len(self.pool())

    def close(self) -> None:
        self.channel.close()


class Tasks:
    """The same with tasks: each call is run to its end."""

    def __init__(self, mesh: Any) -> None:
        self.runner = asyncio.Runner()
        self.channel = meshlib_grpc.aio_channel("reviews:9080", mesh)

    def unary(self, method: str, message: bytes, **wishes: Any) -> Answered:
        async def run() -> Answered:
            call = self.channel.unary_unary(PATH + method)(message, **wishes)
            return await _aanswered([await call], call)

        return self.runner.run(run())

    def streamed(self, method: str, message: bytes, **wishes: Any) -> Answered:
        async def run() -> Answered:
            call = self.channel.unary_stream(PATH + method)(message, **wishes)
            return await _aanswered([one async for one in call], call)

        return self.runner.run(run())

    def uploaded(self, method: str, messages: Iterable[bytes], **wishes: Any) -> Answered:
        async def run() -> Answered:
            call = self.channel.stream_unary(PATH + method)(_each(messages), **wishes)
            return await _aanswered([await call], call)

        return self.runner.run(run())

    def both(self, method: str, messages: Iterable[bytes], **wishes: Any) -> Answered:
        async def run() -> Answered:
            call = self.channel.stream_stream(PATH + method)(_each(messages), **wishes)
            return await _aanswered([one async for one in call], call)

        return self.runner.run(run())

    def first_and_cancel(self, method: str, message: bytes) -> bytes:
        async def run() -> bytes:
            call = self.channel.unary_stream(PATH + method)(message)
            first: bytes = await call.read()
            assert call.cancel()
            assert call.cancelled()
            return first

        return self.runner.run(run())

    def first_and_drop(self, method: str, message: bytes) -> bytes:
        async def run() -> bytes:
            first: bytes = await self.channel.unary_stream(PATH + method)(message).read()
            return first

        return self.runner.run(run())

    def cancel_unary(self, method: str, message: bytes) -> None:
        async def run() -> None:
            call = self.channel.unary_unary(PATH + method)(message)
            await asyncio.sleep(0)
            assert call.cancel()
            await asyncio.wait({call._task})

        self.runner.run(run())

    def pool(self) -> Any:
        return self.connections()._pool

    def connections(self) -> Any:
        return self.channel._sender._connections

    def turn(self) -> None:
        """The loop turns for a moment."""
        self.runner.run(asyncio.sleep(0.01))

    def channels(self) -> int:
        return len(self.pool())

    def close(self) -> None:
        self.runner.run(self.channel.close())
        self.runner.close()


class InterceptedBlocking(Blocking):
    """Threads, over a channel of the application's own."""

    def __init__(self, mesh: Any) -> None:
        self.own = grpc.insecure_channel(f"127.0.0.1:{_port(mesh)}", NOTHING_SHARED)
        self.channel = grpc.intercept_channel(self.own, *meshlib_grpc.interceptors("reviews:9080", mesh))

    def close(self) -> None:
        self.own.close()


class InterceptedTasks(Tasks):
    """Tasks, over a channel of the application's own."""

    def __init__(self, mesh: Any) -> None:
        self.runner = asyncio.Runner()

        async def run() -> grpc.aio.Channel:
            interceptors = meshlib_grpc.aio_interceptors("reviews:9080", mesh)
            return grpc.aio.insecure_channel(
                f"127.0.0.1:{_port(mesh)}", NOTHING_SHARED, interceptors=interceptors
            )

        self.channel = self.runner.run(run())


NOTHING_SHARED = (("grpc.use_local_subchannel_pool", 1),)
CALLERS = {"threads": Blocking, "tasks": Tasks}
INTERCEPTED = {"threads-intercepted": InterceptedBlocking, "tasks-intercepted": InterceptedTasks}


def _port(mesh: Any) -> int:
    """Of the first endpoint; 1: there is none."""
    listed = [e for found in mesh.view.endpoints.values() for g in found.localities for e in g.endpoints]
    return int(listed[0].port) if listed else 1


@contextlib.contextmanager
def calling(kind: str, mesh: Any) -> Iterator[Blocking | Tasks]:
    """A caller. At the end no slot is taken."""
    caller = (CALLERS | INTERCEPTED)[kind](mesh)
    try:
        yield caller
    finally:
        caller.close()


async def _each(messages: Iterable[bytes]) -> AsyncIterator[bytes]:
    for one in messages:
        yield one


def _answered(messages: list[bytes], call: Any) -> Answered:
    return Answered(messages, dict(call.initial_metadata()), dict(call.trailing_metadata()), call.meshlib)


async def _aanswered(messages: list[bytes], call: Any) -> Answered:
    initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
    facts = call.meshlib if hasattr(call, "meshlib") else call._interceptors_task.result().meshlib
    return Answered(messages, dict(initial), dict(trailing), facts)


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until something is true. AssertionError: it did not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
