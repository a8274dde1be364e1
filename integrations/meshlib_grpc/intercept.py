"""`interceptors("reviews:9080")`: the mesh's rules for calls over a channel of one's own, for threads.

What each of the four kinds is told apart by is gRPC's; see `onward` for what holds.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc

import meshlib
from meshlib.core.actions import Attempt, Mirror
from meshlib.core.request import Failed
from meshlib.dataplane import exchange, network
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.limits import NO_TIMEOUTS, OwnTimeouts
from meshlib.dataplane.mesh import Mesh
from meshlib_grpc.blocking import failed
from meshlib_grpc.bodies import Message, Messages
from meshlib_grpc.deadlines import Deadlines
from meshlib_grpc.errors import Status
from meshlib_grpc.methods import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from meshlib_grpc.onward import Onward, Opaque, message_of, path_of, refused, target_for
from meshlib_grpc.outcome import NOTHING, ok, timeout_of
from meshlib_grpc.place import ELSEWHERE
from meshlib_grpc.sender import Sender
from meshlib_grpc.streamed import Streamed
from meshlib_grpc.unary import WELL, Unary, Wishes


class Interceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """Of all four kinds. Thread-safe."""

    def __init__(self, target: str, mesh: Mesh | None = None) -> None:
        self._target = target_for(target)
        self._sender = _Sender(mesh or meshlib.default, ())

    def __repr__(self) -> str:
        return f"<Interceptor {self._target.authority}>"

    def _method(self, kind: Any, details: Any) -> Any:
        return kind(self._sender, self._target, path_of(details), Opaque.of, message_of)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, which has ended."""
        details = client_call_details
        method, wishes = self._method(UnaryUnary, details), Onward(continuation, details, single=True)
        try:
            return method.call(request, details.timeout, details.metadata, wishes, told=True)[1]
        except Status as error:
            return error

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The call, which is iterated."""
        details = client_call_details
        method, wishes = self._method(UnaryStream, details), Onward(continuation, details, single=False)
        body = Message(Opaque.of(request))
        return method.begin(body, details.timeout, details.metadata, wishes, single=False)

    def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        """The call, which has ended."""
        details = client_call_details
        method, wishes = self._method(StreamUnary, details), Onward(continuation, details, single=True)
        body = method.messages(request_iterator)
        return method.begin(body, details.timeout, details.metadata, wishes, single=True).completed()

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        """The call, which is iterated."""
        details = client_call_details
        method, wishes = self._method(StreamStream, details), Onward(continuation, details, single=False)
        body = method.messages(request_iterator)
        return method.begin(body, details.timeout, details.metadata, wishes, single=False)


class _Sender(Sender):
    """Its tries go on."""

    def _connect(self) -> network.Connections:
        return cast(network.Connections, _Tries(self.mesh.clock))

    def mirror(self, mirror: Mirror, request: exchange.Request) -> None:
        """None are sent."""


class _Tries:
    """Stands where `blocking.Connections` does."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deadlines = Deadlines(clock)

    def unary(
        self, attempt: Attempt, message: Opaque, wishes: Wishes | Onward, cut: Cut | None = None
    ) -> Unary | Failed:
        """One try of a call with one request and one response. It can't be cut off."""
        assert isinstance(wishes, Onward)  # noqa: S101 - of our own interceptors
        now = self._clock()
        if (failure := refused(attempt, now)) is not None:
            return failure
        left = timeout_of(attempt, now)
        call = wishes.continuation(wishes.told(attempt, left), message.message)
        error = call.exception()
        if error is None:
            initial = call.initial_metadata()
            found = call.result()
            whole = None if found is None else Opaque.of(found)
            return Unary(ok(initial) if initial else NOTHING, whole, WELL, call)
        if not isinstance(error, grpc.RpcError):
            raise error
        return failed(error, attempt, self._clock, ELSEWHERE)

    def begin(self, attempt: Attempt, body: Message | Messages, wishes: Wishes | Onward) -> Streamed | Failed:
        """Begins one try of any call; one that has one response is made."""
        assert isinstance(wishes, Onward)  # noqa: S101 - of our own interceptors
        now = self._clock()
        if (failure := refused(attempt, now)) is not None:
            return failure
        left = timeout_of(attempt, now)
        if not wishes.single:  # the time of a try ends with its first message
            left = None if attempt.deadline is None else attempt.deadline - now
        told = wishes.told(attempt, left)
        reading = None if isinstance(body, Message) else body.reading()
        request = (
            message_of(body.message) if isinstance(body, Message) else map(message_of, body.each(reading))
        )
        call = wishes.continuation(told, request)
        wrapped = _Single(call) if wishes.single else _Many(call)
        return Streamed(wrapped, attempt, self._clock, ELSEWHERE, reading, self._deadlines)

    def send(
        self,
        attempt: Attempt,
        body: Any,
        own: OwnTimeouts = NO_TIMEOUTS,
        cut: Cut | None = None,
    ) -> Any:
        """No copies are sent."""
        raise NotImplementedError

    def begin_now(
        self, attempt: Attempt, body: Message | Messages, wishes: Wishes | Onward
    ) -> Streamed | Failed:
        """As `begin`, which waits for nothing."""
        return self.begin(attempt, body, wishes)

    def close(self) -> None:
        """The channel is the application's."""

    def abandon(self) -> None:
        """The channel is the application's."""


class _Many:
    """A call whose responses are handled as if they were bytes."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __iter__(self) -> Iterator[Opaque]:
        return self

    def __next__(self) -> Opaque:
        return Opaque.of(next(self._call))


class _Single(_Many):
    """A call that has one response, as if it were a stream of them."""

    _over = False

    def add_callback(self, callback: Any) -> bool:
        """Whoever makes such a call waits for its end."""
        return True

    def __next__(self) -> Opaque:
        if self._over:
            raise StopIteration
        self._over = True
        error = self._call.exception()
        if error is not None:
            raise error
        message = self._call.result()
        if message is None:  # none came
            raise StopIteration
        return Opaque.of(message)
