"""Which endpoint takes a request: priority, then locality, then the policy's pick.

Rules (Envoy, LoadBalancerBase):
* A priority is available as far as 1.4 times its healthy share reaches; lower priorities get what is
  left. If all together are less than fully available, a priority whose healthy share is below the
  panic threshold is used whole, healthy or not. A threshold of 0 turns panic off.
* With locality weights a locality counts as far as 1.4 times its healthy share reaches; in panic
  localities are not looked at.
* Ejected endpoints count as not healthy. Weight 0 is never picked.
* A retry that avoids the hosts tried before picks anew so often; then it takes what came last.

All that depends only on the endpoints and the ejections is a plan, kept in the ledger until either
changes.
"""

from collections.abc import Callable, Collection, Sequence

from meshlib.core.balance.cluster import Cluster, Policy
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.balance.schedule import LiveTurns, Turns
from meshlib.core.ledger import ClusterState
from meshlib.core.outlier import sweep, watch
from meshlib.core.request import Dice

OVERPROVISIONING = 140
Pick = Callable[[Dice], Endpoint | None]


class Plan:
    """Loads of the priorities in percent (cumulative), and how each picks."""

    __slots__ = ("cluster", "endpoints", "levels", "only")

    def __init__(self, cluster: Cluster, endpoints: EndpointSet, levels: Sequence[tuple[int, Pick]]) -> None:
        self.cluster = cluster
        self.endpoints = endpoints
        self.levels = tuple(levels)
        self.only = self.levels[0][1] if len(self.levels) == 1 else None

    def pick(self, dice: Dice) -> Endpoint | None:
        """One endpoint; None: nobody is healthy."""
        point = dice.random() * 100
        for upto, level in self.levels:
            if point < upto:
                return level(dice)
        return None


def pick(
    cluster: Cluster,
    endpoints: EndpointSet,
    state: ClusterState,
    now: float,
    dice: Dice,
    avoid: Collection[str] = (),
    more_picks: int = 0,
) -> Endpoint | None:
    """One endpoint; None: none is healthy. Up to `more_picks` further picks try to miss `avoid` (keys)."""
    if now >= state.wake:
        sweep(state, endpoints.size, now, dice)
    plan: Plan | None = state.plan
    if plan is None or plan.endpoints is not endpoints or plan.cluster is not cluster:
        watch(cluster.outlier, state, now)
        plan = state.plan = make_plan(cluster, endpoints, state, dice)
    found = plan.pick(dice) if plan.only is None else plan.only(dice)
    while avoid and more_picks > 0 and found is not None and found.key in avoid:
        found = plan.pick(dice)
        more_picks -= 1
    return found


def make_plan(cluster: Cluster, endpoints: EndpointSet, state: ClusterState, dice: Dice) -> Plan:
    """What can be computed before any pick."""
    priorities: dict[int, list[LocalityEndpoints]] = {}
    for group in endpoints.localities:
        priorities.setdefault(group.priority, []).append(group)
    groups = [priorities[priority] for priority in sorted(priorities)]
    counts = [_count(level, state) for level in groups]
    loads, panics = priority_loads(counts, cluster.panic_threshold)
    levels: list[tuple[int, Pick]] = []
    upto = 0
    for level, load, panic in zip(groups, loads, panics, strict=True):
        if load:
            upto += load
            levels.append((upto, _level(cluster, level, state, panic, dice)))
    return Plan(cluster, endpoints, levels)


def priority_loads(
    counts: Sequence[tuple[int, int]], threshold: int
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Percent of the requests, and whether it panics, of each priority with (healthy, all) endpoints."""
    total = sum(size for _, size in counts)
    if not total:
        return tuple(0 for _ in counts), tuple(False for _ in counts)
    available = [min(100, OVERPROVISIONING * healthy // size) if size else 0 for healthy, size in counts]
    reached = min(100, sum(available))
    if not reached:
        if not threshold:
            return (100, *(0 for _ in counts[1:])), tuple(False for _ in counts)
        shares = [100 * size // total for _, size in counts]
        first = next(number for number, (_, size) in enumerate(counts) if size)
        shares[first] += 100 - sum(shares)
        return tuple(shares), tuple(True for _ in counts)
    loads = []
    left = 100
    for part in available:
        load = min(left, part * 100 // reached)
        loads.append(load)
        left -= load
    # What rounding left over goes to the first that has any load (Envoy, distributeLoad).
    loads[next(number for number, load in enumerate(loads) if load)] += left
    panics = tuple(
        reached < 100 and (100.0 * healthy / size if size else 0.0) < threshold for healthy, size in counts
    )
    return tuple(loads), panics


def _usable(group: LocalityEndpoints, state: ClusterState) -> list[Endpoint]:
    ejected = state.ejected
    return [endpoint for endpoint in group.endpoints if endpoint.healthy and endpoint.key not in ejected]


def _count(level: Sequence[LocalityEndpoints], state: ClusterState) -> tuple[int, int]:
    return sum(len(_usable(group, state)) for group in level), sum(len(group.endpoints) for group in level)


def _level(
    cluster: Cluster, level: Sequence[LocalityEndpoints], state: ClusterState, panic: bool, dice: Dice
) -> Pick:
    if panic:
        return _policy(cluster, [e for group in level for e in group.endpoints], state, dice)
    usable = [_usable(group, state) for group in level]
    if not cluster.locality_weighted:
        return _policy(cluster, [e for endpoints in usable for e in endpoints], state, dice)
    picks = []
    weights = []
    for group, endpoints in zip(level, usable, strict=True):
        if endpoints and group.weight:
            reach = min(100 * len(group.endpoints), OVERPROVISIONING * len(endpoints))
            picks.append(_policy(cluster, endpoints, state, dice))
            weights.append(max(1, group.weight * reach // len(group.endpoints)))
    turns = Turns(picks, weights, dice.random())

    def pick_locality(dice: Dice) -> Endpoint | None:
        chosen = turns.next()
        return None if chosen is None else chosen(dice)

    return pick_locality


def _policy(cluster: Cluster, listed: Sequence[Endpoint], state: ClusterState, dice: Dice) -> Pick:
    endpoints = tuple(endpoint for endpoint in listed if endpoint.weight > 0)
    if not endpoints:
        return lambda dice: None
    if len(endpoints) == 1:
        only = endpoints[0]
        return lambda dice: only
    weights = [endpoint.weight for endpoint in endpoints]
    equal = len(set(weights)) == 1
    size = len(endpoints)
    if cluster.policy is Policy.RANDOM:  # Envoy: weights of endpoints are not looked at
        return lambda dice: endpoints[int(dice.random() * size)]
    if cluster.policy is Policy.LEAST_REQUEST:
        return _least(cluster, endpoints, state) if equal else _weighted_least(cluster, endpoints, state)
    turns = Turns(endpoints, weights, dice.random())
    return lambda dice: turns.next()


def _least(cluster: Cluster, endpoints: Sequence[Endpoint], state: ClusterState) -> Pick:
    size = len(endpoints)
    further = range(cluster.choice_count - 1)
    hosts = [(endpoint, state.host(endpoint.key)) for endpoint in endpoints]

    def pick_least(dice: Dice) -> Endpoint | None:
        best, known = hosts[int(dice.random() * size)]
        for _ in further:
            other, state = hosts[int(dice.random() * size)]
            if state.active < known.active:
                best, known = other, state
        return best

    return pick_least


def _weighted_least(cluster: Cluster, endpoints: Sequence[Endpoint], state: ClusterState) -> Pick:
    bias = cluster.active_request_bias
    hosts = [(endpoint, state.host(endpoint.key)) for endpoint in endpoints]
    turns = LiveTurns(hosts, lambda each: each[0].weight / (each[1].active + 1) ** bias)

    def pick_turn(dice: Dice) -> Endpoint | None:
        found = turns.next()
        return None if found is None else found[0]

    return pick_turn
