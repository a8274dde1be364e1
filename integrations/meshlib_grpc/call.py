"""A call that goes on for a while, for threads: a `grpc.Call`, a `grpc.Future` and an iterator of responses.

Its first try begins with it; what follows (whether it is tried again, and the responses) is done by whoever
waits for it. A call that nobody waits for holds its place until it is cancelled or collected.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import grpc

from meshlib.core.actions import Facts, Flow
from meshlib.dataplane.drive import Answer, Body, FlightFailed
from meshlib.dataplane.exchange import Request
from meshlib.dataplane.http.dropped import undertaker
from meshlib.errors import ControlError
from meshlib_grpc.asked import Said, deserialized, said
from meshlib_grpc.bodies import Message, Messages
from meshlib_grpc.errors import Status, of_control, of_failure
from meshlib_grpc.hands import Gone, StreamHands
from meshlib_grpc.metadata import status_headers, to_metadata
from meshlib_grpc.outcome import CANCELLED, LEFT, OK, Ended
from meshlib_grpc.sender import Sender
from meshlib_grpc.unary import Wishes

_NO_FACTS = Facts()


class Call(grpc.Call, grpc.Future):  # type: ignore[misc]
    """One call. Thread-safe."""

    def __init__(
        self,
        sender: Sender,
        request: Request,
        body: Message | Messages,
        wishes: Wishes,
        deserialize: Any,
        *,
        single: bool,
    ) -> None:
        """`single`: it has one response, not a stream of them."""
        self._sender = sender
        self._request = request
        self._deserialize = deserialize
        self._single = single
        self._hands = StreamHands(sender, request, body, wishes)
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._callbacks: list[Callable[[], Any]] = []
        self._flow: Flow | None = None
        self._answer: Answer | None = None
        self._messages: Any = None
        self._how: Said | None = None
        self._error: Status | None = None
        self._response: Any = None
        undertaker.expect(sender)
        clock = sender.mesh.clock
        self._until = None if request.patience is None else clock() + request.patience
        try:
            flow = request.flow(sender.mesh, sender.mesh.prepare(request.name))
            self._flow = self._hands.begin_first(flow)
        except ControlError as error:
            self._fail(of_control(error))

    def __del__(self) -> None:
        # Wherever that is noticed: it may be under the lock of the pool.
        if not self._ended.is_set():
            undertaker.note(self._drop)

    def _drop(self) -> None:
        self.cancel()

    # Waiting

    def _settle(self, *, metadata: bool = False) -> None:
        """Waits until it is decided which try counts."""
        with self._lock:
            flow = self._flow
            if flow is None:
                return
            self._flow = None
            hands = self._hands
            hands.metadata = metadata
            try:
                answer = self._sender.run(self._request, flow, hands)
            except FlightFailed as error:
                self._fail(of_failure(error))
                return
            except Gone:
                self._fail(Status(CANCELLED, details=LEFT.details))
                return
            except BaseException:
                self._fail(Status(CANCELLED, details=LEFT.details))
                raise
            self._answer = answer
            body = answer.body
            if answer.own or not isinstance(body, Body):
                self._finish(said(answer, None))
                return
            watched, streamed = body.watched, hands.current
            assert streamed is not None  # noqa: S101 - what was answered
            if watched is not None:
                streamed.told = lambda ended: watched.trailed(status_headers(ended.code.value[0]))
                if streamed.ended is not None:
                    streamed.told(streamed.ended)
            self._messages = iter(body)

    def _next(self) -> bytes:
        """The next message. StopIteration: there is none, and the call has ended."""
        self._settle()
        with self._lock:
            if self._messages is None:
                raise StopIteration
            try:
                return next(self._messages)  # type: ignore[no-any-return]
            except StopIteration:
                streamed, answer = self._hands.current, self._answer
                assert streamed is not None and answer is not None  # noqa: S101, PT018 - there were messages
                ended = streamed.ended or LEFT
                self._messages = None
                self._finish(said(answer, ended))
                raise
            except FlightFailed as error:
                self._messages = None
                self._fail(of_failure(error))
                raise StopIteration from None

    def __iter__(self) -> "Call":
        return self

    def __next__(self) -> Any:
        try:
            message = self._next()
        except StopIteration:
            if self._error is not None:
                raise self._error from None
            raise
        try:
            return deserialized(message, self._deserialize)
        except Status as error:
            self._abandon(error)
            raise

    def _complete(self) -> None:
        """Waits for the one response, and the end."""
        try:
            message = self._next()
            with contextlib.suppress(StopIteration):
                self._next()
                raise Status(grpc.StatusCode.INTERNAL, details="The response has more than one message.")
            if self._error is None:
                self._response = deserialized(message, self._deserialize)
        except StopIteration:
            if self._error is None:
                self._error = Status(grpc.StatusCode.INTERNAL, details="The response has no message.")
        except Status as error:
            self._abandon(error)
        finally:
            self._tell()

    def start(self) -> "Call":
        """Lets a thread of its own wait for the one response."""
        threading.Thread(target=self._complete, name="meshlib-grpc-call", daemon=True).start()
        return self

    def completed(self) -> "Call":
        """Waits for the one response."""
        self._complete()
        return self

    def wait(self) -> tuple[Any, "Call"]:
        """The one response, and the call. Status."""
        self._complete()
        if self._error is not None:
            raise self._error
        return self._response, self

    def _finish(self, how: Said) -> None:
        self._how = how
        if how.code is not OK:
            self._error = how.status()
        if not self._single:
            self._tell()

    def _fail(self, error: Status) -> None:
        self._error = error
        if not self._single:
            self._tell()

    def _abandon(self, error: Status) -> None:
        """It goes on, but is of no use."""
        self._error = error
        if isinstance(self._answer, Answer) and isinstance(self._answer.body, Body):
            self._answer.body.close()
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for call in callbacks:
            call()

    # What an application asks

    @property
    def meshlib(self) -> Facts:
        """By which rule, where to, how often."""
        self._settle()
        if self._error is not None and self._answer is None:
            return self._error.meshlib
        return _NO_FACTS if self._answer is None else self._answer.facts

    def initial_metadata(self) -> Any:
        """Of the response, as the rules leave it."""
        self._settle(metadata=True)
        if self._how is not None:
            return self._how.initial
        return () if self._answer is None else to_metadata(self._answer.headers)

    def _end(self) -> Said | Status:
        self._settle()
        if self._single:
            self._ended.wait()
        if self._error is not None:
            return self._error
        if self._how is not None:
            return self._how
        streamed, answer = self._hands.current, self._answer
        assert streamed is not None and answer is not None  # noqa: S101, PT018 - it was settled
        call = streamed.call
        return said(answer, Ended(call.code(), call.details() or "", call.trailing_metadata() or ()))

    def trailing_metadata(self) -> Any:
        """Waits for the end."""
        found = self._end()
        return found.trailing if isinstance(found, Said) else found.trailing_metadata()

    def code(self) -> grpc.StatusCode:
        """Waits for the end."""
        found = self._end()
        return found.code if isinstance(found, Said) else found.code()

    def details(self) -> str | None:
        """Waits for the end."""
        found = self._end()
        return found.details if isinstance(found, Said) else found.details()

    def debug_error_string(self) -> str | None:
        """Waits for the end."""
        return f"{self.code().name}:{self.details()}"

    def is_active(self) -> bool:
        """Whether it goes on."""
        return not self._ended.is_set()

    def time_remaining(self) -> float | None:
        """Seconds for which the application waits; None: for ever."""
        return None if self._until is None else max(0.0, self._until - self._sender.mesh.clock())

    def cancel(self) -> bool:
        """Ends it."""
        if self._ended.is_set():
            return False
        hands = self._hands
        hands.cancel()
        if self._lock.acquire(blocking=False):  # else somebody waits, who notices
            try:
                flow, self._flow = self._flow, None
                if flow is not None:
                    flow.close()
                hands.close()
                if self._answer is not None and isinstance(self._answer.body, Body):
                    self._answer.body.close()
                self._messages = None
                if self._error is None:
                    self._error = Status(CANCELLED, details=LEFT.details)
                self._tell()
            finally:
                self._lock.release()
        return True

    def cancelled(self) -> bool:
        """Whether the application ended it."""
        return self._hands.cancelled

    def running(self) -> bool:
        """Whether it goes on."""
        return self.is_active()

    def done(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """The response of a call that has one. Status; FutureTimeoutError; FutureCancelledError."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._response

    def exception(self, timeout: float | None = None) -> Any:
        """Why it failed; None: it did not."""
        if not self._ended.wait(timeout):
            raise grpc.FutureTimeoutError
        if self.cancelled():
            raise grpc.FutureCancelledError
        return self._error

    def traceback(self, timeout: float | None = None) -> Any:
        """Of the error."""
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_callback(self, callback: Any) -> bool:
        """Calls it at the end; False: that was already."""
        with self._lock:
            if self._ended.is_set():
                return False
            self._callbacks.append(callback)
            return True

    def add_done_callback(self, fn: Any) -> None:
        """Calls `fn` with the call at its end, or now."""
        if not self.add_callback(lambda: fn(self)):
            fn(self)
