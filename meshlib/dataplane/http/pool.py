"""Which connection a request gets: the decisions of a pool, without I/O. One pool a cluster.

- The connection used last is used first, so that the others can grow old and go.
- An idle connection is used for `idle_timeout` at most, and for so many requests as it may carry.
- `max_connections` counts all of a cluster, idle ones too. At the limit an idle connection to
  another endpoint makes room; else the request waits, if fewer than `max_pending` do.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

C = TypeVar("C")
Address = tuple[str, int]


class Overflow(Exception):
    """More requests than may wait for a connection do."""


@dataclass(slots=True)
class Kept(Generic[C]):
    """A connection and what the pool knows of it."""

    connection: C
    address: Address
    uses: int = 0
    since: float = 0.0
    """When it became idle."""


class Pool(Generic[C]):
    """The connections of one cluster. The caller locks."""

    __slots__ = ("_idle", "opened", "pending", "waiting")

    def __init__(self) -> None:
        self._idle: dict[Address, list[Kept[C]]] = {}
        self.opened = 0
        """Connections that exist or are being made."""
        self.pending = 0
        self.waiting: deque[Callable[[], None]] = deque()
        """How to wake those that wait, longest waiting first."""

    def __repr__(self) -> str:
        return f"<Pool: {self.opened} open, {self.idle} idle, {self.pending} waiting>"

    @property
    def idle(self) -> int:
        """How many connections are idle."""
        return sum(len(kept) for kept in self._idle.values())

    def take(self, address: Address, idle_timeout: float, now: float) -> tuple[Kept[C] | None, list[C]]:
        """An idle connection to `address`, or None; and those that have grown too old and must be closed."""
        idle = self._idle.get(address)
        if not idle:
            return None, []
        newest = idle.pop()
        if now - newest.since <= idle_timeout:
            if not idle:
                del self._idle[address]
            return newest, []
        del self._idle[address]
        return None, [self._forget(kept) for kept in (newest, *idle)]

    def room(self, max_connections: int, address: Address) -> tuple[bool, list[C]]:
        """Whether a connection may be opened (it then counts); and an idle one to be closed for it."""
        closing: list[C] = []
        if self.opened >= max_connections:
            other = next((a for a in self._idle if a != address), None)
            if other is None:
                return False, closing
            oldest = self._idle[other].pop(0)
            if not self._idle[other]:
                del self._idle[other]
            closing.append(self._forget(oldest))
        self.opened += 1
        return True, closing

    def wait(self, max_pending: int, wake: Callable[[], None]) -> None:
        """One more request waits; `wake` is called once. Overflow: too many do."""
        if self.pending >= max_pending:
            raise Overflow
        self.pending += 1
        self.waiting.append(wake)

    def waited(self, wake: Callable[[], None]) -> None:
        """That request waits no more."""
        self.pending -= 1
        try:
            self.waiting.remove(wake)
        except ValueError:
            # It was woken: if it leaves without a connection, its turn is the next one's.
            self._wake()

    def give_back(self, kept: Kept[C], now: float) -> None:
        """A connection is idle again."""
        kept.since = now
        self._idle.setdefault(kept.address, []).append(kept)
        self._wake()

    def gone(self) -> None:
        """A connection that was not idle is closed, or could not be made."""
        self.opened -= 1
        self._wake()

    def clear(self) -> list[C]:
        """Forgets all idle connections; gives them, to be closed."""
        found = [self._forget(kept) for idle in self._idle.values() for kept in idle]
        self._idle.clear()
        return found

    def _forget(self, kept: Kept[C]) -> C:
        self.opened -= 1
        return kept.connection

    def _wake(self) -> None:
        if self.waiting:
            self.waiting.popleft()()
