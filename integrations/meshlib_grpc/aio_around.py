"""Interceptors of the application around calls for tasks, for which gRPC has no `intercept_channel`.

gRPC runs interceptors only where it makes a channel. So there is a channel of gRPC's own that is never
connected: after the application's interceptors comes one of ours, which begins the call in the mesh. Which
method was called it knows from its context: gRPC runs the interceptors in a task that is made for the call.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import grpc

Begin = Callable[[str], Any]
"""Gives what calls the method with that path: an interceptor may have named another."""
_NOWHERE = "unix:///dev/null"


_BEGIN: ContextVar[Begin] = ContextVar("meshlib_grpc_begin")
"""Of the method that was called."""


class _Last:
    def _call(self, details: Any, request: Any) -> Any:
        method = details.method
        return _BEGIN.get()(method.decode() if isinstance(method, bytes) else method)(
            request,
            timeout=details.timeout,
            metadata=details.metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class _UnaryUnary(_Last, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(client_call_details, request)


class _UnaryStream(_Last, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(client_call_details, request)


class _StreamUnary(_Last, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return self._call(client_call_details, request_iterator)


class _StreamStream(_Last, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return self._call(client_call_details, request_iterator)


_LAST = (_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream())


class _Called:
    """What calls a method."""

    def __init__(self, around: "Around", kind: str, path: str, begin: Begin) -> None:
        self._around = around
        self._kind = kind
        self._path = path
        self._begin = begin

    def __call__(self, *asked: Any, **wishes: Any) -> Any:
        """The call, whose interceptors are about to run."""
        before = _BEGIN.set(self._begin)
        try:
            return getattr(self._around.channel(), self._kind)(self._path)(*asked, **wishes)
        finally:
            _BEGIN.reset(before)


class _CalledUnaryUnary(_Called, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[misc]
    pass


class _CalledUnaryStream(_Called, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[misc]
    pass


class _CalledStreamUnary(_Called, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[misc]
    pass


class _CalledStreamStream(_Called, grpc.aio.StreamStreamMultiCallable):  # type: ignore[misc]
    pass


_KINDS = {
    "unary_unary": _CalledUnaryUnary,
    "unary_stream": _CalledUnaryStream,
    "stream_unary": _CalledStreamUnary,
    "stream_stream": _CalledStreamStream,
}


class Around:
    """Of one channel."""

    def __init__(self, interceptors: Sequence[grpc.aio.ClientInterceptor]) -> None:
        self._interceptors = (*interceptors, *_LAST)
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def method(self, kind: str, path: str, begin: Begin) -> Any:
        """What calls a method, of that kind, with the interceptors around it."""
        return _KINDS[kind](self, kind, path, begin)

    def channel(self) -> grpc.aio.Channel:
        """That of the running loop."""
        loop = asyncio.get_running_loop()
        if self._channel is None or self._loop is not loop:
            self._channel = grpc.aio.insecure_channel(_NOWHERE, interceptors=self._interceptors)
            self._loop = loop
        return self._channel

    async def close(self) -> None:
        """The calls in the mesh have ended."""
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close()
