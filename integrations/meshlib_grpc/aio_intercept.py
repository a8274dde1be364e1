"""`aio_interceptors("reviews:9080")`: the mesh's rules for calls over a channel of one's own, for tasks.

gRPC wants one for each of the four kinds; see `onward` for what holds.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc

import meshlib
from meshlib.core.actions import Attempt, Flow, Mirror
from meshlib.core.request import Failed
from meshlib.dataplane import exchange, network
from meshlib.dataplane.http.limits import NO_TIMEOUTS, OwnTimeouts
from meshlib.dataplane.mesh import Mesh
from meshlib_grpc.aio_call import (
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
)
from meshlib_grpc.aio_channel import each_of
from meshlib_grpc.aio_sender import AsyncHands, AsyncSender
from meshlib_grpc.asynchronous import AsyncStreamed, failed
from meshlib_grpc.bodies import AsyncMessages, Message
from meshlib_grpc.metadata import Metadata
from meshlib_grpc.onward import AloneTarget, Onward, Opaque, message_of, path_of, refused, target_for
from meshlib_grpc.outcome import ok, timeout_of
from meshlib_grpc.place import ELSEWHERE
from meshlib_grpc.unary import WELL, Unary, Wishes


def interceptors_for(target: str, mesh: Mesh | None) -> list[grpc.aio.ClientInterceptor]:
    """One of each kind."""
    asked, sender = target_for(target), _Sender(mesh or meshlib.default, ())
    return [kind(asked, sender) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]


class _Interceptor:
    def __init__(self, target: AloneTarget, sender: "_Sender") -> None:
        self._target = target
        self._sender = sender

    def __repr__(self) -> str:
        return f"<{type(self).__name__.removeprefix('_')} {self._target.authority}>"

    def _call(
        self, kind: Any, continuation: Any, details: Any, request: Any, *, streams: bool, single: bool
    ) -> Any:
        body: Message | AsyncMessages
        body = AsyncMessages(each_of(request, Opaque.of)) if streams else Message(Opaque.of(request))
        asked = self._target.request(path_of(details), body, details.metadata, details.timeout)
        onward = Onward(continuation, details, single, _metadata)
        if streams:
            return kind(self._sender, asked, body, onward, message_of, Opaque.of)
        return kind(self._sender, asked, body, onward, message_of)


class _UnaryUnary(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(
            UnaryUnaryCall, continuation, client_call_details, request, streams=False, single=True
        )


class _UnaryStream(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._call(
            UnaryStreamCall, continuation, client_call_details, request, streams=False, single=False
        )


class _StreamUnary(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return self._call(
            StreamUnaryCall, continuation, client_call_details, request_iterator, streams=True, single=True
        )


class _StreamStream(_Interceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return self._call(
            StreamStreamCall, continuation, client_call_details, request_iterator, streams=True, single=False
        )


def _metadata(found: Metadata) -> grpc.aio.Metadata:
    return grpc.aio.Metadata.from_tuple(found)


class _Sender(AsyncSender):
    """Its tries go on."""

    def _connect(self) -> network.AsyncConnections:
        return cast(network.AsyncConnections, _Tries(self.mesh.clock))

    def begin(self, request: exchange.Request, hands: AsyncHands) -> Flow | None:
        """A try goes on by what has to be awaited."""
        return None

    def mirror(self, mirror: Mirror, request: exchange.Request) -> None:
        """None are sent."""


class _Tries:
    """Stands where `asynchronous.Connections` does."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    async def unary(self, attempt: Attempt, message: Opaque, wishes: Wishes | Onward) -> Unary | Failed:
        """One try of a call with one request and one response."""
        assert isinstance(wishes, Onward)  # noqa: S101 - of our own interceptors
        now = self._clock()
        if (failure := refused(attempt, now)) is not None:
            return failure
        left = timeout_of(attempt, now)
        call = await wishes.continuation(wishes.told(attempt, left), message.message)
        try:
            whole = await call
        except grpc.aio.AioRpcError as error:
            return await failed(error, attempt, self._clock, ELSEWHERE)
        found = None if whole is None else Opaque.of(whole)
        return Unary(ok(await call.initial_metadata()), found, WELL, call)

    async def begin(
        self, attempt: Attempt, body: Message | AsyncMessages, wishes: Wishes | Onward
    ) -> AsyncStreamed | Failed:
        """Begins one try of any call."""
        assert isinstance(wishes, Onward)  # noqa: S101 - of our own interceptors
        now = self._clock()
        if (failure := refused(attempt, now)) is not None:
            return failure
        left = None if attempt.deadline is None else attempt.deadline - now
        told = wishes.told(attempt, left)
        reading = None if isinstance(body, Message) else body.reading()
        request = message_of(body.message) if isinstance(body, Message) else _messages(body.each(reading))
        call = await wishes.continuation(told, request)
        wrapped = _Single(call) if wishes.single else _Many(call)
        return AsyncStreamed(wrapped, attempt, self._clock, ELSEWHERE, reading)

    async def send(self, attempt: Attempt, body: Any, own: OwnTimeouts = NO_TIMEOUTS) -> Any:
        """No copies are sent."""
        raise NotImplementedError

    def close(self) -> None:
        """The channel is the application's."""


async def _messages(each: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for one in each:
        yield message_of(one)


class _Many:
    """A call whose responses are handled as if they were bytes."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def read(self) -> Any:
        """The next response; EOF."""
        message = await self._call.read()
        return message if message is grpc.aio.EOF else Opaque.of(message)


class _Single(_Many):
    """A call that has one response, as if it were a stream of them."""

    _over = False

    async def read(self) -> Any:
        """The response, then EOF."""
        if self._over:
            return grpc.aio.EOF
        self._over = True
        message = await self._call
        return grpc.aio.EOF if message is None else Opaque.of(message)  # None: none came
