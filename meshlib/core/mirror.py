"""Copies of a request to other clusters; nobody waits for them, and no failure of theirs shows.

Rules: each policy has its own roll. A copy carries the route's edits and rewrite and the caller's
host unchanged. A mirror without a cluster or a healthy endpoint is left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

from meshlib.core.actions import Mirror
from meshlib.core.balance.cluster import UNLIMITED, Cluster, Upstream
from meshlib.core.balance.endpoints import Endpoint
from meshlib.core.mtls import secure
from meshlib.core.request import Dice, RequestHead
from meshlib.core.route.rule import MirrorPolicy

MILLION = 1_000_000
LONGEST = 60.0
"""Seconds that a copy may take if the route has no limit."""


def mirrors(
    policies: tuple[MirrorPolicy, ...],
    head: RequestHead,
    timeout: float,
    dice: Dice,
    find: Callable[[str], tuple[Cluster, Endpoint] | None],
) -> Iterator[Mirror]:
    """The copies to be sent. `find` picks an endpoint of a cluster by name."""
    for policy in policies:
        if policy.millionths < MILLION and dice.random() * MILLION >= policy.millionths:
            continue
        found = find(policy.cluster)
        if found is not None:
            cluster, endpoint = found
            upstream, tls = for_copies(cluster.upstream), secure(cluster, endpoint)
            seconds = timeout or LONGEST
            yield Mirror(policy.cluster, endpoint.address, head, upstream, seconds, tls, endpoint.at)


@lru_cache(maxsize=1024)
def for_copies(upstream: Upstream) -> Upstream:
    """That of copies: where the cluster's limit is reached none waits, it is not sent."""
    if upstream.http2 is not None:
        return upstream  # they share a connection, and wait for it
    limits = upstream.limits
    most = min(limits.max_connections, limits.max_requests)
    return replace(upstream, limits=replace(limits, max_connections=most, max_pending=UNLIMITED), waits=False)
