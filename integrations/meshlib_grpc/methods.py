"""What a stub calls, of the four kinds, for threads.

`wait_for_ready` has no meaning here: a call waits until its target is known, and a connection that can't be
made is a try that failed, by the rules for those.
"""

from typing import Any

import grpc

from meshlib.dataplane.drive import Answer, Body, FlightFailed
from meshlib.errors import ControlError
from meshlib_grpc.asked import deserialized, missing, said, serialized
from meshlib_grpc.bodies import Message, Messages
from meshlib_grpc.call import Call
from meshlib_grpc.done import Done
from meshlib_grpc.errors import Status, of_control, of_failure
from meshlib_grpc.hands import UnaryHands
from meshlib_grpc.metadata import status_headers
from meshlib_grpc.method import Method
from meshlib_grpc.sender import Sender
from meshlib_grpc.unary import Unary, Wishes, wishes_of


class _Method(Method[Sender]):
    """Begins calls."""

    def begin(
        self, body: Message | Messages, timeout: float | None, metadata: Any, wishes: Wishes, *, single: bool
    ) -> Call:
        """The call, which begins. ValueError: the channel is closed."""
        self._sender.refuse()
        asked = self._target.request(self._path, body, metadata, timeout)
        return Call(self._sender, asked, body, wishes, self._deserialize, single=single)

    def messages(self, requests: Any) -> Messages:
        """The messages of a request."""
        return Messages(requests, self._serialize)


class UnaryUnary(_Method, grpc.UnaryUnaryMultiCallable):  # type: ignore[misc]
    """One request, one response."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """The response. Status and its kind, see `errors`."""
        return self.call(request, timeout, metadata, wishes_of(credentials, compression), told=False)[0]

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> tuple[Any, "Done"]:
        """The response, and the call."""
        wishes = wishes_of(credentials, compression)
        response, done = self.call(request, timeout, metadata, wishes, told=True)
        assert done is not None  # noqa: S101 - it was asked for
        return response, done

    def call(
        self, request: Any, timeout: float | None, metadata: Any, wishes: Wishes, *, told: bool
    ) -> tuple[Any, "Done | None"]:
        """The response and, to be `told`, the call. Status. ValueError: the channel is closed."""
        self._sender.refuse()
        message = serialized(request, self._serialize)
        asked = self._target.request(self._path, Message(message), metadata, timeout)
        hands = UnaryHands(self._sender, asked, message, wishes)
        try:
            answer = self._sender.send(asked, hands)
        except FlightFailed as error:
            raise of_failure(error) from None
        except ControlError as error:
            raise of_control(error) from error
        last = hands.last
        if answer.own or last is None:
            raise said(answer, None).status()
        if last.call is None:
            raise _ended_badly(answer, last)
        if last.missing:
            raise missing(answer, last.end())
        whole = last.whole
        response = deserialized(b"" if whole is None else whole, self._deserialize)
        return response, Done(said(answer, last.end()), response) if told else None

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Call:
        """The call, which a thread of its own waits for."""
        body = Message(serialized(request, self._serialize))
        return self.begin(body, timeout, metadata, wishes_of(credentials, compression), single=True).start()


def _ended_badly(answer: Answer, last: Unary) -> Status:
    body = answer.body
    if isinstance(body, Body):  # its head came before
        if body.watched is not None:
            body.watched.trailed(status_headers(last.ended.code.value[0]))
        try:
            for _ in body:
                pass
        except FlightFailed as error:
            return of_failure(error)
    return said(answer, last.ended, last.head).status()


class UnaryStream(_Method, grpc.UnaryStreamMultiCallable):  # type: ignore[misc]
    """One request, a stream of responses."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Call:
        """The call, which is iterated."""
        body = Message(serialized(request, self._serialize))
        return self.begin(body, timeout, metadata, wishes_of(credentials, compression), single=False)


class StreamUnary(_Method, grpc.StreamUnaryMultiCallable):  # type: ignore[misc]
    """A stream of requests, one response."""

    def __call__(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """The response. Status and its kind, see `errors`."""
        return self.with_call(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)[
            0
        ]

    def with_call(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> tuple[Any, Call]:
        """The response, and the call."""
        body, wishes = self.messages(request_iterator), wishes_of(credentials, compression)
        return self.begin(body, timeout, metadata, wishes, single=True).wait()

    def future(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Call:
        """The call, which a thread of its own waits for."""
        body, wishes = self.messages(request_iterator), wishes_of(credentials, compression)
        return self.begin(body, timeout, metadata, wishes, single=True).start()


class StreamStream(_Method, grpc.StreamStreamMultiCallable):  # type: ignore[misc]
    """Streams both ways."""

    def __call__(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Call:
        """The call, which is iterated."""
        body, wishes = self.messages(request_iterator), wishes_of(credentials, compression)
        return self.begin(body, timeout, metadata, wishes, single=False)
