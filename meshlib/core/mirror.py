"""Copies of a request to other clusters; nobody waits for them, and no failure of theirs shows.

Rules: each policy has its own roll. A copy carries the route's edits and rewrite and the caller's
host unchanged. A mirror without a cluster or a healthy endpoint is left out.
"""

from collections.abc import Callable, Iterator

from meshlib.core.actions import Mirror
from meshlib.core.balance.cluster import Cluster
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
            address = (endpoint.host, endpoint.port)
            limits = cluster.limits
            yield Mirror(
                policy.cluster,
                address,
                head,
                cluster.connect_timeout,
                timeout or LONGEST,
                min(limits.max_connections, limits.max_requests),
                cluster.max_requests_per_connection,
                cluster.idle_timeout,
                secure(cluster, endpoint),
            )
