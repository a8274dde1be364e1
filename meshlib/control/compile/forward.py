"""A rule's destinations as Envoy's RouteAction: clusters with weights, and all that holds on the way.

Rules (Istio): a single destination's weight does not count, its headers come after the rule's; of
several, those of weight 0 are left out, and each keeps its headers and authority for itself. The
authority of a rewrite beats that of the rule's headers, which beats that of a destination's.
"""

from typing import Any

from meshlib.control.compile import headers, mirror, retry, rewrite, timeout
from meshlib.control.compile.context import Context
from meshlib.control.compile.destination import cluster_of
from meshlib.control.compile.hashing import consistent_hash, hash_policy
from meshlib.control.graph.delegates import Rule
from meshlib.control.istio.virtualservice import HTTPRoute, HTTPRouteDestination


def forward(message: Any, rule: Rule, context: Context) -> None:
    """Puts the action of a rule that forwards on an envoy.config.route.v3.Route."""
    said: HTTPRoute = rule.route
    namespace = rule.document.namespace
    action = message.route
    rewrite.rewrite(action, said.rewrite)
    authority = headers.edit(message, said.headers)
    splits = said.route if len(said.route) == 1 else tuple(split for split in said.route if split.weight > 0)
    clusters = [cluster_of(context, split.destination, namespace) for split in splits]
    if len(splits) == 1:
        action.cluster = clusters[0]
        authority = _first(authority, headers.edit(message, splits[0].headers))
    else:
        _weighted(action, splits, clusters)
    if authority and not action.host_rewrite_literal:
        action.host_rewrite_literal = authority
    timeout.timeout(action, said.timeout, context)
    sticky = _hashed(action, clusters, context)
    settle(action, said, context, sticky=sticky and len(clusters) == 1)
    mirror.mirrors(action, said, context, namespace)


def settle(action: Any, said: HTTPRoute | None, context: Context, *, sticky: bool) -> None:
    """Puts the retries on an envoy.config.route.v3.RouteAction."""
    default = context.scope.graph.mesh.default_http_retry_policy
    policy = retry.retry_policy(said.retries if said else None, default, sticky=sticky, grpc=context.grpc)
    if policy is not None:
        action.retry_policy.CopyFrom(policy)


def to_cluster(action: Any, cluster: str, context: Context) -> None:
    """Fills the action of a route that no document asked for: no timeout, the default retries."""
    action.cluster = cluster
    timeout.timeout(action, None, context)
    settle(action, None, context, sticky=_hashed(action, [cluster], context))


def _hashed(action: Any, clusters: list[str], context: Context) -> bool:
    found = [said for cluster in clusters if (said := consistent_hash(context, cluster)) is not None]
    for said in found:
        hash_policy(action, said)
    return bool(found)


def _weighted(action: Any, splits: tuple[HTTPRouteDestination, ...], clusters: list[str]) -> None:
    for split, cluster in zip(splits, clusters, strict=True):
        made = action.weighted_clusters.clusters.add(name=cluster, weight={"value": split.weight})
        authority = headers.edit(made, split.headers)
        if authority and not action.host_rewrite_literal:
            made.host_rewrite_literal = authority


def _first(one: str, other: str) -> str:
    return one or other
