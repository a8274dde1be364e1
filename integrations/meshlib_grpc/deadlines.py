"""Which tries of threads are out of time that go on for a while. One thread looks for all (`upkeep`)."""

import heapq
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from meshlib.dataplane.http.upkeep import caretaker


class Try(Protocol):
    """A try that may run out of time."""

    def out_of_time(self) -> None:
        """It has, unless it was decided upon. Waits for nothing."""


class Deadlines:
    """Those of one client. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Starts nothing."""
        self._clock = clock
        self._due: list[tuple[float, int, weakref.ref[Try]]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Deadlines of {len(self._due)}>"

    def add(self, one: Try, at: float) -> None:
        """Tells it then. It is not kept alive for that."""
        with self._lock:
            heapq.heappush(self._due, (at, next(self._numbers), weakref.ref(one)))
            first = self._due[0][0] == at
        if first:
            caretaker.expect(self, max(0.0, at - self._clock()))

    def look(self) -> float | None:
        """Tells those whose time is over; gives the seconds until the next."""
        now, late = self._clock(), []
        with self._lock:
            while self._due and self._due[0][0] <= now:
                late.append(heapq.heappop(self._due)[2])
            left = self._due[0][0] - now if self._due else None
        for where in late:
            one = where()
            if one is not None:
                one.out_of_time()
        return left

    def close(self) -> None:
        """Tells nobody any more."""
        with self._lock:
            self._due.clear()
        caretaker.forget(self)
