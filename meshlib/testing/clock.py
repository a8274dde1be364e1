"""Time that passes only when somebody says so: a test that advances it, or a wait that nothing else ends.

Rules:

- Who waits for a moment does not wait: the clock goes there. Of several the earliest goes first, once all the
  others had their turn, and again after each step: tasks that wait on one event loop, and threads. Nobody can
  know what a thread is about to do. So where there are others, they have turns too, of `TURN` seconds of real
  time, and `LAG` seconds where one is in the middle of a call.
- It never goes backwards.
- Who waits for somebody else (a hold, a connection) is woken by every step of the clock, and gives up after
  `PATIENCE` seconds of real time with an error instead of hanging.
"""

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from meshlib.control.istio import duration

PATIENCE = 5.0
TURN = 0.001
LAG = 0.5
_TURNS = 10
"""How often others have their turn before a task or a thread lets time pass."""

Duration = float | str | timedelta
"""Seconds, or as Istio writes it: `5s`, `1m30s`, `100ms`."""


class Stuck(AssertionError):
    """Something waits that nothing in the test will end."""


def seconds_of(value: Duration) -> float:
    """A duration in seconds. ValueError: it is none."""
    if isinstance(value, timedelta):
        found = value.total_seconds()
    elif isinstance(value, str):
        try:
            found = duration.seconds(value)
        except ValueError:
            raise ValueError(f"found {value!r}; allowed is a duration such as '5s' or '100ms'") from None
    else:
        found = float(value)
    if not 0 <= found < float("inf"):
        raise ValueError(f"found {value!r}; allowed is a time of 0 or more")
    return found


class Clock:
    """Seconds since the mesh was made. Thread-safe."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.RLock()
        self._stepped = threading.Condition(self._lock)
        self._sleepers: list[tuple[float, int]] = []
        self._strangers = set(threading.enumerate()) - {threading.current_thread()}
        """Threads that were there before; they count once they have looked at the clock."""
        self._calling = 0
        """Threads in the middle of a call that wait for nothing."""
        self._here = threading.local()
        self._news = 0
        self._numbers = itertools.count()
        self._wakes: dict[int, Callable[[], None]] = {}

    def __call__(self) -> float:
        """The time now."""
        self._news += 1
        return self._now

    def __repr__(self) -> str:
        return f"<Clock: {self._now:g} s>"

    def advance(self, by: Duration) -> None:
        """Lets that much time pass."""
        self.reach(self._now + seconds_of(by))

    def reach(self, moment: float) -> None:
        """Lets time pass up to a moment; nothing, if it is past."""
        with self._lock:
            self._now = max(self._now, moment)
        self.changed()

    def changed(self) -> None:
        """Wakes all who wait for somebody else."""
        with self._lock:
            self._news += 1
            self._stepped.notify_all()
            wakes = list(self._wakes.values())
        for wake in wakes:
            wake()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """For threads: one is in the middle of a call; others let no time pass before it waits or ends."""
        before = getattr(self._here, "calls", 0)
        self._here.calls = before + 1
        if not before:
            self._count(1)
        try:
            yield
        finally:
            self._here.calls = before
            if not before:
                self._count(-1)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        calls = bool(getattr(self._here, "calls", 0))
        if calls:
            self._count(-1)
        try:
            yield
        finally:
            if calls:
                self._count(1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._calling += more
            self._news += 1
            self._stepped.notify_all()

    def sleep(self, seconds: float) -> None:
        """For threads: it is that much later, after whatever others do before."""
        with self._waiting():
            with self._lock:
                mine = (self._now + seconds, next(self._numbers))
                heapq.heappush(self._sleepers, mine)
                self._news += 1
                try:
                    if self._calling or len(self._sleepers) > 1 or self._others():
                        self._let_others(mine)
                finally:
                    self._give_up(mine)
            self.reach(mine[0])

    def _others(self) -> bool:
        """Whether there is a thread that may be about to call."""
        known = {threading.current_thread(), *self._strangers}
        return any(t not in known and not t.name.startswith("meshlib") for t in threading.enumerate())

    def _let_others(self, mine: tuple[float, int]) -> None:
        """Until it is `mine` turn, or past. Under the lock."""
        turn, seen, late = 0, self._news, time.monotonic() + LAG
        while self._now < mine[0]:
            self._stepped.wait(TURN)
            turn += 1
            if self._news != seen:
                turn, seen, late = 0, self._news, time.monotonic() + LAG
            elif turn < _TURNS or self._sleepers[0] != mine:
                continue
            elif not self._calling or time.monotonic() >= late:
                return

    def _give_up(self, mine: tuple[float, int]) -> None:
        self._sleepers.remove(mine)
        heapq.heapify(self._sleepers)

    async def asleep(self, seconds: float) -> None:
        """For tasks: it is that much later, after whatever others do before."""
        with self._lock:
            mine = (self._now + seconds, next(self._numbers))
            heapq.heappush(self._sleepers, mine)
        try:
            turn, seen = 0, self._now
            while turn < _TURNS or (self._sleepers[0] != mine and self._now < mine[0]):
                turn += 1
                await asyncio.sleep(0)
                if seen != self._now:  # whoever waited for that has its turn first
                    turn, seen = 0, self._now
        finally:
            with self._lock:
                self._give_up(mine)
        self.reach(mine[0])

    @contextmanager
    def _woken(self, wake: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            number = next(self._numbers)
            self._wakes[number] = wake
        try:
            yield
        finally:
            with self._lock:
                del self._wakes[number]

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """For threads: until somebody made it so. Stuck: nobody did."""
        event = threading.Event()
        with self._woken(event.set), self._waiting():
            while not done():
                if not event.wait(PATIENCE):
                    raise Stuck(_stuck(what))
                event.clear()

    async def await_(self, done: Callable[[], bool], what: str) -> None:
        """For tasks: until somebody made it so. Stuck: nobody did."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        with self._woken(lambda: _tell(loop, event)):
            while not done():
                try:
                    async with asyncio.timeout(PATIENCE):
                        await event.wait()
                except TimeoutError:
                    raise Stuck(_stuck(what)) from None
                event.clear()


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)


def _stuck(what: str) -> str:
    return f"{what}, for {PATIENCE:g} s of real time now, and nothing in this test ends that"
