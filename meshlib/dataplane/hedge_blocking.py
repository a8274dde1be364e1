"""The tries of one hedged request that are in flight, for threads: what a driver begins, awaits and gives up.

Rules:

- Each try is a thread, so that its wait can be cut off; a client has `MOST` of them at most. Beyond that, and
  where the body is still the application's to give, the caller's own thread makes the try: it is as good as
  any, but nothing goes on beside it.
- A response that nobody waits for any more is closed, whenever it comes.
- Errors of the application's own body, and its own limits, come out of the wait.
"""

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from meshlib.core.actions import Attempt, Await, Begin, Ended
from meshlib.core.request import Failed
from meshlib.dataplane.http.cut import Cut
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


class Tries:
    """Of one request."""

    def __init__(
        self,
        send: Callable[[Attempt, Cut | None], Response | Failed],
        threads: Threads,
        whole: Callable[[], bool],
    ) -> None:
        """`whole`: whether the body is known, so that another thread may send it."""
        self._send = send
        self._threads = threads
        self._whole = whole
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
        cut = Cut()
        self._flying[attempt.number] = cut
        if not self._whole() or not self._threads.start(lambda: self._make(attempt, cut)):
            self._make(attempt, None)

    def _make(self, attempt: Attempt, cut: Cut | None) -> None:
        sent: Response | Failed | BaseException
        try:
            sent = self._send(attempt, cut)
        except BaseException as error:  # noqa: BLE001 - it goes up from where the try is awaited
            sent = error
        with self._changed:
            if not self._closed:
                del self._flying[attempt.number]
                self._came.append((attempt.number, sent))
                self._changed.notify()
                return
        drop(sent)

    def _wait(self, seconds: float | None) -> Came[Response]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._came, seconds):
                return None, None
            number, sent = self._came.popleft()
        if isinstance(sent, BaseException):
            raise sent
        return came_of(number, sent)

    def close(self) -> None:
        """Gives up what is in flight, without waiting for it."""
        with self._changed:
            self._closed = True
            flying, came = list(self._flying.values()), list(self._came)
            self._flying.clear()
            self._came.clear()
        for cut in flying:
            cut.now()
        for _, sent in came:
            drop(sent)
