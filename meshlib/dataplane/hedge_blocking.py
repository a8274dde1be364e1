"""The tries of one hedged request that are in flight, for threads: what a driver begins, awaits and gives up.

Rules:

- Each try is a thread, so that its wait can be cut off; a client has `MOST` of them at most. Beyond that the
  caller's own thread makes the try: it is as good as any, but nothing goes on beside it.
- A body that is still the application's to give is read by the caller's thread, part by part, as the try asks
  for it. There is one such try at a time: another begins when it has failed, or when the body is known.
- A response that nobody waits for any more is closed, whenever it comes.
- Errors of the application's own body, and its own limits, come out of the wait.
"""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from meshlib.core.actions import Attempt, Await, Begin, Ended
from meshlib.core.request import Failed, Failure
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.limits import Broken
from meshlib.dataplane.network import Received, Response

MOST = 64
R = TypeVar("R", bound=Received)


Came = tuple[R | None, Ended | None]
"""The response that came, if one did, and the event for the flow: None if no try has ended."""


def came_of(number: int, sent: R | Failed) -> Came[R]:
    """What became of the try of that number."""
    if isinstance(sent, Failed):
        return None, Ended(number, sent)
    return sent, Ended(number, sent.head)


def drop(sent: Received | Failed | BaseException) -> None:
    """Closes a response that nobody waits for."""
    if not isinstance(sent, (Failed, BaseException)):
        sent.close()


class Threads:
    """How many threads make tries for one client."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(MOST)

    def start(self, work: Callable[[], None]) -> bool:
        """Does it on a thread; False: too many are at work, or there are no more to be had."""
        if not self._free.acquire(blocking=False):
            return False
        context = contextvars.copy_context()

        def run() -> None:
            try:
                context.run(work)
            finally:
                self._free.release()

        try:
            threading.Thread(target=run, name="meshlib-hedge", daemon=True).start()
        except RuntimeError:
            self._free.release()
            return False
        return True


class Feed:
    """A body on its way from the caller's thread, which reads it, to that of the try, which iterates this."""

    def __init__(self, content: Iterable[bytes], changed: threading.Condition) -> None:
        """`changed` is told when a part is asked for, or given."""
        self._content = iter(content)
        self._changed = changed
        self._given: bytes | None = b""
        self.asks = False
        """Whether the try waits for a part."""
        self.closed = False
        """Whether nobody gives one any more."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Broken: the try is given up."""
        with self._changed:
            if self._given is not None:
                self.asks = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.closed or not self.asks)
            if self.closed:
                raise Broken(Failed(Failure.RESET, "given up"))
            if self._given is None:
                raise StopIteration
            return self._given

    def give(self) -> None:
        """The next part, or the end. Errors of the body."""
        given = next(self._content, None)
        with self._changed:
            self._given, self.asks = given, False
            self._changed.notify_all()


class Tries:
    """Of one request."""

    def __init__(
        self,
        send: Callable[[Attempt, Cut | None, Feed | None], Response | Failed],
        threads: Threads,
        unread: Callable[[], Iterable[bytes] | None],
    ) -> None:
        """`send` is given what feeds it, if it must not read the body itself: if there is something `unread`,
        which only the caller's thread may read.
        """
        self._send = send
        self._threads = threads
        self._unread = unread
        self._feed: Feed | None = None
        self._changed = threading.Condition()
        self._flying: dict[int, Cut] = {}
        self._came: deque[tuple[int, Response | Failed | BaseException]] = deque()
        self._closed = False

    def do(self, step: Begin | Await) -> Came[Response]:
        """What a flow says."""
        if isinstance(step, Await):
            return self._wait(step.seconds)
        self._begin(step.attempt)
        return None, None

    def _begin(self, attempt: Attempt) -> None:
        cut, feed = Cut(), None
        self._flying[attempt.number] = cut
        if (unread := self._unread()) is not None:
            feed = self._feed = Feed(unread, self._changed)
        if not self._threads.start(lambda: self._make(attempt, cut, feed)):
            self._make(attempt, None, None)

    def _make(self, attempt: Attempt, cut: Cut | None, feed: Feed | None) -> None:
        sent: Response | Failed | BaseException
        try:
            sent = self._send(attempt, cut, feed)
        except BaseException as error:  # noqa: BLE001 - it goes up from where the try is awaited
            sent = error
        with self._changed:
            if not self._closed:
                del self._flying[attempt.number]
                self._came.append((attempt.number, sent))
                self._changed.notify_all()
                return
        drop(sent)

    def _wait(self, seconds: float | None) -> Came[Response]:
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            with self._changed:
                left = None if until is None else until - time.monotonic()
                if not self._changed.wait_for(lambda: self._came or self._asks(), left):
                    return None, None
                if self._came:
                    number, sent = self._came.popleft()
                    break
            assert self._feed is not None  # noqa: S101 - it was what asked
            self._feed.give()
        if isinstance(sent, BaseException):
            raise sent
        return came_of(number, sent)

    def _asks(self) -> bool:
        return self._feed is not None and self._feed.asks

    def close(self) -> None:
        """Gives up what is in flight, without waiting for it."""
        with self._changed:
            self._closed = True
            if self._feed is not None:
                self._feed.closed = True
                self._changed.notify_all()
            flying, came = list(self._flying.values()), list(self._came)
            self._flying.clear()
            self._came.clear()
        for cut in flying:
            cut.now()
        for _, sent in came:
            drop(sent)
