"""A stream of a shared connection that one exchange uses: it is given back exactly once, come what may.

As with a `Lease`, an exchange that nobody ends is noticed when it is collected, on any thread and under any
lock: then only a note is made.
"""

from typing import Generic, NamedTuple, Protocol, TypeVar

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, Failure, RequestHead
from meshlib.dataplane.http.failures import unseen
from meshlib.dataplane.http.h2codec import Stream
from meshlib.dataplane.http.h2pool import Carrier, Shared, SharedPool

C = TypeVar("C", bound=Carrier)


class Lent(NamedTuple, Generic[C]):
    """What is to be given back."""

    pool: SharedPool[C]
    shared: Shared[C]
    stream: Stream | None
    idle_timeout: float


class Holder(Protocol[C]):
    """Whose connection it is."""

    def take_back(self, lent: Lent[C]) -> None:
        """The exchange has ended."""

    def note_lost(self, lent: Lent[C]) -> None:
        """Nobody ended the exchange. Takes no lock and closes nothing."""


class Loan(Generic[C]):
    """One use of a shared connection."""

    __slots__ = ("_holder", "_idle_timeout", "_open", "fresh", "pool", "shared", "stream")

    def __init__(
        self,
        holder: Holder[C],
        pool: SharedPool[C],
        shared: Shared[C],
        attempt: Attempt,
        *,
        fresh: bool = False,
    ) -> None:
        self._holder = holder
        self._open = True
        self._idle_timeout = attempt.upstream.idle_timeout
        self.fresh = fresh
        """Whether the connection was made for this use."""
        self.pool = pool
        self.shared = shared
        self.stream: Stream | None = None
        """None: the request has not begun."""

    @property
    def open(self) -> bool:
        """Whether the exchange goes on."""
        return self._open

    def stale(self, failed: Failed) -> bool:
        """Whether its connection was lost, and that may be because it had been idle."""
        if self.fresh or failed.how not in (Failure.RESET, Failure.RESET_BEFORE_REQUEST):
            return False
        return not self.shared.connection.usable()

    def unseen(self, failed: Failed, head: RequestHead, body: object, before: int) -> bool:
        """Whether what came to nothing is done once more; `before`: how often it was already."""
        stream, left = self.stream, not self.shared.connection.usable()
        silent = stream is None or not stream.informed
        return unseen(failed, head, body, fresh=self.fresh, left=left, silent=silent, before=before)

    def end(self) -> None:
        """Ends the exchange; a second time does nothing."""
        if self._open:
            self._open = False
            self._holder.take_back(self._lent())

    def _lent(self) -> Lent[C]:
        return Lent(self.pool, self.shared, self.stream, self._idle_timeout)

    def __del__(self) -> None:
        if self._open:
            self._open = False
            self._holder.note_lost(self._lent())
