"""What the mesh counts by itself of its requests, for an SDK that takes finished histograms (`provider.py`).

Rules (the SDK's own, which the tests compare):

- A value belongs to the first bucket whose bound is not below it.
- A reader of totals is told of everything since a series began; a reader of differences of what came since it
  was told last, and of nothing where nothing came.
- A request is added once, however many readers there are: each keeps what was added since its last turn.
- Whoever is new is told of everything.

Not thread-safe: `Instruments` has the lock.
"""

import math
import weakref
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from meshlib.dataplane.telemetry.metrics import Series

BOUNDS = (
    *(0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000),
    *(30000, 60000, 300000, 600000, 1800000, 3600000),
)
"""Envoy's, which Istio leaves as they are; of milliseconds and of bytes."""


class Distribution:
    """Values: how many in each bucket, their sum, the least and the greatest."""

    __slots__ = ("counts", "least", "most", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum: float = 0
        self.least, self.most = math.inf, -math.inf

    def add(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.sum += value
        if value < self.least:
            self.least = value
        if value > self.most:
            self.most = value

    def plus(self, other: "Distribution") -> "Distribution":
        """Both together."""
        made = Distribution()
        made.counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        made.sum = self.sum + other.sum
        made.least, made.most = min(self.least, other.least), max(self.most, other.most)
        return made


Kept = tuple[Distribution, Distribution, Distribution]
"""Of one series: milliseconds, bytes of requests, bytes of responses."""


class Told(NamedTuple):
    """What a reader is told of one series."""

    attributes: dict[str, str | bool]
    since: int
    """Nanoseconds since 1970."""
    kept: Kept


class Turns:
    """One reader: of totals, or of differences."""

    def __init__(self, *, differences: bool) -> None:
        self.differences = differences
        self.last: int | None = None
        """When its last turn was; None: it had none."""
        self.came: dict[Series, Kept] = {}
        """Of a reader of differences: since then."""


class Aggregates:
    """The histograms of one provider."""

    def __init__(self) -> None:
        self._new: dict[Series, Kept] = {}
        """Since anybody's last turn."""
        self._totals: dict[Series, tuple[int, Kept | None]] = {}
        """Since when, and all before that turn."""
        self._readers: weakref.WeakSet[Turns] = weakref.WeakSet()

    def add(self, series: "Series", duration: float, sent: int, received: int, now: int) -> None:
        """One request; `now` in nanoseconds since 1970."""
        found = self._new.get(series)
        if found is None:
            found = self._new[series] = (Distribution(), Distribution(), Distribution())
            self._totals.setdefault(series, (now, None))
        durations, requests, responses = found
        durations.add(duration)
        requests.add(sent)
        responses.add(received)

    def turn(self, reader: Turns, now: int) -> list[Told]:
        """What a reader is told now."""
        self._settle()
        last, reader.last = reader.last, now
        if not reader.differences:
            return [Told(of.attributes, since, kept) for of, (since, kept) in self._totals.items() if kept]
        if reader not in self._readers:
            self._readers.add(reader)
            reader.came = {of: kept for of, (_, kept) in self._totals.items() if kept}
        came, reader.came = reader.came, {}
        return [Told(of.attributes, last or self._totals[of][0], kept) for of, kept in came.items()]

    def _settle(self) -> None:
        """What is new belongs to the totals from now on, and to what each reader has not heard of."""
        new, self._new = self._new, {}
        readers = list(self._readers)
        for series, kept in new.items():
            since, before = self._totals[series]
            self._totals[series] = since, _sum(before, kept)
            for reader in readers:
                reader.came[series] = _sum(reader.came.get(series), kept)

    def forget(self) -> None:
        """Begins anew, as if nothing had been."""
        self._new, self._totals = {}, {}
        for reader in self._readers:
            reader.came, reader.last = {}, None
        self._readers.clear()


def _sum(before: Kept | None, new: Kept) -> Kept:
    if before is None:
        return new
    durations, requests, responses = before
    return durations.plus(new[0]), requests.plus(new[1]), responses.plus(new[2])
