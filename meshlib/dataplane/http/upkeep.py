"""Who looks after the idle connections of threads while nothing is sent: one thread for all of a process.

Rules:

- Nothing is done for a request: pools say when somebody is to look, and that is seldom (`pools`).
- The thread is started when there is something to wait for, and ends when there is not: with the last client.
- It holds no client: one that is forgotten without being closed is not kept alive.
- In the child of a fork there is nothing to look after.
"""

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from meshlib.dataplane import fork

log = logging.getLogger(__name__)

LONGEST = 10.0
"""Seconds after which it is looked whether clients were forgotten."""
JOIN_SECONDS = 1.0


class Looking(Protocol):
    """What has connections of threads."""

    def look(self) -> float | None:
        """Closes what is of no use any more; gives the seconds after which to look again, if it is so."""
        ...


class Caretaker:
    """Looks after the connections of all threads. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts nothing."""
        self._clock = clock
        self._unlocked()
        fork.watch(self)

    def _unlocked(self) -> None:
        self._due: dict[int, tuple[weakref.ref[Looking], float]] = {}
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._wakes = float("inf")

    def __repr__(self) -> str:
        return f"<Caretaker of {len(self._due)}>"

    def expect(self, one: Looking, seconds: float) -> None:
        """`one` is to be asked to look after so many seconds, and not when it would have been."""
        at = self._clock() + seconds
        with self._changed:
            self._due[id(one)] = (weakref.ref(one), at)
            if self._thread is None:
                self._start()
            elif at < self._wakes:
                self._changed.notify()

    def forget(self, one: Looking) -> None:
        """`one` has nothing left. If nobody else has, the thread is gone after this."""
        with self._changed:
            if self._due.pop(id(one), None) is None:
                return
            self._changed.notify()
            last = None if self._due else self._thread
        if last is not None and last is not threading.current_thread():
            last.join(JOIN_SECONDS)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="meshlib-idle", daemon=True)
        with contextlib.suppress(RuntimeError):  # the process ends, or has no thread to spare
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        while True:
            with self._changed:
                due = self._next()
                if not due:
                    if not self._due:
                        self._thread, self._wakes = None, float("inf")
                        return
                    now = self._clock()
                    self._wakes = min(now + LONGEST, *(at for _, at in self._due.values()))
                    self._changed.wait(max(0.0, self._wakes - now))
                    continue
            while due:
                self._ask(due.pop())

    def _next(self) -> list[Looking]:
        """Those that are to look now. Who is gone is forgotten. Under the lock."""
        now, found = self._clock(), []
        for number, (where, at) in list(self._due.items()):
            one = where()
            if one is None or at <= now:
                del self._due[number]
            if one is not None and at <= now:
                found.append(one)
        return found

    def _ask(self, one: Looking) -> None:
        try:
            seconds = one.look()
        except Exception:
            # The thread must live.
            log.exception("%r could not be looked after", one)
            return
        if seconds is not None:
            self.expect(one, seconds)

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._changed.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """They are the parent's."""
        self._unlocked()


caretaker = Caretaker()
