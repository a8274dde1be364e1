"""A connection that one exchange uses: it is given back or closed exactly once, come what may.

An exchange that nobody ends (a response dropped without being read or closed) is noticed when it is
collected. That may happen on any thread and under any lock, so then only a note is made.
"""

from typing import Generic, Protocol, TypeVar

from meshlib.core.actions import Attempt
from meshlib.dataplane.http.pool import Kept, Pool, Reusable

C = TypeVar("C", bound=Reusable)


class Holder(Protocol[C]):
    """Whose connection it is."""

    def take_back(self, lease: "Lease[C]", reusable: bool) -> None:
        """The exchange has ended."""

    def note_lost(self, pool: Pool[C], connection: C) -> None:
        """Nobody ended the exchange. Takes no lock and closes nothing."""


class Lease(Generic[C]):
    """One use of a connection."""

    __slots__ = ("_holder", "_open", "attempt", "fresh", "kept", "pool")

    def __init__(
        self, holder: Holder[C], pool: Pool[C], kept: Kept[C], attempt: Attempt, fresh: bool
    ) -> None:
        kept.uses += 1
        self._holder = holder
        self._open = True
        self.pool = pool
        self.kept = kept
        self.attempt = attempt
        self.fresh = fresh
        """Whether this is the first use of the connection."""

    @property
    def open(self) -> bool:
        """Whether the exchange goes on."""
        return self._open

    @property
    def idle_timeout(self) -> float:
        """Seconds for which the connection may be idle after this use: the cluster's, or the peer's."""
        own, keeps = self.attempt.upstream.idle_timeout, self.kept.connection.keeps
        return min(keeps, own)

    def end(self, reusable: bool) -> None:
        """Ends the exchange; a second time does nothing."""
        if self._open:
            self._open = False
            worn = 0 < self.attempt.upstream.max_requests_per_connection <= self.kept.uses
            self._holder.take_back(self, reusable and not worn)

    def __del__(self) -> None:
        if self._open:
            self._open = False
            self._holder.note_lost(self.pool, self.kept.connection)
