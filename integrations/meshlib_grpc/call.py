"""A call that goes on for a while, for threads: a `grpc.Call`, a `grpc.Future` and an iterator of responses.

Its first try begins with it; what follows (whether it is tried again, and the responses) is done by whoever
waits for it. Rules:

- To begin a call waits for nothing: what has to be waited for (what is known of the target, a connection, an
  injected delay) is waited for on a thread of its own.
- A call ends when gRPC tells that it has, also if nobody waits for it or reads. Whoever waits or reads then
  takes note of it; if nobody does, a thread that does so for all calls (`dropped`). Only where it is to be
  tried again it goes on on a thread of its own.
- Who asks for the metadata waits for nobody who reads messages; who wants to be told of the end waits for
  nothing.
"""

import contextlib
import contextvars
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from meshlib.core.actions import Action, Attempt, Facts, Flow, Raise, Reply
from meshlib.dataplane.drive import Answer, Body, FlightFailed
from meshlib.dataplane.exchange import Request
from meshlib.dataplane.http.dropped import undertaker
from meshlib.errors import ControlError
from meshlib_grpc.alone import came_of, decide, drop, told
from meshlib_grpc.asked import Said, deserialized, said
from meshlib_grpc.bodies import Message, Messages
from meshlib_grpc.errors import Status, of_control, of_failure
from meshlib_grpc.hands import Gone, StreamHands
from meshlib_grpc.metadata import status_headers, to_metadata
from meshlib_grpc.outcome import CANCELLED, CLOSED, LEFT, OK, UNKNOWN, Ended
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
        self._hands = StreamHands(sender, request, body, wishes, told(weakref.ref(self)))
        self._body = body
        self._deciding = threading.RLock()
        """Of who finds out which try counts."""
        self._reading = threading.RLock()
        """Of who reads."""
        self._telling = threading.Lock()
        """For a moment, of what is to be told at the end."""
        self._ended = threading.Event()
        self._callbacks: list[Callable[[], Any]] = []
        self._flow: Flow | None = None
        self._found: threading.Event | None = None
        """Is set when it is known what to do with the call; None: that was known at once."""
        self._raised: BaseException | None = None
        self._came: Answer | BaseException | None = None
        """What its flow came to on a thread of its own, until somebody looks."""
        self._why = LEFT
        """As what it ends if it is given up."""
        self._answer: Answer | None = None
        self._messages: Any = None
        self._unread: deque[bytes] = deque()
        """What had come when it ended."""
        self._heard = False
        """Whether gRPC has told of the end of a try."""
        self._how: Said | None = None
        self._error: Status | None = None
        self._response: Any = None
        undertaker.expect(sender)
        clock = sender.mesh.clock
        self._until = None if request.patience is None else clock() + request.patience
        view = sender.mesh.known(request.name)
        if view is not None:
            self._flow, first = self._hands.begin_first(request.flow(sender.mesh, view))
            self._begun(first)
        else:
            self._found = threading.Event()
            begin = contextvars.copy_context().run
            threading.Thread(
                target=begin, args=(self._begin, self._found), name="meshlib-grpc-begin", daemon=True
            ).start()
        sender.went_on(self)

    def _begin(self, found: threading.Event) -> None:
        """Finds out what to do with it, and begins."""
        sender, request = self._sender, self._request
        first: Action | None = None
        try:
            mesh = sender.mesh
            begun = mesh.clock()
            view = mesh.prepare(request.name)
            request.waited(mesh.clock() - begun)
            if not self._hands.cancelled:
                self._flow, first = self._hands.begin_first(request.flow(mesh, view))
        except ControlError as error:
            self._fail(of_control(error))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._raised = error
            self._fail(Status(UNKNOWN, details=repr(error)))
        found.set()
        if self._hands.cancelled:
            with self._deciding:
                self._leave()
        elif first is not None:
            self._begun(first)

    def _begun(self, first: Action) -> None:
        """It has; `first` is what its flow said."""
        if self._single:  # somebody waits
            return
        if isinstance(first, Reply | Raise):
            self._settle()
        elif not isinstance(first, Attempt):
            with self._deciding:
                self._go_on()
        self._tidy()

    def __del__(self) -> None:
        # Wherever that is noticed: it may be under the lock of the pool.
        if not self._ended.is_set():
            undertaker.note(self._drop)

    def _drop(self) -> None:
        self.cancel()

    # What happens while nobody waits

    def hear(self) -> None:
        """gRPC tells of the end of a try, on its own thread: nothing must be waited for there, or closed."""
        self._heard = True
        if not self._single and self._reading.acquire(blocking=False):
            self._reading.release()
            undertaker.leave(self._tidy)

    def _tidy(self) -> None:
        """Takes note of its end, if it has ended and nobody waits or reads, who looks here afterwards. Does
        not wait.
        """
        if self._ended.is_set():
            return
        hands = self._hands
        if not (hands.cancelled or (self._heard and not self._single and hands.over)):
            return
        if self._reading.acquire(blocking=False):
            try:
                if self._deciding.acquire(blocking=False):
                    try:
                        self._take_note()
                    finally:
                        self._deciding.release()
            finally:
                self._reading.release()

    def _take_note(self) -> None:
        hands, flow = self._hands, self._flow
        if hands.cancelled:
            self._give_up()
            return
        if flow is not None:
            self._flow, more = hands.foresee(flow)
            if more:
                self._go_on()
                return
            self._settle()
        with contextlib.suppress(StopIteration):
            while self._messages is not None:
                self._unread.append(self._pull())

    def _go_on(self) -> None:
        """What follows is waited for on a thread of its own, which does not keep a call that is dropped."""
        flow, self._flow = self._flow, None
        if flow is None:
            return
        hands = self._hands
        # A first message may be an answer to what is asked after the head.
        hands.metadata, hands.patience = isinstance(self._body, Messages), True
        found = self._found = threading.Event()
        asked = (weakref.ref(self), found, self._sender, self._request, flow, hands)
        threading.Thread(target=decide, args=asked, name="meshlib-grpc-call", daemon=True).start()

    def decided(self, came: Answer | BaseException, found: threading.Event) -> None:
        """On that thread: what its flow came to."""
        self._came = came
        found.set()
        with contextlib.suppress(Exception):  # it is the call's error, too
            self._settled()

    # Waiting

    def _settle(self, *, metadata: bool = False) -> None:
        """Waits until it is decided which try counts."""
        with self._deciding:
            if self._found is not None:
                self._found.wait()
                raised, self._raised = self._raised, None
                if self._hands.cancelled:
                    self._fail(Status(CANCELLED, details=self._why.details))
                elif raised is not None:
                    self._fail(Status(UNKNOWN, details=repr(raised)))
                    raise raised
            hands = self._hands
            answer, self._came = self._came, None
            if answer is None:
                flow, self._flow = self._flow, None
                if flow is None:
                    return
                hands.metadata = metadata
                answer = came_of(self._sender, self._request, flow, hands)
            if isinstance(answer, FlightFailed):
                self._fail(of_failure(answer))
                return
            if isinstance(answer, BaseException):
                self._fail(Status(CANCELLED, details=self._why.details))
                if isinstance(answer, Gone):
                    return
                raise answer
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
            self._body.once()
            self._messages = iter(body)

    def _next(self) -> bytes:
        """The next message. StopIteration: there is none, and the call has ended."""
        with self._reading:
            self._settle()
            if self._unread:
                return self._unread.popleft()
            if self._messages is None:
                raise StopIteration
            return self._pull()

    def _pull(self) -> bytes:
        """As `_next`, of one that is read."""
        try:
            return next(self._messages)  # type: ignore[no-any-return]
        except StopIteration:
            streamed, answer = self._hands.current, self._answer
            assert streamed is not None and answer is not None  # noqa: S101, PT018 - there were messages
            ended = streamed.ended or self._why
            self._messages = None
            self._finish(said(answer, ended, streamed.head))
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
        finally:
            self._tidy()
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
        threading.Thread(target=self._complete_alone, name="meshlib-grpc-call", daemon=True).start()
        return self

    def _complete_alone(self) -> None:
        with contextlib.suppress(Exception):  # it is the call's error, too
            self._complete()

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
        self._unread.clear()
        if isinstance(self._answer, Answer) and isinstance(self._answer.body, Body):
            self._answer.body.close()
        self._tell()

    def _tell(self) -> None:
        with self._telling:
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        self._sender.has_ended(self)
        self._body.drop()
        for call in callbacks:
            call()

    # What an application asks

    @property
    def meshlib(self) -> Facts:
        """By which rule, where to, how often."""
        self._settled()
        if self._error is not None and self._answer is None:
            return self._error.meshlib
        return _NO_FACTS if self._answer is None else self._answer.facts

    def initial_metadata(self) -> Any:
        """Of the response, as the rules leave it."""
        self._settled(metadata=True)
        if self._how is not None:
            return self._how.initial
        return () if self._answer is None else to_metadata(self._answer.headers)

    def _settled(self, *, metadata: bool = False) -> None:
        try:
            self._settle(metadata=metadata)
        finally:
            self._tidy()

    def _end(self) -> Said | Status:
        self._settled()
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
        self._hands.cancel()
        if self._found is not None:
            self._found.set()  # nobody is to wait for that any more
        self._tidy()
        return True

    def _give_up(self) -> None:
        """Nobody waits for it."""
        self._leave()
        came, self._came = self._came, None
        if came is not None:
            drop(came)
        if self._answer is not None and isinstance(self._answer.body, Body):
            self._answer.body.close()
        self._messages = None
        self._unread.clear()
        if self._error is None:
            self._error = Status(CANCELLED, details=self._why.details)
        self._tell()

    def _leave(self) -> None:
        """Ends what was begun, before somebody has waited for it."""
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.close()
        self._hands.close()

    def end(self) -> None:
        """The channel is closed."""
        if not self._ended.is_set():
            self._why = CLOSED
            self.cancel()

    def cancelled(self) -> bool:
        """Whether the application ended it."""
        return self._hands.cancelled and self._why is LEFT

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
        with self._telling:
            if self._ended.is_set():
                return False
            self._callbacks.append(callback)
            return True

    def add_done_callback(self, fn: Any) -> None:
        """Calls `fn` with the call at its end, or now."""
        if not self.add_callback(lambda: fn(self)):
            fn(self)
