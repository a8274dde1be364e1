"""The pools of a client, by cluster: what is decided about all of them, without I/O.

Rules:

- A connection that was idle, or has lived, for long enough is closed when that is so, also in a process that
  sends nothing: `looks_at` says when somebody is to `look`. While any is idle that is every `LOOK_SECONDS`,
  for those that their peers have closed.
- Where one is made, at most `most_idle` idle ones stay, of all clusters: those that were idle for longest go,
  several at a time, so that it costs little. Where a process has no descriptor left, half of them go.
- One that leads to an endpoint which its cluster does not list any more, or of a cluster that is gone, is
  closed as soon as it is idle, as by Envoy (ClusterManagerImpl, drainConnPools). So is one of copies, which
  have pools of their own.
- A pool that has nothing left is forgotten when another is made.
- All this costs a request one comparison.
"""

import errno
import math
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from meshlib.core.balance.cluster import Resolution
from meshlib.core.view import View

LOOK_SECONDS = 10.0
SHORTEST = 0.01
"""Seconds between two looks."""
MOST_IDLE = 256
"""Idle connections that stay where another is made, unless the settings say otherwise."""
STAY = 7 / 8
"""The share of them that stays where there are too many."""
NO_DESCRIPTOR = frozenset((errno.EMFILE, errno.ENFILE))
Addresses = frozenset[tuple[str, int]]
COPIES = "mirror|"
"""Before a cluster's name: the pool of the copies that are sent to it."""

C = TypeVar("C")


class AnyPool(Protocol[C]):
    """What is asked of the pool of a cluster, of either kind."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing, and nobody waits."""
        ...

    @property
    def opened(self) -> int:
        """Connections that exist or are being made."""
        ...

    def due(self) -> float:
        """When the next idle one is of no use any more; never: infinity."""
        ...

    def ages(self) -> list[float]:
        """Since when each idle one is."""
        ...

    def sweep(self, now: float) -> list[C]:
        """Forgets the idle ones that are of no use any more; gives them, to be closed."""
        ...

    def evict(self, since: float) -> list[C]:
        """Forgets those that are idle since then or longer; gives them, to be closed."""
        ...

    def keep_to(self, listed: Addresses | None) -> list[C]:
        """Connections elsewhere are not kept any more, None: all are; gives the idle ones, to be closed."""
        ...


P = TypeVar("P", bound="AnyPool[Any]")


class Pools(dict[str, P], Generic[P, C]):
    """The pools of a client, by cluster. The caller locks."""

    def __init__(self, make: Callable[[], P], most_idle: int = MOST_IDLE) -> None:
        super().__init__()
        self._make = make
        self.most_idle = most_idle
        self.looks_at = math.inf
        """When somebody will look; whoever makes a connection idle for less makes that `sooner`."""

    def __missing__(self, cluster: str) -> P:
        for name in [name for name, pool in self.items() if pool.empty]:
            del self[name]
        made = self[cluster] = self._make()
        return made

    def sooner(self, due: float, now: float) -> float:
        """Somebody is to look at `due`, at the latest; gives the seconds until then."""
        seconds = min(max(due - now, SHORTEST), LOOK_SECONDS)
        self.looks_at = now + seconds
        return seconds

    def look(self, now: float) -> tuple[list[C], float | None]:
        """What is to be closed now, and after how many seconds to look again; None: there is no need."""
        closing: list[C] = []
        due, idle = math.inf, False
        for pool in self.values():
            closing += pool.sweep(now)
            due = min(due, pool.due())
            idle = idle or bool(pool.ages())
        if not idle:
            self.looks_at = math.inf
            return closing, None
        return closing, self.sooner(due, now)

    def spare(self, most: int | None = None) -> list[C]:
        """What is to be closed so that no more than `most` idle ones stay; None: than the settings say."""
        most = self.most_idle if most is None else most
        if sum(pool.opened for pool in self.values()) <= most:
            return []
        ages = sorted(since for pool in self.values() for since in pool.ages())
        if len(ages) <= most:
            return []
        longest = ages[len(ages) - int(most * STAY) - 1]
        return [one for pool in self.values() for one in pool.evict(longest)]

    def halve(self) -> list[C]:
        """What is to be closed where there is no descriptor left; nothing: none is idle."""
        return self.spare(sum(len(pool.ages()) for pool in self.values()) // 2)

    def leading_to(self, clusters: Iterable[str]) -> list[str]:
        """The names of those pools that are of these clusters, also those of copies."""
        return [name for one in clusters for name in (one, COPIES + one) if name in self]

    def keep_to(self, listed: dict[str, Addresses | None]) -> list[C]:
        """These clusters have other endpoints now; what is to be closed."""
        found = [(self.get(name), addresses) for name, addresses in listed.items()]
        return [one for pool, addresses in found if pool is not None for one in pool.keep_to(addresses)]


def listed(view: View, pools: Iterable[str]) -> dict[str, Addresses | None]:
    """Where connections of these pools may lead; None: wherever a request says."""
    return {name: _listed(view, name.removeprefix(COPIES)) for name in pools}


def _listed(view: View, name: str) -> Addresses | None:
    cluster = view.clusters.get(name)
    if cluster is None:
        return frozenset()
    if cluster.resolution in (Resolution.ORIGINAL, Resolution.DYNAMIC):
        return None
    endpoints = cluster.inline or view.endpoints.get(name)
    groups = () if endpoints is None else endpoints.localities
    return frozenset(one.address for group in groups for one in group.endpoints)
