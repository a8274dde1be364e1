"""A try of a call that goes on for a while, for threads: begun now, waited for later.

It is decided upon when its first message, its status or its first metadata is here, by whoever waits for it.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import grpc

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, ResponseHead
from meshlib.dataplane.http.limits import Broken
from meshlib.dataplane.http.read import Need
from meshlib_grpc.bodies import Messages, Reading
from meshlib_grpc.deadlines import Deadlines
from meshlib_grpc.outcome import LEFT, UNKNOWN, Begun, Doubt, Ended, begun, failure, of_status, too_late
from meshlib_grpc.place import Place, confirmed

_MOMENTS = (0.001, 0.004, 0.01)
"""Seconds between two looks at a call whose first metadata say nothing."""


class Trying:
    """What tries for threads and for tasks have in common."""

    version = b"HTTP/2"
    reason = b""
    whole: bytes | None = None

    def __init__(
        self,
        call: Any,
        attempt: Attempt,
        clock: Callable[[], float],
        place: Place,
        reading: Reading | None,
    ) -> None:
        """`place` is released once, at its end, and `reading` left: the messages of a stream of requests."""
        self._reading_requests = reading
        self.head = ResponseHead(200)
        self.ended: Ended | None = None
        """How it ended; None: it goes on."""
        self.broken: Failed | None = None
        """What broke it off between its head and its first message."""
        self.told: Callable[[Ended], None] = lambda ended: None
        """Is called when it ends."""
        self.call = call
        self._attempt = attempt
        self._clock = clock
        self._place = place
        self._over = False

    def again(self, failed: Failed) -> bool:
        """Whether it is to be made once more, on a new channel."""
        return self._place.again(failed)

    def _came_to(self, outcome: "ResponseHead | Begun | Failed") -> "Self | Failed":
        """It ended before a message came."""
        if isinstance(outcome, Failed):
            return outcome
        if isinstance(outcome, Begun):
            self.head, self.broken = outcome
        else:
            self.head = outcome
        return self

    def ready(self) -> bytes | Need:
        """It can't be told without waiting."""
        return Need.NOTHING if self.ended is not None else Need.DATA

    def _end(self, ended: Ended, connection: Doubt | None = None) -> None:
        """`connection`: what became of it."""
        self.ended = ended
        self.told(ended)
        if not self._over:
            self._over = True
            if self._reading_requests is not None:
                self._reading_requests.leave()
            self._place.release(broken=connection is Doubt.NOT_CONNECTED)


class Streamed(Trying):
    """Thread-safe as far as gRPC's own call is: one thread reads, any may cancel."""

    def __init__(
        self,
        call: Any,
        attempt: Attempt,
        clock: Callable[[], float],
        place: Place,
        reading: Reading | None,
        deadlines: Deadlines,
    ) -> None:
        super().__init__(call, attempt, clock, place, reading)
        self._first: bytes | None = None
        self._decided = False
        """Whether the time of the try does not matter any more."""
        self._cut = False
        """Whether it ran out."""
        one, whole = attempt.try_deadline, attempt.deadline
        if one is not None and (whole is None or one < whole):
            deadlines.add(self, one)

    def out_of_time(self) -> None:
        """The time of the try is over."""
        if not self._decided:
            self._cut = True
            self.call.cancel()

    @property
    def over(self) -> bool:
        """Whether gRPC knows how it ended; then nothing of it has to be waited for."""
        return not self.call.is_active()

    def settle(self, *, metadata: bool = False, patience: bool = False) -> "Failed | Streamed":
        """Waits for the first message or the status; `metadata`: the first metadata is enough; `patience`: if
        they say nothing, a status may come a moment after them.
        """
        try:
            if metadata:
                initial = self.call.initial_metadata()
                for seconds in _MOMENTS if patience and not initial else ():
                    if not self.over:
                        time.sleep(seconds)
                if initial or self.call.is_active():
                    self.head = begun(initial)
                    return self
            self._first = next(self.call)
        except StopIteration:
            self._end(self._ended(self.call))
        except grpc.RpcError as error:
            error.__traceback__ = None  # it is the call itself, which would hold whoever waited
            ended, initial = self._ended(error), self._initial()
            connection = confirmed(ended, self._place)
            self._end(ended, connection)
            if self._cut:
                return too_late(self._attempt, self._clock())
            return self._came_to(of_status(ended, initial, self._attempt, self._clock, connection))
        finally:
            self._decided = True
        self._place.answered()
        self.head = begun(self.call.initial_metadata())
        return self

    def __iter__(self) -> Iterator[bytes]:
        """The messages. Broken: they broke off, or the time ran out."""
        first, self._first = self._first, None
        if first is not None:
            yield first
        if self.broken is not None:
            raise Broken(self.broken)
        if self.ended is not None:
            return
        try:
            yield from self.call
        except grpc.RpcError as error:
            ended = self._ended(error)
            connection = confirmed(ended, self._place)
            self._end(ended, connection)
            failed = failure(ended, self._attempt, self._clock, connection, head=True)
            if failed is not None:
                raise Broken(failed) from None
            return
        self._end(self._ended(self.call))

    def close(self) -> None:
        """Ends it."""
        self._decided = True
        if self.ended is None:
            self.call.cancel()
            self._end(LEFT)

    def _initial(self) -> Any:
        """The metadata that came before the end. To ask a call for it might wait even now: one that could not
        begin may hear of its end before it hears that there are none.
        """
        state = getattr(self.call, "_state", None)
        if state is not None and state.initial_metadata is None:
            return ()
        return self.call.initial_metadata() or ()

    def _ended(self, call: Any) -> Ended:
        ended = Ended(call.code() or UNKNOWN, call.details() or "", call.trailing_metadata() or ())
        reading = self._reading_requests
        body = None if reading is None else reading.body
        if ended.code is UNKNOWN and isinstance(body, Messages) and body.unserialized:
            return Ended(grpc.StatusCode.INTERNAL, "Exception serializing request!")  # gRPC's words
        return ended
