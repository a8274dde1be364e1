"""How long one operation on a socket may take, and what it means if it takes longer.

The mesh's limits (the try's, the route's) make the attempt `Failed`; the application's own, which
httpx counts per operation, are the application's business: `TooSlow` goes straight up to it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from meshlib.core.request import Failed, Failure

if TYPE_CHECKING:
    from meshlib.dataplane.http.cut import Cut

EARLY = 0.002
"""Seconds that a timer may fire before its time."""


class OwnTimeouts(NamedTuple):
    """The application's limits of single operations, in seconds; None: none."""

    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None

    @contextmanager
    def pausing(self, seconds: float) -> Iterator[float]:
        """Gives how long a pause of the mesh's own (back-off, injected delay) may take. It is time that the
        application waits for the response: TooSlow at the end of the block, if its limit for that is shorter.
        """
        if self.read is None or seconds <= self.read:
            yield seconds
        else:
            yield self.read
            raise TooSlow("read", self.read)


NO_TIMEOUTS = OwnTimeouts()


class TooSlow(Exception):
    """One of the application's own limits passed; `operation` is `read`, `write` or `pool`."""

    def __init__(self, operation: str, seconds: float) -> None:
        super().__init__(f"{operation} took longer than {seconds:g} s, the client's own limit")
        self.operation = operation


class Broken(Exception):
    """An attempt ended without a (whole) response."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.detail)
        self.failed = failed


@dataclass(slots=True)
class Limits:
    """The limits that hold for one exchange; `try_deadline` falls away once the head is there."""

    clock: Callable[[], float]
    own: OwnTimeouts
    try_deadline: float | None
    deadline: float | None
    cut: "Cut | None" = None
    """By which another thread gives the exchange up; None: none does."""

    def left(self, own: float | None) -> float | None:
        """Seconds until the nearest limit, more than 0; None: there is none. Broken: one has passed."""
        nearest, tried = self.deadline, self.try_deadline
        if nearest is None or (tried is not None and tried < nearest):
            nearest = tried
        if nearest is None:
            return own
        now = self.clock()
        left = nearest - now
        if left <= 0:
            raise self._over(now)
        return left if own is None or left < own else own

    def to_connect(self, longest: float) -> float:
        """Seconds that connecting may take, at most the cluster's `longest`. Broken: a limit has passed."""
        nearest = self.left(self.own.connect)
        return longest if nearest is None else min(nearest, longest)

    def left_since(self, begun: float, operation: str, own: float | None) -> float | None:
        """As `left`, of an operation that goes on since `begun`. Broken, TooSlow: a limit has passed."""
        if own is None:
            return self.left(None)
        rest = own - (self.clock() - begun)
        if rest <= 0:
            raise self.passed(operation, own)
        return self.left(rest)

    def passed(self, operation: str, own: float | None) -> Exception:
        """The error of an operation that waited for `left`."""
        now = self.clock()
        nearest = min((d for d in (self.deadline, self.try_deadline) if d is not None), default=None)
        if nearest is not None and (own is None or now >= nearest - EARLY):
            return self._over(now)
        return TooSlow(operation, own or 0.0)

    def _over(self, now: float) -> Broken:
        whole, one = self.deadline, self.try_deadline
        if whole is not None and (one is None or whole <= one or now >= whole - EARLY):
            how = Failure.TIMED_OUT
        else:
            how = Failure.TRY_TIMED_OUT
        return Broken(Failed(how, how.value))
