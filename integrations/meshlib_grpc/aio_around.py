"""Interceptors of the application around calls for tasks, for which gRPC has no `intercept_channel`.

gRPC runs interceptors only where it makes a channel. So each method has a channel of gRPC's own that is never
connected: after the application's interceptors comes one of ours, which begins the call in the mesh.
"""

from collections.abc import Callable, Sequence
from typing import Any

import grpc

Begin = Callable[[str], Any]
"""Gives what calls the method with that path: an interceptor may have named another."""
_NOWHERE = "unix:///dev/null"


class _Last:
    def __init__(self, begin: Begin) -> None:
        self._begin = begin

    def _call(self, details: Any, request: Any) -> Any:
        method = details.method
        return self._begin(method.decode() if isinstance(method, bytes) else method)(
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


_KINDS = {
    "unary_unary": _UnaryUnary,
    "unary_stream": _UnaryStream,
    "stream_unary": _StreamUnary,
    "stream_stream": _StreamStream,
}


class Around:
    """Of one channel."""

    def __init__(self, interceptors: Sequence[grpc.aio.ClientInterceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._channels: list[grpc.aio.Channel] = []

    def method(self, kind: str, path: str, begin: Begin) -> Any:
        """What calls a method, of that kind, with the interceptors around it. In a running loop."""
        interceptors = (*self._interceptors, _KINDS[kind](begin))
        channel = grpc.aio.insecure_channel(_NOWHERE, interceptors=interceptors)
        self._channels.append(channel)
        return getattr(channel, kind)(path)

    async def close(self) -> None:
        """The calls in the mesh have ended."""
        for channel in self._channels:
            await channel.close()
