"""Which connection a request gets where one carries several: decisions, without I/O. One pool a cluster.

As Envoy's pool for HTTP/2, rules:

- One connection takes requests for as long as it has room, so that others can grow old and go. Room is what
  the peer and the cluster allow.
- While connections are being made, requests wait for them, as many as they are expected to carry; one more
  makes another. Until its peer has said how many it takes, a connection carries one at a time: that for which
  it was made, and when that was given up the next, for which somebody hears what the peer says.
- `max_connections` counts all of a cluster; but an endpoint without any may have one, for its requests would
  wait for nothing (Envoy, ConnPoolImplBase::tryCreateNewConnection). At the limit an idle connection to
  another endpoint makes room.
- Who waits for an endpoint keeps its place; nobody overtakes. `max_pending` counts those of all endpoints,
  and those who make a connection.
- A connection that has lived for its `max_connection_duration` takes no more requests.
- A connection that can't be made fails all who wait for that endpoint; one whose maker gave up fails nobody.
- A connection that takes no more requests, for whatever reason, is left, and closed with its last request.
- For how long a peer keeps an idle connection is learned, as with HTTP/1.1 (`habits`).
- What a request costs here does not grow with endpoints or with who waits.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, NamedTuple, Protocol, TypeVar

from meshlib.core.actions import Attempt
from meshlib.core.http2 import Http2
from meshlib.core.request import Failed
from meshlib.dataplane.http.habits import Habits
from meshlib.dataplane.http.pool import Address


class Carrier(Protocol):
    """What a pool asks of a connection."""

    @property
    def allowed(self) -> int | None:
        """Requests at a time that its peer takes; None: it has not said yet."""
        ...

    def usable(self) -> bool:
        """Whether it takes requests, as far as can be seen without waiting."""
        ...


class Overflow(Exception):
    """More requests than may wait for a connection do."""


C = TypeVar("C", bound=Carrier)
ASSUMED_STREAMS = 100
"""Requests at a time before a peer has said how many: what RFC 9113, 6.5.2, recommends as the least."""


@dataclass(slots=True, eq=False)
class Shared(Generic[C]):
    """A connection and what the pool knows of it."""

    connection: C
    address: Address
    active: int = 0
    """Requests that it carries."""
    uses: int = 0
    since: float = 0.0
    """When it carried one last."""
    rested: float = 0.0
    """For how long it was idle before what it carries, until its peer has answered to some of that."""
    until: float = 0.0
    """When it has been idle for too long; counts while it carries none."""
    dies: float = float("inf")
    """When it has lived for long enough."""
    listed: bool = False
    """Whether it is offered to requests."""
    left: bool = False
    """Whether it takes no more."""
    settled: bool = False
    """Whether it is known how many it takes at a time."""


@dataclass(slots=True, eq=False)
class Place:
    """A place in the queue of an endpoint."""

    address: Address
    wake: Callable[[], None]
    number: int = 0
    """Lower ones came before."""
    woken: bool = False
    """Whether it was woken and has not sought since."""
    failed: Failed | None = None
    """Why it waits for nothing: the connection could not be made."""


class Terms(NamedTuple):
    """What a cluster allows."""

    max_connections: int
    most_streams: int
    """Requests at a time on one connection."""
    most_uses: int
    """Requests on one connection in all; 0: no limit."""
    max_pending: int


def terms_of(attempt: Attempt, how: Http2) -> Terms:
    """What the cluster of an attempt allows."""
    upstream = attempt.upstream
    return Terms(
        upstream.limits.max_connections,
        how.max_concurrent_streams,
        upstream.max_requests_per_connection,
        upstream.limits.max_pending,
    )


@dataclass(slots=True)
class Found(Generic[C]):
    """What a request found: a connection, or room to open one (it then counts), or neither."""

    shared: Shared[C] | None = None
    room: bool = False
    overflow: bool = False
    """There would be room, but too many are pending."""
    closing: list[C] = field(default_factory=list)
    """Connections that the pool has forgotten: to be closed."""


@dataclass(slots=True, eq=False)
class _Line(Generic[C]):
    """What there is for one endpoint."""

    offered: list[Shared[C]] = field(default_factory=list)
    """Those that may have room, the one used last at the end."""
    opened: int = 0
    unsettled: int = 0
    """Connections that are being made, or whose peer has not said how many requests it takes."""
    allowed: int = ASSUMED_STREAMS
    """What the peer said last of that."""
    waiting: OrderedDict[int, Place] = field(default_factory=OrderedDict)
    """By number; at most the first is woken."""


class SharedPool(Generic[C]):
    """The connections of one cluster. The caller locks."""

    __slots__ = (
        *("_idle", "_lines", "_making", "_numbers", "_pending", "_waited"),
        *("habits", "listed", "opened"),
    )

    def __init__(self) -> None:
        self.habits: Habits[Address] = Habits()
        self._lines: dict[Address, _Line[C]] = {}
        self._idle: OrderedDict[Shared[C], None] = OrderedDict()
        """Those that are offered and carry nothing, longest idle first."""
        self._waited: OrderedDict[Address, None] = OrderedDict()
        """The endpoints for which somebody waits."""
        self._numbers = count()
        self._pending = 0
        self._making = 0
        self.opened = 0
        """Connections that exist or are being made."""
        self.listed: frozenset[tuple[str, int]] | None = None
        """Where connections may lead that are kept; None: anywhere."""

    def __repr__(self) -> str:
        return f"<SharedPool: {self.opened} open, {self.active} requests, {self._pending} waiting>"

    @property
    def active(self) -> int:
        """Requests on connections that are offered."""
        return sum(shared.active for line in list(self._lines.values()) for shared in list(line.offered))

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._pending

    @property
    def empty(self) -> bool:
        """Whether there is nothing, and nobody waits."""
        return not self.opened and not self._pending

    def seek(self, address: Address, terms: Terms, now: float, place: Place | None = None) -> Found[C]:
        """A connection to `address`, or room for one; `place` is given up once there is either."""
        found: Found[C] = Found()
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = _Line()
        if place is not None:
            place.woken = False
        elif line.waiting and next(iter(line.waiting.values())).woken:
            return found  # who waits is about to seek
        found.shared = self._take(line, terms, now, found.closing)
        if found.shared is None:
            full = place is None and self._pending + self._making >= terms.max_pending
            found.overflow = full
            found.room = not full and self._room(address, line, terms, place, found.closing)
            self._making += found.room
        if place is not None and (found.shared is not None or found.room):
            self._drop(line, place)
        if found.shared is not None or line.offered:
            self._wake(line)
        return found

    def join(self, address: Address, max_pending: int, wake: Callable[[], None]) -> Place:
        """A place in the queue; `wake` is called when it is worth seeking again. Overflow: too many wait."""
        if self._pending + self._making >= max_pending:
            raise Overflow
        place, line = Place(address, wake, next(self._numbers)), self._lines[address]
        line.waiting[place.number] = place
        self._waited[address] = None
        self._pending += 1
        return place

    def leave(self, place: Place) -> None:
        """That request waits no more. Nothing happens if it was served."""
        line = self._lines.get(place.address)
        if line is not None and place.number in line.waiting:
            self._drop(line, place)
            if place.woken:
                self._wake(line)

    def made(self, shared: Shared[C], terms: Terms) -> None:
        """The connection for which there was room is there, and carries its first request."""
        line = self._lines[shared.address]
        self._making -= 1
        shared.active = shared.uses = 1
        if terms.most_uses == 1:
            self._leave_it(line, shared)
        elif self._settle(line, shared):
            self._offer(line, shared)
        self._wake(line)

    def not_made(self, address: Address, failed: Failed | None) -> None:
        """It is not; None: because its maker gave up."""
        line = self._lines[address]
        self._making -= 1
        line.unsettled -= 1
        if failed is not None:
            for place in list(line.waiting.values()):
                place.failed = failed
                self._drop(line, place)
                place.wake()
        self._closed(line)

    def release(self, shared: Shared[C], now: float, idle_timeout: float, *, worn: bool) -> bool:
        """A request has ended; `worn`: the connection takes no more. Whether it is to be closed."""
        shared.active -= 1
        line = self._lines[shared.address]
        if worn or now >= shared.dies or not self._is_listed(shared) or not shared.connection.usable():
            self._leave_it(line, shared)
        if shared.active == 0:
            if self.habits.known:
                idle_timeout = min(idle_timeout, self.habits.longest(shared.address, now))
            shared.since, shared.until = now, min(now + idle_timeout, shared.dies)
            if shared.left:
                self._closed(line)
                return True
            if shared.listed:
                self._idle[shared] = None
        if not shared.left and (self._settle(line, shared) or not shared.active):
            self._offer(line, shared)
        self._wake(line)
        return False

    def note_stale(self, shared: Shared[C], now: float) -> None:
        """It was lost before its peer said anything about what it carried."""
        if shared.rested:
            self.habits.closed(shared.address, shared.rested, 0, now)
            shared.rested = 0.0

    def changed(self, shared: Shared[C], now: float) -> list[C]:
        """Its peer allows more, or it takes no more requests; gives it if it is to be closed."""
        closing: list[C] = []
        if shared.left:
            return closing
        line = self._lines[shared.address]
        if shared.connection.usable():
            if self._settle(line, shared):
                self._offer(line, shared)
        elif shared.active:
            self._leave_it(line, shared)
        else:
            self._given_up(line, shared, now, closing)
        self._wake(line)
        return closing

    def sweep(self, now: float) -> list[C]:
        """Forgets the idle connections that are of no use any more; gives them, to be closed."""
        closing: list[C] = []
        for address, line in list(self._lines.items()):
            for shared in list(line.offered):
                if shared.active:
                    continue
                if now > shared.until or now >= shared.dies:
                    self._forget(line, shared, closing)
                elif not shared.connection.usable():
                    self._given_up(line, shared, now, closing)
            if not line.opened and not line.waiting:
                self._lines.pop(address, None)
        return closing

    def due(self) -> float:
        """When the next idle connection is of no use any more; never: infinity."""
        return min((shared.until for _, shared in self._resting()), default=math.inf)

    def ages(self) -> list[float]:
        """Since when each idle connection is."""
        return [shared.since for _, shared in self._resting()]

    def evict(self, since: float) -> list[C]:
        """Forgets the connections that are idle since then or longer; gives them, to be closed."""
        closing: list[C] = []
        for line, shared in list(self._resting()):
            if shared.since <= since:
                self._forget(line, shared, closing)
        return closing

    def keep_to(self, listed: frozenset[tuple[str, int]] | None) -> list[C]:
        """Connections elsewhere are not kept any more, None: all are; gives the idle ones, to be closed."""
        self.listed = listed
        closing: list[C] = []
        for line in self._lines.values():
            for shared in list(line.offered):
                if self._is_listed(shared):
                    continue
                if shared.active:
                    self._leave_it(line, shared)
                else:
                    self._forget(line, shared, closing)
        return closing

    def _resting(self) -> Iterator[tuple[_Line[C], Shared[C]]]:
        for line in self._lines.values():
            for shared in line.offered:
                if not shared.active:
                    yield line, shared

    def _is_listed(self, shared: Shared[C]) -> bool:
        return self.listed is None or shared.address[0] in self.listed

    def clear(self) -> list[C]:
        """Forgets the idle connections, gives them to be closed, leaves the others. Wakes all who wait."""
        closing: list[C] = []
        for line in self._lines.values():
            for shared in list(line.offered):
                if shared.active:
                    self._leave_it(line, shared)
                else:
                    self._forget(line, shared, closing)
            for place in line.waiting.values():
                if not place.woken:
                    place.woken = True
                    place.wake()
        return closing

    def _take(self, line: _Line[C], terms: Terms, now: float, closing: list[C]) -> Shared[C] | None:
        while line.offered:
            shared = line.offered[-1]
            usable = now < shared.dies and shared.connection.usable()
            settled = self._settle(line, shared)
            room = (min(terms.most_streams, line.allowed) if settled else 1) - shared.active
            if not usable or (not shared.active and (now > shared.until or room <= 0)):
                if shared.active:
                    self._leave_it(line, shared)
                elif usable or now > shared.until or now >= shared.dies:
                    self._forget(line, shared, closing)
                else:
                    self._given_up(line, shared, now, closing)
                continue
            if room <= 1:
                line.offered.pop()
                shared.listed = False
            if room > 0:
                if not shared.active:
                    self._idle.pop(shared, None)
                    shared.rested = now - shared.since
                shared.active += 1
                shared.uses += 1
                if 0 < terms.most_uses <= shared.uses:
                    self._leave_it(line, shared)
                return shared
        return None

    def _room(
        self, address: Address, line: _Line[C], terms: Terms, place: Place | None, closing: list[C]
    ) -> bool:
        # Those that make a connection use it themselves.
        ahead = len(line.waiting) - (place is not None) + line.unsettled
        if line.unsettled and ahead < line.unsettled * self._expected(line, terms):
            return False
        if self.opened >= terms.max_connections and not self._make_room(address, closing) and line.opened:
            return False
        self.opened += 1
        line.opened += 1
        line.unsettled += 1
        return True

    def _expected(self, line: _Line[C], terms: Terms) -> int:
        """Requests that a connection will carry, as far as is known before it is there."""
        most = min(line.allowed, terms.most_streams)
        return min(most, terms.most_uses) if terms.most_uses else most

    def _make_room(self, address: Address, closing: list[C]) -> bool:
        idle = next((shared for shared in self._idle if shared.address != address), None)
        if idle is None:
            return False
        self._forget(self._lines[idle.address], idle, closing)
        return True

    def _settle(self, line: _Line[C], shared: Shared[C]) -> bool:
        """Whether it is known how many it takes at a time, or that it takes none any more."""
        allowed = shared.connection.allowed
        if allowed is not None:
            line.allowed = allowed
        if not shared.settled and (allowed is not None or shared.left):
            shared.settled = True
            line.unsettled -= 1
        return shared.settled

    def _offer(self, line: _Line[C], shared: Shared[C]) -> None:
        if not shared.listed:
            shared.listed = True
            line.offered.append(shared)
            if not shared.active:
                self._idle[shared] = None

    def _leave_it(self, line: _Line[C], shared: Shared[C]) -> None:
        shared.left = True
        self._settle(line, shared)
        self._idle.pop(shared, None)
        if shared.listed:
            shared.listed = False
            line.offered.remove(shared)

    def _forget(self, line: _Line[C], shared: Shared[C], closing: list[C]) -> None:
        self._leave_it(line, shared)
        closing.append(shared.connection)
        self._closed(line)

    def _given_up(self, line: _Line[C], shared: Shared[C], now: float, closing: list[C]) -> None:
        """Its peer takes no more requests on it, and it was idle."""
        self.habits.closed(shared.address, now - shared.since, 0, now)
        self._forget(line, shared, closing)

    def _closed(self, line: _Line[C]) -> None:
        self.opened -= 1
        line.opened -= 1
        self._wake(line)
        if not line.waiting and self._waited:
            self._wake(self._lines[next(iter(self._waited))])

    def _drop(self, line: _Line[C], place: Place) -> None:
        del line.waiting[place.number]
        if not line.waiting:
            del self._waited[place.address]
        self._pending -= 1

    def _wake(self, line: _Line[C]) -> None:
        """The first who waits, if nobody is about to seek already."""
        for place in line.waiting.values():
            if not place.woken:
                place.woken = True
                place.wake()
            return
