"""`aio_channel("reviews:9080")`: a `grpc.aio.Channel` whose calls the mesh routes. Generated stubs take it.

`wait_for_ready` has no meaning here, as of `methods`.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import Any, cast

import grpc

import meshlib
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ControlError, RequestError
from meshlib_grpc.aio_around import Around
from meshlib_grpc.aio_call import (
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
)
from meshlib_grpc.aio_sender import AsyncSender
from meshlib_grpc.asked import Deserialize, Serialize, Target, serialized
from meshlib_grpc.bodies import AsyncMessages, Message
from meshlib_grpc.method import Method
from meshlib_grpc.options import compressed
from meshlib_grpc.unary import wishes_of


class _Method(Method[AsyncSender]):
    """Begins calls."""

    def _unary(
        self,
        kind: Any,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: Any,
        compression: Any,
    ) -> Any:
        self._sender.refuse()
        body = Message(serialized(request, self._serialize))
        asked = self._target.request(self._path, body, metadata, timeout)
        wishes = wishes_of(credentials, compression)
        return kind(self._sender, asked, body, wishes, self._deserialize)

    def _stream(
        self,
        kind: Any,
        requests: Any,
        timeout: float | None,
        metadata: Any,
        credentials: Any,
        compression: Any,
    ) -> Any:
        self._sender.refuse()
        body = AsyncMessages(None if requests is None else each_of(requests, self._serialize))
        asked = self._target.request(self._path, body, metadata, timeout)
        wishes = wishes_of(credentials, compression)
        return kind(self._sender, asked, body, wishes, self._deserialize, self._serialize)


async def each_of(requests: Any, serialize: Any) -> AsyncIterator[bytes]:
    """The messages of an iterator of either kind."""
    if isinstance(requests, AsyncIterable):
        async for one in requests:
            yield serialized(one, serialize)
    else:
        for one in requests:
            yield serialized(one, serialize)


class UnaryUnary(_Method, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[misc]
    """One request, one response."""

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryUnaryCall:
        """The call, which is awaited."""
        return cast(
            UnaryUnaryCall, self._unary(UnaryUnaryCall, request, timeout, metadata, credentials, compression)
        )


class UnaryStream(_Method, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[misc]
    """One request, a stream of responses."""

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryStreamCall:
        """The call, which is iterated or read."""
        return cast(
            UnaryStreamCall,
            self._unary(UnaryStreamCall, request, timeout, metadata, credentials, compression),
        )


class StreamUnary(_Method, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[misc]
    """A stream of requests, one response."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> StreamUnaryCall:
        """The call, which is written to if there is no iterator, and awaited."""
        return cast(
            StreamUnaryCall,
            self._stream(StreamUnaryCall, request_iterator, timeout, metadata, credentials, compression),
        )


class StreamStream(_Method, grpc.aio.StreamStreamMultiCallable):  # type: ignore[misc]
    """Streams both ways."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> StreamStreamCall:
        """The call, which is written to if there is no iterator, and iterated or read."""
        return cast(
            StreamStreamCall,
            self._stream(StreamStreamCall, request_iterator, timeout, metadata, credentials, compression),
        )


class AsyncChannel(grpc.aio.Channel):  # type: ignore[misc]
    """A channel whose calls the mesh routes. One event loop at a time."""

    def __init__(
        self,
        target: str,
        mesh: Mesh | None = None,
        options: Iterable[tuple[str, Any]] | None = None,
        compression: grpc.Compression | None = None,
        interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    ) -> None:
        self._target = Target.parse(target)
        self._sender = AsyncSender(mesh or meshlib.default, compressed(options, compression))
        self._around = Around(interceptors) if interceptors else None

    def __repr__(self) -> str:
        return f"<AsyncChannel {self._target.authority} {self._sender!r}>"

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """What calls that method."""
        return self._method("unary_unary", UnaryUnary, method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """What calls that method."""
        return self._method("unary_stream", UnaryStream, method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """What calls that method."""
        return self._method("stream_unary", StreamUnary, method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """What calls that method."""
        return self._method("stream_stream", StreamStream, method, request_serializer, response_deserializer)

    def _method(self, kind: str, made: Any, path: str, serialize: Serialize, deserialize: Deserialize) -> Any:
        def begin(path: str) -> Any:
            return made(self._sender, self._target, path, serialize, deserialize)

        return begin(path) if self._around is None else self._around.method(kind, path, begin)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY if it is known what to do with calls to the target."""
        known = self._target.name in self._sender.mesh.view.tables
        return grpc.ChannelConnectivity.READY if known else grpc.ChannelConnectivity.IDLE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits until the state is another."""
        while self.get_state() is last_observed_state:
            try:
                await self._sender.mesh.aprepare(self._target.name)
            except (ControlError, RequestError):
                await asyncio.sleep(1.0)
            else:
                if self.get_state() is last_observed_state:
                    await asyncio.Event().wait()

    async def channel_ready(self) -> None:
        """Waits until it is known what to do with calls. ControlUnavailable; RefusedResource."""
        await self._sender.mesh.aprepare(self._target.name)

    async def close(self, grace: float | None = None) -> None:
        """Ends the calls, after `grace` seconds, and the connections; the mesh stays."""
        await self._sender.aclose(grace)
        if self._around is not None:
            await self._around.close()

    async def __aenter__(self) -> "AsyncChannel":
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()
