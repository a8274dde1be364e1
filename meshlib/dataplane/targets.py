"""Which targets are held, whose turn is next, and which are to be forgotten: those idle, and those too many.

Rules:

- There is room for `max_targets`. One more takes the place of the one unused for longest that nobody waits
  for. While each is waited for it waits its turn, in the order of asking.
- Who waits for a target keeps it held until it is answered, and has taken what it came for.
- The ports that this process serves take no room and are never forgotten, however idle: their policy must
  hold at once.
"""

import heapq
from collections import Counter, OrderedDict

from meshlib.bootstrap import Bootstrap
from meshlib.xds.names import inbound_port

SWEEP_SECONDS = 60.0

Turn = tuple[list[str], list[str]]
"""Targets to be forgotten, and those that are held from now on."""


class Targets:
    """When each target was used last. `touch` may be called by any thread, all else under a lock."""

    def __init__(self, bootstrap: Bootstrap, now: float) -> None:
        """The bounds are `idle_targets` and `max_targets`; times are in seconds of any one clock."""
        self._idle = bootstrap.idle_targets
        self._most = bootstrap.max_targets
        self._used: dict[str, float] = {}
        """Of those held; for a while also of one that was touched while it was being forgotten."""
        self._held: set[str] = set()
        self._ports: set[str] = set()
        self._waits: Counter[str] = Counter()
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._oldest: list[tuple[float, str]] = []
        """A heap, with one entry at most for each that is held. Its time may be too early, never too late."""
        self._listed: set[str] = set()
        self._swept = now

    def __repr__(self) -> str:
        return f"Targets({len(self._held)} held, {len(self._queue)} wait their turn)"

    @property
    def pause(self) -> float:
        """Seconds between two sweeps."""
        return min(SWEEP_SECONDS, self._idle)

    def touch(self, name: str, now: float) -> None:
        """A target was used."""
        self._used[name] = now

    def wait(self, name: str, now: float) -> Turn:
        """Somebody waits for a target, until `leave`."""
        self._waits[name] += 1
        if name in self._held:
            return [], []
        if inbound_port(name) is not None:
            self._ports.add(name)
            self._held.add(name)
            return [], [name]
        self._queue.setdefault(name)
        return self._turn(now)

    def leave(self, name: str, now: float) -> Turn:
        """Somebody who waited for a target waits no more."""
        self._waits[name] -= 1
        if self._waits[name] > 0:
            return [], []
        del self._waits[name]
        self._queue.pop(name, None)
        if name in self._held:
            self._used[name] = now
            self._list(name)
        return self._turn(now)

    def idle(self, now: float) -> list[str]:
        """Those unused for too long, at each sweep that is due; they are forgotten here."""
        if now - self._swept < self.pause:
            return []
        self._swept = now
        found = [
            name
            for name, used in dict(self._used).items()
            if now - used >= self._idle and name not in self._waits and name not in self._ports
        ]
        return [name for name in found if self._drop(name)]

    def alone(self) -> None:
        """In a fork's child: nobody waits."""
        self._waits.clear()
        self._queue.clear()
        for name in self._held - self._ports:
            self._list(name)

    def _turn(self, now: float) -> Turn:
        gone: list[str] = []
        come: list[str] = []
        while self._queue:
            if len(self._held) - len(self._ports) >= self._most:
                found = self._make_room()
                if found is None:
                    break
                gone.append(found)
            name, _ = self._queue.popitem(last=False)
            self._held.add(name)
            self._used[name] = now
            come.append(name)
        return gone, come

    def _make_room(self) -> str | None:
        """Forgets the one unused for longest that nobody waits for, and gives it; None: there is none."""
        while self._oldest:
            used, name = heapq.heappop(self._oldest)
            self._listed.discard(name)
            if name not in self._held or name in self._waits:
                continue  # who waits lists it again
            if self._used[name] != used:
                self._list(name)
                continue
            self._drop(name)
            return name
        return None

    def _list(self, name: str) -> None:
        if name not in self._listed and name not in self._ports:
            self._listed.add(name)
            heapq.heappush(self._oldest, (self._used[name], name))

    def _drop(self, name: str) -> bool:
        """Whether it was held."""
        self._used.pop(name, None)
        held = name in self._held
        self._held.discard(name)
        return held
