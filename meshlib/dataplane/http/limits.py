"""How long one operation on a socket may take, and what it means if it takes longer.

The mesh's limits (the try's, the route's) make the attempt `Failed`; the application's own, which
httpx counts per operation, are the application's business: `TooSlow` goes straight up to it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from meshlib.core.request import Failed, Failure


@dataclass(frozen=True, slots=True)
class OwnTimeouts:
    """The application's limits of single operations, in seconds; None: none."""

    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None


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

    def left(self, own: float | None) -> float | None:
        """Seconds until the nearest limit, at least 0; None: there is none."""
        nearest = own
        for deadline in (self.try_deadline, self.deadline):
            if deadline is not None:
                left = max(0.0, deadline - self.clock())
                if nearest is None or left < nearest:
                    nearest = left
        return nearest

    def passed(self, operation: str, own: float | None) -> Exception:
        """The error of an operation that waited for `left`."""
        now = self.clock()
        for deadline, how in (
            (self.deadline, Failure.TIMED_OUT),
            (self.try_deadline, Failure.TRY_TIMED_OUT),
        ):
            # A timer may fire a moment early.
            if deadline is not None and now >= deadline - 0.002:
                return Broken(Failed(how, how.value))
        return TooSlow(operation, own or 0.0)
