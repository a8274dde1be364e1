"""One of several endpoints, as the cluster's policy says.

Rules (Envoy, EdfLoadBalancerBase and its heirs):
* With unequal weights, or while an endpoint warms up, endpoints take turns as often as they weigh; under
  least request an endpoint weighs the less the more requests it has in flight.
* Otherwise least request takes the least busy of some that are drawn.
* RANDOM looks at no weights. Weight 0 is never picked.
* An endpoint that warms up weighs as much of its weight as of the window has gone by, to the power of
  1 / aggression, at least the least percentage. One that was there before has no part in that.
"""

from collections.abc import Callable, Sequence

from meshlib.core.balance.cluster import Cluster, Policy, Warmup
from meshlib.core.balance.endpoints import Endpoint
from meshlib.core.balance.schedule import LiveTurns, Turns
from meshlib.core.ledger import ClusterState, HostState
from meshlib.core.request import Dice

Pick = Callable[[Dice, float], Endpoint | None]
"""Draws an endpoint at a time; None: there is nobody."""
_MILLISECOND = 0.001


def nobody(dice: Dice, now: float) -> Endpoint | None:
    """The pick of nobody."""
    return None


def picker(
    cluster: Cluster,
    listed: Sequence[Endpoint],
    state: ClusterState,
    now: float,
    dice: Dice,
    *,
    warming: bool,
) -> Pick:
    """How one of these is picked. `warming`: an endpoint of the cluster is new."""
    endpoints = tuple(endpoint for endpoint in listed if endpoint.weight > 0)
    if not endpoints:
        return nobody
    if len(endpoints) == 1:
        only = endpoints[0]
        return lambda dice, now: only
    size = len(endpoints)
    if cluster.policy is Policy.RANDOM:
        return lambda dice, now: endpoints[int(dice.random() * size)]
    weights = [endpoint.weight for endpoint in endpoints]
    equal = len(set(weights)) == 1
    if cluster.policy is Policy.LEAST_REQUEST and equal and not warming:
        return _least(cluster, endpoints, state)
    if cluster.policy is Policy.LEAST_REQUEST or warming:
        return _live(cluster, endpoints, state, now, dice, cluster.warmup if warming else None)
    turns = Turns(endpoints, weights, dice.random())
    return lambda dice, now: turns.next()


def _least(cluster: Cluster, endpoints: Sequence[Endpoint], state: ClusterState) -> Pick:
    size = len(endpoints)
    further = range(cluster.choice_count - 1)
    hosts = [(endpoint, state.host(endpoint.key)) for endpoint in endpoints]

    def pick_least(dice: Dice, now: float) -> Endpoint | None:
        best, known = hosts[int(dice.random() * size)]
        for _ in further:
            other, state = hosts[int(dice.random() * size)]
            if state.active < known.active:
                best, known = other, state
        return best

    return pick_least


def _live(
    cluster: Cluster,
    endpoints: Sequence[Endpoint],
    state: ClusterState,
    now: float,
    dice: Dice,
    warmup: Warmup | None,
) -> Pick:
    bias = cluster.active_request_bias if cluster.policy is Policy.LEAST_REQUEST else 0.0
    hosts = [(endpoint, state.host(endpoint.key)) for endpoint in endpoints]

    def weigh(each: tuple[Endpoint, HostState], now: float) -> float:
        endpoint, known = each
        weight = endpoint.weight / (known.active + 1) ** bias if bias else float(endpoint.weight)
        return weight if warmup is None else weight * warmth(warmup, known.since, now)

    turns = LiveTurns(hosts, weigh, now, dice.random())

    def pick_turn(dice: Dice, now: float) -> Endpoint | None:
        found = turns.next(now)
        return None if found is None else found[0]

    return pick_turn


def warmth(warmup: Warmup, since: float | None, now: float) -> float:
    """The share of its weight that an endpoint has which was first seen healthy at `since`."""
    if since is None or now - since >= warmup.window:
        return 1.0
    share = max(_MILLISECOND, now - since) / warmup.window
    return max(float(share ** (1 / warmup.aggression)), warmup.least)
