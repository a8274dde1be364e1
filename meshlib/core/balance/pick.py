"""Which endpoint takes a request: priority, then locality, then the policy's pick.

Rules (Envoy):
* All that depends only on endpoints and ejections is a plan, kept in the ledger until either changes.
* A policy that looks at keys looks the request's key up; a request without a key has a random one.
* A retry that avoids the hosts tried before picks anew so often; then it takes what came last.
"""

from collections.abc import Sequence
from typing import NamedTuple

from meshlib.core.balance.cluster import Cluster, Resolution
from meshlib.core.balance.endpoints import Endpoint, EndpointSet
from meshlib.core.balance.plan import Plan, draw
from meshlib.core.balance.remote import loads_after
from meshlib.core.ledger import ClusterState
from meshlib.core.outlier import sweep, watch
from meshlib.core.request import Dice

MOST_UNLISTED = 1024
"""Endpoints that requests named themselves, at each multiple of which idle ones are forgotten."""


class Retry(NamedTuple):
    """What a pick for a retry heeds."""

    tried: Sequence[str]
    """The keys of the endpoints tried, in order."""
    more_picks: int = 0
    """Up to so many further picks try to miss them."""
    leave_after: int = 0
    """After every so many tries their priorities take nothing more; 0: they stay."""


def pick(
    cluster: Cluster,
    endpoints: EndpointSet,
    state: ClusterState,
    now: float,
    dice: Dice,
    retry: Retry | None = None,
    key: int | None = None,
) -> Endpoint | None:
    """One endpoint; None: none is healthy. `key`: of the request, 64 bits."""
    if now >= state.wake:
        sweep(state, endpoints.size, now, dice)
    plan: Plan | None = state.plan
    if plan is None or plan.endpoints is not endpoints or plan.cluster is not cluster or now >= plan.until:
        watch(cluster.outlier, state, now)
        plan = state.plan = _plan(cluster, endpoints, state, now, dice)
    if plan.tables is not None:
        return _find(plan, dice, retry, key)
    if retry is not None:
        return _again(plan, dice, now, retry)
    return plan.pick(dice, now) if plan.only is None else plan.only(dice, now)


def unlisted(
    cluster: Cluster, endpoint: Endpoint, state: ClusterState, now: float, dice: Dice
) -> Endpoint | None:
    """The endpoint that a request names itself, of a cluster that lists none; None: it is ejected.

    An Envoy that passes through (ORIGINAL_DST) does not look at ejections, a dynamic forward proxy does.
    """
    if state.hosts and not len(state.hosts) % MOST_UNLISTED:
        state.forget_idle()
    if cluster.resolution is not Resolution.DYNAMIC:
        return endpoint
    if cluster.outlier is not state.outlier:
        watch(cluster.outlier, state, now)
    if now >= state.wake:
        sweep(state, len(state.hosts), now, dice)
    return None if endpoint.key in state.ejected else endpoint


def prepare(cluster: Cluster, endpoints: EndpointSet, state: ClusterState, now: float, dice: Dice) -> None:
    """Makes a table beforehand: it takes milliseconds, which are better not a request's."""
    if cluster.hash_table is not None:
        state.ready = _plan(cluster, endpoints, state, now, dice)


def _plan(cluster: Cluster, endpoints: EndpointSet, state: ClusterState, now: float, dice: Dice) -> Plan:
    ready: Plan | None = state.ready
    if ready is not None and ready.fits(cluster, endpoints, state):
        return ready
    return Plan(cluster, endpoints, state, now, dice)


def _again(plan: Plan, dice: Dice, now: float, retry: Retry) -> Endpoint | None:
    shares = plan.shares
    if retry.leave_after and (loads := loads_after(plan, retry.tried, retry.leave_after)) is not None:
        shares = plan.share(loads)
    found = draw(shares, dice, now)
    for _ in range(retry.more_picks):
        if found is None or found.key not in retry.tried:
            break
        found = draw(shares, dice, now)
    return found


def _find(plan: Plan, dice: Dice, retry: Retry | None, key: int | None) -> Endpoint | None:
    if key is None:
        key = int(dice.random() * 2**32) << 32 | int(dice.random() * 2**32)
    table = plan.table(key)
    found = table(key, 0)
    for attempt in range(1, retry.more_picks + 1 if retry is not None else 1):
        if retry is None or found is None or found.key not in retry.tried:
            break
        found = table(key, attempt)
    return found
