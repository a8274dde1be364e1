"""All of a pick that depends only on endpoints and ejections: priorities, localities, tables.

Rules (Envoy, LoadBalancerBase, LocalityWrr, ThreadAwareLoadBalancerBase):
* With locality weights a locality counts as far as its healthy share, times the overprovisioning factor,
  reaches. If no locality counts, or in panic, localities are not looked at.
* A policy that looks at keys has one table a priority, of its healthy endpoints or, in panic, of all;
  there a locality has its weight whole, and degraded endpoints have no place.
* Ejected endpoints count as not healthy.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from meshlib.core.balance.cluster import Cluster, HashTable, Policy
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.balance.maglev import maglev
from meshlib.core.balance.policies import Pick, nobody, picker
from meshlib.core.balance.priorities import Health, Loads, priority_loads
from meshlib.core.balance.ring import Find, Weighted, ring
from meshlib.core.balance.schedule import LiveTurns
from meshlib.core.ledger import ClusterState
from meshlib.core.request import Dice

HASH_KEY = "envoy.lb/hash_key"
"""The metadata of an endpoint that stands for it in a table."""
_NONE: Find = ring((), 1, 1)
_T = TypeVar("_T")


class Level(NamedTuple):
    """One priority, with its endpoints by locality."""

    groups: Sequence[LocalityEndpoints]
    healthy: Sequence[Sequence[Endpoint]]
    degraded: Sequence[Sequence[Endpoint]]
    health: Health


class Plan:
    """How an endpoint of a cluster is picked, as long as its endpoints and its ejections stay."""

    __slots__ = (
        *("_pickers", "cluster", "ejected", "endpoints", "levels", "loads", "only", "shares", "tables"),
        "until",
    )

    def __init__(
        self, cluster: Cluster, endpoints: EndpointSet, state: ClusterState, now: float, dice: Dice
    ) -> None:
        self.cluster = cluster
        self.endpoints = endpoints
        self.until = float("inf")
        """When the last new endpoint has warmed up, and another plan is due."""
        self.ejected = frozenset(state.ejected)
        self.levels = _levels(endpoints, self.ejected)
        health = [level.health for level in self.levels]
        self.loads = priority_loads(health, cluster.panic_threshold, endpoints.overprovisioning)
        self.shares: tuple[tuple[int, Pick], ...] = ()
        """Loads of the priorities in percent (cumulative), and how each picks."""
        self.only: Pick | None = None
        """The one that takes all."""
        self.tables: tuple[tuple[int, Find], ...] | None = None
        """In place of `shares`, of a policy that looks at keys."""
        self._pickers: Callable[[int, bool], Pick] = lambda number, degraded: nobody
        if cluster.hash_table is not None:
            self.tables = self._tables(cluster, cluster.hash_table)
        else:
            self._pickers = _pickers(self, state, now, dice)
            self.shares = self.share(self.loads)
            self.only = self.shares[0][1] if len(self.shares) == 1 else None

    def fits(self, cluster: Cluster, endpoints: EndpointSet, state: ClusterState) -> bool:
        """Whether it is the plan of these."""
        same = self.endpoints is endpoints and self.cluster is cluster
        return same and self.ejected == state.ejected.keys()

    def pick(self, dice: Dice, now: float) -> Endpoint | None:
        """One endpoint; None: nobody is healthy."""
        return draw(self.shares, dice, now)

    def table(self, key: int) -> Find:
        """The table that a key is looked up in."""
        point = key % 100
        return next((find for upto, find in self.tables or () if point < upto), _NONE)

    def share(self, loads: Loads) -> tuple[tuple[int, Pick], ...]:
        """How to pick by these loads instead of the plan's own."""
        healthy = [(load, (number, False)) for number, load in enumerate(loads.healthy)]
        degraded = [(load, (number, True)) for number, load in enumerate(loads.degraded)]
        found = _cumulated([*healthy, *degraded])
        return tuple((upto, self._pickers(*which)) for upto, which in found)

    def _tables(self, cluster: Cluster, sizes: HashTable) -> tuple[tuple[int, Find], ...]:
        both = [*enumerate(self.loads.healthy), *enumerate(self.loads.degraded)]
        found = _cumulated([(load, number) for number, load in both])
        made = {number: self._table(cluster, sizes, number) for number in {number for _, number in found}}
        return tuple((upto, made[number]) for upto, number in found)

    def _table(self, cluster: Cluster, sizes: HashTable, number: int) -> Find:
        level = self.levels[number]
        usable = [g.endpoints for g in level.groups] if self.loads.panics[number] else level.healthy
        hosts = _weighted(level.groups, usable, sizes, by_locality=cluster.locality_weighted)
        if cluster.policy is Policy.MAGLEV:
            return maglev(hosts, sizes.maglev)
        return ring(hosts, sizes.least_ring, sizes.most_ring)


def draw(shares: Sequence[tuple[int, Pick]], dice: Dice, now: float) -> Endpoint | None:
    """One endpoint by cumulative loads."""
    point = dice.random() * 100
    for upto, pick in shares:
        if point < upto:
            return pick(dice, now)
    return None


def _cumulated(parts: Iterable[tuple[int, _T]]) -> list[tuple[int, _T]]:
    upto = 0
    found = []
    for load, part in parts:
        if load:
            upto += load
            found.append((upto, part))
    return found


def _levels(endpoints: EndpointSet, ejected: frozenset[str]) -> tuple[Level, ...]:
    priorities: dict[int, list[LocalityEndpoints]] = {}
    for group in endpoints.localities:
        priorities.setdefault(group.priority, []).append(group)
    return tuple(_level(priorities[each], endpoints, ejected) for each in sorted(priorities))


def _level(groups: Sequence[LocalityEndpoints], listed: EndpointSet, ejected: frozenset[str]) -> Level:
    usable = [[e for e in group.endpoints if e.healthy and e.key not in ejected] for group in groups]
    healthy = [[e for e in endpoints if not e.degraded] for endpoints in usable]
    degraded = [[e for e in endpoints if e.degraded] for endpoints in usable]
    parts = (healthy, degraded, [_counted(group) for group in groups])
    counts = [sum(len(endpoints) for endpoints in part) for part in parts]
    weights = [sum(e.weight for endpoints in part for e in endpoints) for part in parts]
    size = sum(len(group.endpoints) for group in groups)
    by_weight = (weights[0], weights[1], weights[2]) if listed.weighted_health else None
    return Level(groups, healthy, degraded, Health(counts[0], counts[1], counts[2], size, by_weight))


def _counted(group: LocalityEndpoints) -> list[Endpoint]:
    return [endpoint for endpoint in group.endpoints if not endpoint.draining]


def _pickers(plan: Plan, state: ClusterState, now: float, dice: Dice) -> Callable[[int, bool], Pick]:
    cluster, factor = plan.cluster, plan.endpoints.overprovisioning
    end = _warming(cluster, plan.levels, state, now)
    warming = end is not None
    if end is not None:
        plan.until = end

    def choose(listed: Sequence[Endpoint]) -> Pick:
        return picker(cluster, listed, state, now, dice, warming=warming)

    def of(number: int, degraded: bool) -> Pick:
        level = plan.levels[number]
        if plan.loads.panics[number]:
            if cluster.fail_on_panic:
                return nobody
            return choose([e for group in level.groups for e in group.endpoints])
        usable = level.degraded if degraded else level.healthy
        if cluster.locality_weighted:
            weights = [_reach(*each, factor) for each in zip(level.groups, usable, strict=True)]
            if any(weights):
                parts = [
                    (weight, choose(part)) for weight, part in zip(weights, usable, strict=True) if weight
                ]
                return _by_locality(parts, now, dice)
        return choose([e for endpoints in usable for e in endpoints])

    return of


def _reach(group: LocalityEndpoints, usable: Sequence[Endpoint], factor: int) -> float:
    counted = len(_counted(group))
    share = len(usable) / counted if counted else 0.0
    return group.weight * min(1.0, factor / 100 * share)


def _by_locality(parts: Sequence[tuple[float, Pick]], now: float, dice: Dice) -> Pick:
    turns = LiveTurns(parts, lambda part, now: part[0], now, dice.random())

    def pick_locality(dice: Dice, now: float) -> Endpoint | None:
        chosen = turns.next(now)
        return None if chosen is None else chosen[1](dice, now)

    return pick_locality


def _warming(cluster: Cluster, levels: Sequence[Level], state: ClusterState, now: float) -> float | None:
    """Notes who is new, if new ones warm up, and when all have; None: nobody does."""
    if cluster.warmup is None:
        return None
    latest = -float("inf")
    for level in levels:
        for endpoints in level.healthy:
            for endpoint in endpoints:
                known = state.host(endpoint.key)
                if known.since is None:
                    known.since = now
                latest = max(latest, known.since)
    end = latest + cluster.warmup.window
    return end if now < end else None


def _weighted(
    groups: Sequence[LocalityEndpoints],
    usable: Sequence[Sequence[Endpoint]],
    sizes: HashTable,
    *,
    by_locality: bool,
) -> list[Weighted]:
    # Envoy's arithmetic in its order: what is rounded there must be rounded alike.
    if not by_locality:
        listed = [endpoint for endpoints in usable for endpoint in endpoints]
        return _normalised(listed, 1.0, sizes)
    total = sum(group.weight for group in groups if group.endpoints)
    made: list[Weighted] = []
    for group, endpoints in zip(groups, usable, strict=True):
        if group.weight and endpoints:
            made += _normalised(endpoints, group.weight / total, sizes)
    return made


def _normalised(endpoints: Sequence[Endpoint], share: float, sizes: HashTable) -> list[Weighted]:
    total = sum(endpoint.weight for endpoint in endpoints)
    return [
        (_key(endpoint, sizes), endpoint, endpoint.weight * share / total)
        for endpoint in endpoints
        if endpoint.weight
    ]


def _key(endpoint: Endpoint, sizes: HashTable) -> bytes:
    own = next((value for name, value in endpoint.metadata if name == HASH_KEY), "")
    if own or sizes.by_hostname:
        return (own or endpoint.hostname).encode()
    if ":" not in endpoint.host or not endpoint.port:
        return endpoint.key.encode()
    from ipaddress import ip_address  # half a millisecond that few need

    try:
        return b"[%s]:%d" % (str(ip_address(endpoint.host)).encode(), endpoint.port)
    except ValueError:
        return endpoint.key.encode()
