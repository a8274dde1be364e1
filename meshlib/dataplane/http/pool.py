"""Which connection a request gets: the decisions of a pool, without I/O. One pool a cluster.

- The connection used last is used first, so that the others can grow old and go.
- An idle connection is used until its `idle_timeout` passes or its peer closes it, and not for as long as its
  peer is known to leave it open (`habits`).
- `max_connections` counts all of a cluster, idle ones too. At the limit an idle connection to
  another endpoint makes room; else the request waits.
- As for Envoy, a request is pending from the moment that it finds no idle connection until it has
  one, also while its own is being made. At most `max_pending` are.
- A connection that has lived for its `max_connection_duration` is closed when it is idle.
- Who waits keeps its place, and nobody overtakes. What becomes free wakes one; one that leaves
  without having used its wake passes it on.
- What a request costs here does not grow with connections or with who waits.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar

from meshlib.core.balance.cluster import UNLIMITED
from meshlib.core.mtls import ClientTls
from meshlib.dataplane.http.habits import Habits

Address = tuple[tuple[str, int], ClientTls | None, str]
"""Where a connection leads, how it is secured, and the server name that it asked for."""


class Reusable(Protocol):
    """What a pool asks of a connection."""

    @property
    def keeps(self) -> float:
        """Seconds for which the peer says that it keeps the connection, or a bit less."""
        ...

    def usable(self) -> bool:
        """Whether the peer has kept it open and quiet while it was idle."""
        ...


C = TypeVar("C", bound=Reusable)


@dataclass(slots=True, eq=False)
class Kept(Generic[C]):
    """A connection and what the pool knows of it."""

    connection: C
    address: Address
    uses: int = 0
    since: float = 0.0
    """When it was idle last."""
    rested: float = 0.0
    """For how long it was idle before this use."""
    until: float = 0.0
    """When it has been idle for too long."""
    dies: float = float("inf")
    """When it has lived for long enough."""


@dataclass(slots=True, eq=False)
class Place:
    """A place in the queue."""

    wake: Callable[[], None]
    number: int
    """Lower ones came before."""
    woken: bool = False
    """Whether it was woken and has not sought since."""


@dataclass(slots=True)
class Found(Generic[C]):
    """What a request found: an idle connection, or room to open one (it then counts), or neither: it may
    `join` the queue unless there is an `overflow`.
    """

    kept: Kept[C] | None = None
    room: bool = False
    overflow: bool = False
    """Nothing may be waited for: too many are pending."""
    closing: list[C] = field(default_factory=list)
    """Connections that the pool has forgotten: to be closed."""


class Pool(Generic[C]):
    """The connections of one cluster. The caller locks."""

    __slots__ = ("_asleep", "_idle", "_numbers", "habits", "listed", "opened", "opening", "waiting")

    def __init__(self) -> None:
        self.habits: Habits[Address] = Habits()
        self._idle: dict[Address, deque[Kept[C]]] = {}
        self.opened = 0
        """Connections that exist or are being made."""
        self.opening = 0
        """Of those, the ones that are being made."""
        self.waiting: dict[int, Place] = {}
        """By number."""
        self._asleep: OrderedDict[int, Place] = OrderedDict()
        """Those of them that are not woken, longest waiting first."""
        self._numbers = count()
        self.listed: frozenset[tuple[str, int]] | None = None
        """Where connections may lead that are kept; None: anywhere."""

    def __repr__(self) -> str:
        return f"<Pool: {self.opened} open, {self.idle} idle, {len(self.waiting)} waiting>"

    @property
    def idle(self) -> int:
        """How many connections are idle."""
        return sum(len(kept) for kept in list(self._idle.values()))

    @property
    def empty(self) -> bool:
        """Whether there is nothing, and nobody waits."""
        return not self.opened and not self.waiting

    def wants(self, kept: Kept[C], now: float) -> bool:
        """Whether a connection may be used once more."""
        return now < kept.dies and (self.listed is None or kept.address[0] in self.listed)

    def seek(
        self,
        address: Address,
        max_connections: int,
        now: float,
        place: Place | None = None,
        max_pending: int = UNLIMITED,
        *,
        anew: bool = False,
    ) -> Found[C]:
        """A connection to `address`, or room for one, to be followed by `made`; `place` is given up once
        there is either. `anew`: no idle one, and those to `address` go.
        """
        found: Found[C] = Found()
        full = place is None and len(self.waiting) + self.opening >= max_pending
        if place is not None:
            if place.woken:
                self._sleep(place)
        elif self.waiting:
            found.overflow = full
            return found
        if anew:
            self._drop(address, found.closing)
        else:
            found.kept = self._take(address, now, found.closing)
        if found.kept is None:
            found.overflow = full
            found.room = not full and self._room(address, max_connections, found.closing)
            self.opening += found.room
        if place is not None and (found.kept is not None or found.room):
            self._forget(place)
        # An idle connection is as good as room: to its own endpoint, or given up for another.
        if self.waiting and (self.opened < max_connections or self._idle):
            self._wake()
        return found

    def join(self, wake: Callable[[], None]) -> Place:
        """A place in the queue; `wake` is called when it is worth seeking again."""
        place = Place(wake, next(self._numbers))
        self.waiting[place.number] = self._asleep[place.number] = place
        return place

    def made(self) -> None:
        """The connection that there was room for is made, or came to nothing (then `gone` follows)."""
        self.opening -= 1

    def leave(self, place: Place) -> None:
        """That request waits no more. Nothing happens if it was served."""
        if self._forget(place) and place.woken:
            self._wake()

    def give_back(self, kept: Kept[C], now: float, idle_timeout: float) -> None:
        """A connection is idle again."""
        habits = self.habits
        if habits.known:
            if kept.uses > 1:
                habits.used_again(kept.address)
            idle_timeout = min(idle_timeout, habits.longest(kept.address, now))
        kept.since, kept.until = now, min(now + idle_timeout, kept.dies)
        idle = self._idle.get(kept.address)
        if idle is None:
            self._idle[kept.address] = deque((kept,))
        else:
            idle.append(kept)
        self._wake()

    def note_stale(self, kept: Kept[C], now: float) -> None:
        """A connection turned out to be closed as it was used again."""
        self.habits.closed(kept.address, kept.rested, kept.uses - 1, now)

    def gone(self) -> None:
        """A connection that was not idle is closed, or could not be made."""
        self.opened -= 1
        self._wake()

    def sweep(self, now: float) -> list[C]:
        """Forgets the idle connections that are of no use any more; gives them, to be closed."""
        return self._part(lambda kept: self._good(kept, now))

    def _part(self, stays: Callable[[Kept[C]], bool]) -> list[C]:
        """Forgets the other idle connections; gives them, to be closed."""
        closing: list[C] = []
        for address, idle in list(self._idle.items()):
            stay: deque[Kept[C]] = deque()
            for kept in idle:
                if stays(kept):
                    stay.append(kept)
                else:
                    closing.append(kept.connection)
            if stay:
                self._idle[address] = stay
            else:
                del self._idle[address]
        self.opened -= len(closing)
        for _ in closing:
            self._wake()
        return closing

    def due(self) -> float:
        """When the next idle connection is of no use any more; never: infinity."""
        return min((kept.until for idle in self._idle.values() for kept in idle), default=math.inf)

    def ages(self) -> list[float]:
        """Since when each idle connection is."""
        return [kept.since for idle in self._idle.values() for kept in idle]

    def evict(self, since: float) -> list[C]:
        """Forgets the connections that are idle since then or longer; gives them, to be closed."""
        return self._part(lambda kept: kept.since > since)

    def keep_to(self, listed: frozenset[tuple[str, int]] | None) -> list[C]:
        """Connections elsewhere are not kept any more, None: all are; gives the idle ones, to be closed."""
        self.listed = listed
        return [] if listed is None else self._part(lambda kept: kept.address[0] in listed)

    def clear(self) -> list[C]:
        """Forgets all idle connections, gives them, to be closed, and wakes all who wait."""
        closing = [kept.connection for idle in self._idle.values() for kept in idle]
        self._idle.clear()
        self.opened -= len(closing)
        while self._asleep:
            self._wake()
        return closing

    def abandon(self) -> None:
        """Forgets who waits, without waking: in the child of a fork nobody does."""
        self.waiting.clear()
        self._asleep.clear()

    def _take(self, address: Address, now: float, closing: list[C]) -> Kept[C] | None:
        idle = self._idle.get(address)
        taken = None
        while idle and taken is None:
            newest = idle.pop()
            if self._good(newest, now):
                taken = newest
                newest.rested = now - newest.since
            else:
                self.opened -= 1
                closing.append(newest.connection)
        if idle is not None and not idle:
            del self._idle[address]
        return taken

    def _good(self, kept: Kept[C], now: float) -> bool:
        if now > kept.until:
            return False
        usable = kept.connection.usable()
        if not usable:
            self.habits.closed(kept.address, now - kept.since, kept.uses, now)
        return usable

    def _drop(self, address: Address, closing: list[C]) -> None:
        gone = [kept.connection for kept in self._idle.pop(address, ())]
        self.opened -= len(gone)
        closing += gone

    def _room(self, address: Address, max_connections: int, closing: list[C]) -> bool:
        if self.opened >= max_connections:
            other = next((a for a in self._idle if a != address), None)
            if other is None:
                return False
            closing.append(self._idle[other].popleft().connection)
            self.opened -= 1
            if not self._idle[other]:
                del self._idle[other]
        self.opened += 1
        return True

    def _wake(self) -> None:
        if self._asleep:
            _, place = self._asleep.popitem(last=False)
            place.woken = True
            place.wake()

    def _forget(self, place: Place) -> bool:
        """Whether it was waiting."""
        self._asleep.pop(place.number, None)
        return self.waiting.pop(place.number, None) is not None

    def _sleep(self, place: Place) -> None:
        """It was woken and seeks: for all others it sleeps again, behind those only that came before it."""
        place.woken = False
        before = []
        for number in self._asleep:
            if number > place.number:
                break
            before.append(number)
        self._asleep[place.number] = place
        for number in (place.number, *reversed(before)):
            self._asleep.move_to_end(number, last=False)
