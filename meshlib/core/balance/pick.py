"""Which endpoint takes a request: priority, then locality, then the policy's pick.

Rules (Envoy):
* All that depends only on endpoints and ejections is a plan, kept in the ledger until either changes.
* A policy that looks at keys looks the request's key up; a request without a key has a random one.
* A retry that avoids the hosts tried before picks anew so often; then it takes what came last.
"""

from collections.abc import Collection

from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet
from meshlib.core.balance.plan import Plan
from meshlib.core.ledger import ClusterState
from meshlib.core.outlier import end_ejections
from meshlib.core.request import Dice


def pick(
    cluster: Cluster,
    endpoints: EndpointSet,
    state: ClusterState,
    now: float,
    dice: Dice,
    avoid: Collection[str] = (),
    more_picks: int = 0,
    key: int | None = None,
) -> Endpoint | None:
    """One endpoint; None: none is healthy. Up to `more_picks` further picks try to miss `avoid` (keys of
    endpoints). `key`: of the request, 64 bits.
    """
    if now >= state.wake:
        end_ejections(state, now)
    plan: Plan | None = state.plan
    if plan is None or plan.endpoints is not endpoints or plan.cluster is not cluster:
        plan = state.plan = _plan(cluster, endpoints, state, now, dice)
    if plan.tables is not None:
        return _find(plan, dice, avoid, more_picks, key)
    found = plan.pick(dice, now) if plan.only is None else plan.only(dice, now)
    while avoid and more_picks > 0 and found is not None and found.key in avoid:
        found = plan.pick(dice, now)
        more_picks -= 1
    return found


def prepare(cluster: Cluster, endpoints: EndpointSet, state: ClusterState, now: float, dice: Dice) -> None:
    """Makes a table beforehand: it takes milliseconds, which are better not a request's."""
    if cluster.hash_table is not None:
        state.ready = _plan(cluster, endpoints, state, now, dice)


def _plan(cluster: Cluster, endpoints: EndpointSet, state: ClusterState, now: float, dice: Dice) -> Plan:
    ready: Plan | None = state.ready
    if ready is not None and ready.fits(cluster, endpoints, state):
        return ready
    return Plan(cluster, endpoints, state, now, dice)


def _find(
    plan: Plan, dice: Dice, avoid: Collection[str], more_picks: int, key: int | None
) -> Endpoint | None:
    if key is None:
        key = int(dice.random() * 2**32) << 32 | int(dice.random() * 2**32)
    table = plan.table(key)
    found = table(key, 0)
    for attempt in range(1, more_picks + 1):
        if found is None or found.key not in avoid:
            break
        found = table(key, attempt)
    return found
