"""One request decided aloud: what `core` would do with it and why, as plain data with stable keys.

Nothing is decided here: the virtual host is the table's, the steps are `core.route.walk`'s, the
rewritten request is `core.route.forward`'s. Chance is told, not rolled: every cluster that could be
picked is listed with its probability.
"""

from typing import Any

from meshlib.core import retry, timeout
from meshlib.core.balance.cluster import Resolution
from meshlib.core.balance.endpoints import EndpointSet
from meshlib.core.request import RequestHead
from meshlib.core.retry import RetryPolicy
from meshlib.core.route.forward import outgoing
from meshlib.core.route.redirect import location
from meshlib.core.route.rule import DirectResponse, Forward, MirrorPolicy, Redirect, Route, WeightedCluster
from meshlib.core.route.table import VirtualHost
from meshlib.core.route.walk import Step, walk
from meshlib.core.view import View
from meshlib.xds.names import PASSTHROUGH_CLUSTER, ClusterName, split_authority

ALWAYS = 0.0
"""The roll with which a rule for a share of the traffic takes part."""

Explanation = dict[str, Any]


def decide(view: View, target: str, head: RequestHead) -> Explanation:
    """What becomes of `head` when it is sent to `target` (`host:port`, as the view names it).

    Keys: `matched`, `virtual_host`, `steps`, `route`, `document`, `source`, `conditions`, `clusters`,
    `timeout_s` (None: no limit), `retries`, `mirrors`, `rewrite`, `redirect`, `direct_response`,
    `fault` (in words; None: none concerns it), `request_headers`, `response_headers`, `endpoints`,
    `config_version`, `encrypted` (the application encrypts it, https://: what is told is the way of its
    connection), `refused` (why such a request does not leave). All are always there.
    """
    table = view.tables.get(target)
    host = table.find_host(head.authority) if table else None
    if head.scheme == "https":
        refused = (
            "it is unknown, and outboundTrafficPolicy is REGISTRY_ONLY" if host and host.blocks else None
        )
        found = {} if refused else _connection(view, target, head)
        return _nothing(view, target, host, []) | {"encrypted": True, "refused": refused} | found
    return decide_request(view, target, head)


def decide_request(view: View, target: str, head: RequestHead) -> Explanation:
    """The same of a request that is looked at, by whatever scheme."""
    table = view.tables.get(target)
    host = table.find_host(head.authority) if table else None
    steps = list(walk(host, head, ALWAYS)) if host else []
    route = steps[-1].route if steps and steps[-1].matched else None
    answer = _nothing(view, target, host, steps)
    if route is None:
        return answer
    answer |= {
        "matched": True,
        "route": route.name,
        "document": route.origin.document,
        "source": route.origin.source,
        "conditions": str(route.match),
        "fault": _fault(route, head),
        "request_headers": list(route.request_headers.words()),
        "response_headers": list(route.response_headers.words()),
    }
    match route.action:
        case Forward():
            answer |= _forward(view, route, route.action, head)
        case Redirect():
            answer["redirect"] = {"status": route.action.status, "location": location(route.action, head)}
        case DirectResponse():
            body = route.action.body.decode("utf-8", "replace")
            answer["direct_response"] = {"status": route.action.status, "body": body}
    return answer


def _connection(view: View, target: str, head: RequestHead) -> Explanation:
    """Where a connection for https:// goes; nothing: where the library makes it itself."""
    connections = view.connections.get(target)
    name = split_authority(head.authority, 0)[0]
    address = connections.addresses[0] if connections and connections.addresses else ""
    chain = connections.find(address, name) if connections else None
    if chain is None or all(share.cluster == PASSTHROUGH_CLUSTER for share in chain.shares):
        return {}
    whole = chain.shares[-1].upto
    return {
        "matched": True,
        "route": chain.name,
        "document": chain.origin.document,
        "source": chain.origin.source,
        "conditions": f"name {name}",
        "clusters": [
            share_of(view, share.cluster, share.weight, share.weight / whole) for share in chain.shares
        ],
        "endpoints": [
            endpoint
            for share in chain.shares
            for endpoint in endpoints_of(share.cluster, view.endpoints.get(share.cluster))
        ],
    }


def _nothing(view: View, target: str, host: VirtualHost | None, steps: list[Step]) -> Explanation:
    return {
        "target": target,
        "config_version": table.version if (table := view.tables.get(target)) else view.version,
        "matched": False,
        "virtual_host": host.name if host else None,
        "domains": list(host.domains) if host else [],
        "steps": [_step(step) for step in steps],
        "route": None,
        "document": None,
        "source": None,
        "conditions": None,
        "clusters": [],
        "timeout_s": None,
        "retries": None,
        "mirrors": [],
        "rewrite": None,
        "redirect": None,
        "direct_response": None,
        "fault": None,
        "request_headers": [],
        "response_headers": [],
        "endpoints": [],
        "encrypted": False,
        "refused": None,
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "number": step.number,
        "route": step.route.name,
        "document": step.route.origin.document,
        "source": step.route.origin.source,
        "conditions": str(step.route.match),
        "matched": step.matched,
        "why_not": step.why_not,
    }


def _forward(view: View, route: Route, forward: Forward, head: RequestHead) -> Explanation:
    limits = timeout.effective(forward, head, None)
    possible = [cluster for cluster in forward.clusters if cluster.weight or len(forward.clusters) == 1]
    return {
        "clusters": [_cluster(view, cluster, forward) for cluster in forward.clusters],
        "timeout_s": limits.whole or None,
        "retries": _retries(retry.effective(forward.retry, head), limits.per_try),
        "mirrors": [_mirror(mirror) for mirror in forward.mirrors],
        "rewrite": _rewrite(route, forward, head, possible[0]) if possible else None,
        "endpoints": [
            endpoint
            for cluster in possible
            for endpoint in endpoints_of(cluster.name, view.endpoints.get(cluster.name))
        ],
    }


def _fault(route: Route, head: RequestHead) -> str | None:
    if isinstance(route.action, Forward):
        said = [(cluster.fault, cluster.name) for cluster in route.action.clusters]
    else:
        said = [(route.fault, "")]
    found = (str(fault) for fault, cluster in said if fault is not None and fault.concerns(head, cluster))
    return "; ".join(dict.fromkeys(found)) or None


def _cluster(view: View, cluster: WeightedCluster, forward: Forward) -> dict[str, Any]:
    share = 1.0 if len(forward.clusters) == 1 else cluster.weight / forward.total_weight
    return share_of(view, cluster.name, cluster.weight, share) | {
        "request_headers": list(cluster.request_headers.words()),
        "response_headers": list(cluster.response_headers.words()),
    }


def share_of(view: View, name: str, weight: int, probability: float) -> dict[str, Any]:
    """A cluster that may be picked, and how likely."""
    known = view.clusters.get(name)
    return {
        **_parts(name),
        "passes_through": known is not None and known.resolution in (Resolution.ORIGINAL, Resolution.DYNAMIC),
        "weight": weight,
        "probability": probability,
        "request_headers": [],
        "response_headers": [],
    }


def _mirror(mirror: MirrorPolicy) -> dict[str, Any]:
    return {**_parts(mirror.cluster), "percent": mirror.millionths / 10_000}


def _parts(name: str) -> dict[str, Any]:
    """A cluster's name and its parts; a name of another form has no parts."""
    parts = ClusterName.parse(name)
    if parts is None:
        return {"name": name, "host": None, "subset": None, "port": None}
    return {"name": name, "host": parts.host, "subset": parts.subset or None, "port": parts.port}


def _retries(policy: RetryPolicy | None, per_try: float) -> dict[str, Any] | None:
    if policy is None or not policy.retries:
        return None
    return {
        "attempts": policy.retries,
        "per_try_timeout_s": per_try or None,
        "retry_on": sorted(condition.value for condition in policy.retry_on),
        "status_codes": sorted(policy.status_codes),
    }


def _rewrite(
    route: Route, forward: Forward, head: RequestHead, cluster: WeightedCluster
) -> dict[str, Any] | None:
    sent = outgoing(head, route, forward, cluster)
    if (sent.path, sent.authority) == (head.path, head.authority):
        return None
    return {"path": sent.path, "authority": sent.authority, "rule": forward.rewrite_text}


def endpoints_of(cluster: str, known: EndpointSet | None) -> list[dict[str, Any]]:
    """What is known of the endpoints of a cluster."""
    return [
        {
            "cluster": cluster,
            "address": endpoint.key,
            "eligible": endpoint.healthy,
            "locality": group.locality,
            "priority": group.priority,
            "weight": endpoint.weight,
            "labels": dict(endpoint.metadata),
        }
        for group in (known.localities if known else ())
        for endpoint in group.endpoints
    ]
