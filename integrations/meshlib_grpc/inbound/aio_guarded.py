"""One method of a server for tasks, for whom the mesh lets in. All four kinds.

A handler that is no coroutine runs on a thread, as gRPC has it, and so does what stands before it
(`guarded`).
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from meshlib.dataplane import context as inherited
from meshlib.errors import ControlError
from meshlib_grpc.inbound.aio_contexts import AsyncServedContext
from meshlib_grpc.inbound.arrival import AuthorityUnknown
from meshlib_grpc.inbound.guarded import guarded as guarded_on_threads
from meshlib_grpc.inbound.guarded import kind_of
from meshlib_grpc.inbound.judging import Arrived, Judge
from meshlib_grpc.inbound.refusal import NO_METHOD, STRANGER, Refusal, Status, no_policy
from meshlib_grpc.inbound.serving import Body, Serving

log = logging.getLogger(__name__)


def guarded(judge: Judge, method: str, handler: Any) -> Any:
    """The handler, for whom the mesh lets in."""
    kind, make = kind_of(handler)
    run = getattr(handler, kind)
    if not inspect.iscoroutinefunction(run) and not inspect.isasyncgenfunction(run):
        return guarded_on_threads(judge, method, handler, told=False)
    found = AsyncGuarded(judge, method, run, handler.request_deserializer, handler.response_serializer)
    if handler.response_streaming and not inspect.isasyncgenfunction(run):
        kind += "_written"
    return make(getattr(found, kind))


class AsyncGuarded:
    """One method. Messages are bytes on gRPC's side."""

    def __init__(
        self, judge: Judge, method: str, run: Any = None, parse: Any = None, write: Any = None
    ) -> None:
        """`run` None: there is no such method. `parse` and `write`: of messages; None: they stay bytes."""
        self._judge = judge
        self._method = method
        self._run = run
        self._parse: Callable[[bytes], Any] = parse or _as_it_is
        self._write: Callable[[Any], bytes] = write or _as_it_is

    async def unary_unary(self, message: bytes, context: Any) -> bytes:
        """Serves a call."""
        served = await self._let_in(context, message)
        return await self._one(self._only(message, served), served)

    async def stream_unary(self, _: Any, context: Any) -> bytes:
        """Serves a call."""
        served = await self._let_in(context, None)
        return await self._one(lambda: _Requests(served), served)

    async def unary_stream(self, message: bytes, context: Any) -> AsyncIterator[bytes]:
        """Serves a call whose handler yields."""
        served = await self._let_in(context, message)
        async for said in self._many(self._only(message, served), served):
            yield said

    async def stream_stream(self, _: Any, context: Any) -> AsyncIterator[bytes]:
        """Serves a call whose handler yields."""
        served = await self._let_in(context, None)
        async for said in self._many(lambda: _Requests(served), served):
            yield said

    async def unary_stream_written(self, message: bytes, context: Any) -> None:
        """Serves a call whose handler writes to its context."""
        served = await self._let_in(context, message)
        await self._written(self._only(message, served), served)

    async def stream_stream_written(self, _: Any, context: Any) -> None:
        """Serves a call whose handler writes to its context."""
        served = await self._let_in(context, None)
        await self._written(lambda: _Requests(served), served)

    async def absent(self, _: Any, context: Any) -> None:
        """Of a method that is not there."""
        served = await self._let_in(context, None)
        try:
            await served.abort(grpc.StatusCode.UNIMPLEMENTED, NO_METHOD)
        finally:
            served.serving.end()

    async def _one(self, asked: Callable[[], Any], served: AsyncServedContext) -> bytes:
        async def run() -> bytes:
            with inherited.entered(served.serving.handed):
                response = await self._run(asked(), served)
                # With a bad status gRPC sends no message (and handlers return anything).
                said = b"" if served.serving.failed else self._write(response)
            await served.begin()
            served.serving.sent(said)
            return said

        said: bytes = await _ending(served.serving, run())
        return said

    async def _written(self, asked: Callable[[], Any], served: AsyncServedContext) -> None:
        async def run() -> None:
            with inherited.entered(served.serving.handed):
                await self._run(asked(), served)
            await served.begin()

        await _ending(served.serving, run())

    async def _many(self, asked: Callable[[], Any], served: AsyncServedContext) -> AsyncIterator[bytes]:
        serving = served.serving
        failed, left, responses = True, False, None
        try:
            with inherited.entered(serving.handed):
                responses = self._run(asked(), served)
            while True:
                with inherited.entered(serving.handed):
                    response = await anext(responses, _END)
                    if response is _END:
                        break
                    said = self._write(response)
                await served.begin()
                serving.sent(said)
                yield said
            await served.begin()
            failed = False
        except (asyncio.CancelledError, GeneratorExit):
            left = True
            raise
        finally:
            serving.end(failed=failed, left=left)
            if responses is not None:
                await responses.aclose()

    def _only(self, message: bytes, served: AsyncServedContext) -> Callable[[], Any]:
        def asked() -> Any:
            served.serving.received(message)
            return self._parse(message)

        return asked

    async def _let_in(self, context: Any, message: bytes | None) -> AsyncServedContext:
        """Who may not come in is told so, by gRPC's exception. `message` None: they are a stream."""
        found = self._judge.gate(context)
        if found is None:
            await _refuse(context, STRANGER)
        gate, peer = found
        try:
            await gate.aprepare()
        except ControlError as error:
            await _refuse(context, no_policy(error))
        arrived = Arrived(gate, peer, self._method, context)
        try:
            verdict = await gate.aadmit(arrived.head, arrived.peer, Body(message).aread)
        except AuthorityUnknown as error:
            verdict = self._judge.unknown_host(error)
        judged = arrived.judged(verdict)
        if isinstance(judged, Refusal):
            await _refuse(context, judged.status)
        return AsyncServedContext(context, judged, self._parse, self._write)


_END = object()


def _as_it_is(message: Any) -> Any:
    return message


async def _refuse(context: Any, status: Status) -> NoReturn:
    await context.abort(status.code, status.details, status.trailing)
    raise AssertionError("gRPC goes on after abort")


async def _ending(serving: Serving, work: Awaitable[Any]) -> Any:
    """Awaits the handler, and tells how it ended."""
    failed, left = True, False
    try:
        found = await work
        failed = False
    except asyncio.CancelledError:
        left = True
        raise
    finally:
        serving.end(failed=failed, left=left)
    return found


class _Requests:
    """The messages of a call, as the application reads them."""

    def __init__(self, served: AsyncServedContext) -> None:
        self._served = served

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> Any:
        found = await self._served.read()
        if found is grpc.aio.EOF:
            raise StopAsyncIteration
        return found
