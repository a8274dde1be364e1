"""What rules say that gRPC's own xDS client, the one in C, does not do, or does in another way.

The one place where that is known: each `Gap` is of a row of "Who does what" in docs/how-to/grpc.md, and the
tests hold the two together. Rules:

- Told is what trials showed (docs/reference/grpc-interop.md), what gRPC is not sent, and what it does not say
  that it reads (GRPC_TRACE=xds_client).
- It is looked for in the mesh's own view of the host, which is made of the same rules.
- LEAST_REQUEST is not told of: it stands also where nothing is said, and the view does not know which.
- Nor is what does the same for a call of gRPC: `connect-failure` is UNAVAILABLE there.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from meshlib.core.balance.cluster import UNLIMITED, Cluster, Policy
from meshlib.core.balance.endpoints import Endpoint, EndpointSet
from meshlib.core.balance.hashing import HashCookie, HashHeader, HashQuery, HashSource
from meshlib.core.mtls import secure
from meshlib.core.retry import RetryOn, RetryPolicy
from meshlib.core.route.rule import DirectResponse, Forward, Origin, Redirect, Route
from meshlib.core.view import View

MOST_TRIES = 5
_CONNECT_TIMEOUT, _IDLE_TIMEOUT = 10.0, 3600.0
"""Where nothing is said."""
_GRPC = frozenset(
    (
        RetryOn.CANCELLED,
        RetryOn.DEADLINE_EXCEEDED,
        RetryOn.INTERNAL,
        RetryOn.RESOURCE_EXHAUSTED,
        RetryOn.UNAVAILABLE,
    )
)
_NO_CONNECTION = frozenset(
    (
        RetryOn.CONNECT_FAILURE,
        RetryOn.REFUSED_STREAM,
        RetryOn.RESET,
        RetryOn.RESET_BEFORE_REQUEST,
        RetryOn.HTTP3_POST_CONNECT_FAILURE,
    )
)
"""What gRPC calls UNAVAILABLE."""
_KEYS = {HashCookie: "httpCookie", HashSource: "useSourceIp", HashQuery: "httpQueryParameterName"}


class Used(NamedTuple):
    """A cluster that a rule of the host leads to."""

    cluster: Cluster
    endpoints: tuple[Endpoint, ...]
    """Those that are there now."""


Found = Iterator[tuple[str, str]]
"""Of each: the field, in Istio's words, and what becomes of it."""


class OfRoute(NamedTuple):
    """Something that a rule may say. `row` is that of the page."""

    row: str
    find: Callable[[Route], Found]


class OfCluster(NamedTuple):
    """Something that the policy of a destination may say."""

    row: str
    find: Callable[[Used], Found]


def ignored(view: View, name: str) -> tuple[str, ...]:
    """What the rules of `host:port` say in vain, each with its document, line and field."""
    table = view.tables.get(name)
    host = None if table is None else table.find_host(name)
    if host is None or host.blocks:
        return ()
    told: dict[str, None] = {}
    for route in host.routes:
        for gap in OF_ROUTES:
            told.update(dict.fromkeys(_told(route.origin, route.name, gap.find(route))))
    for used in _used(view, host.routes):
        for each in OF_CLUSTERS:
            told.update(dict.fromkeys(_told(used.cluster.origin, used.cluster.name, each.find(used))))
    return tuple(told)


def _told(origin: Origin, name: str, found: Found) -> Iterator[str]:
    for field, what in found:
        yield f"{str(origin) or name}: {field}: {what}"


def _used(view: View, routes: tuple[Route, ...]) -> Iterator[Used]:
    named = dict.fromkeys(
        split.name
        for route in routes
        if isinstance(route.action, Forward)
        for split in route.action.clusters
        if split.weight
    )
    for name in named:
        cluster = view.clusters.get(name)
        if cluster is not None and cluster.service is not None:  # of others no document says anything
            found = cluster.inline or view.endpoints.get(name) or EndpointSet()
            yield Used(cluster, tuple(one for group in found.localities for one in group.endpoints))


# What rules say


def _answers(route: Route) -> Found:
    if route.match.query:
        yield "match.queryParams", "calls of gRPC have none; the rule is left out"
    if isinstance(route.action, Redirect):
        yield "redirect", f"calls fail with the code that {route.action.status} reads as"
    elif isinstance(route.action, DirectResponse):
        yield "directResponse", f"calls fail with the code that {route.action.status} reads as, and no more"


def _edits(route: Route) -> Found:
    action = route.action
    splits = action.clusters if isinstance(action, Forward) else ()
    if route.request_headers or any(split.request_headers for split in splits):
        yield "headers.request", "is not done"
    if route.response_headers or any(split.response_headers for split in splits):
        yield "headers.response", "is not done"
    if not isinstance(action, Forward):
        return
    if action.rewrite is not None:
        yield "rewrite", "the path stays"
    if action.authority or any(split.authority for split in splits):
        yield "rewrite.authority", "the authority stays"
    if action.mirrors:
        yield "mirrors", "no copy is sent"


def _retries(route: Route) -> RetryPolicy | None:
    return route.action.retry if isinstance(route.action, Forward) else None


def _conditions(route: Route) -> Found:
    policy = _retries(route)
    if policy is None:
        return
    rest = policy.retry_on - _GRPC
    if RetryOn.UNAVAILABLE in policy.retry_on:
        rest -= _NO_CONNECTION
    if not policy.status_codes:
        rest -= {RetryOn.RETRIABLE_STATUS_CODES}
    if rest:
        words = ", ".join(sorted(one.value for one in rest))
        yield "retries.retryOn", f"nothing is tried again for {words}"


def _tries(route: Route) -> Found:
    policy = _retries(route)
    if policy is not None and policy.retries + 1 > MOST_TRIES:
        yield (
            "retries.attempts",
            f"{MOST_TRIES} tries at most, the first included; {policy.retries + 1} are said",
        )


def _time_of_a_try(route: Route) -> Found:
    if isinstance(route.action, Forward) and route.action.times.per_try and _retries(route) is not None:
        yield "retries.perTryTimeout", "a try has no time of its own"


def _hedged(route: Route) -> Found:
    if isinstance(route.action, Forward) and route.action.hedged:
        yield "hedge_policy", "tries are not hedged"


def _time_of_the_rule(route: Route) -> Found:
    if isinstance(route.action, Forward) and route.action.timeout:
        yield "timeout", f"a call ends up to 1 s later than {route.action.timeout:g} s"


def _keys(route: Route) -> Found:
    if isinstance(route.action, Forward):
        for policy in route.action.hashing:
            if not isinstance(policy, HashHeader):
                yield f"loadBalancer.consistentHash.{_KEYS[type(policy)]}", "is no key: the endpoint is any"


# What policies say


def _balancers(used: Used) -> Found:
    policy = used.cluster.policy
    if policy is Policy.RANDOM:
        yield "loadBalancer.simple", "RANDOM is round robin"
    elif policy is Policy.MAGLEV:
        yield "loadBalancer.consistentHash.maglev", "is a ring: keys have other endpoints than with Envoy"
    if used.cluster.hash_table is None and len({one.weight for one in used.endpoints}) > 1:
        yield "weight", "those of endpoints do not count"


def _warming(used: Used) -> Found:
    if used.cluster.warmup is not None:
        yield "loadBalancer.warmup", "a new endpoint takes its whole share at once"


def _in_a_row(used: Used) -> Found:
    policy = used.cluster.outlier
    if policy is None:
        return
    if any((policy.consecutive_5xx, policy.consecutive_gateway, policy.consecutive_local)):
        what = "errors in a row are not counted; ejected is, at each interval, who fails half of five calls"
        yield "outlierDetection", what


def _pool(used: Used) -> Found:
    upstream = used.cluster.upstream
    limits = upstream.limits
    said = {
        "tcp.maxConnections": limits.max_connections != UNLIMITED,
        "tcp.connectTimeout": upstream.connect_timeout != _CONNECT_TIMEOUT,
        "tcp.maxConnectionDuration": upstream.max_connection_duration != float("inf"),
        "tcp.tcpKeepalive": upstream.keepalive is not None,
        "http.http1MaxPendingRequests": limits.max_pending != UNLIMITED,
        "http.maxRetries": limits.max_retries != UNLIMITED,
        "http.maxRequestsPerConnection": bool(upstream.max_requests_per_connection),
        "http.idleTimeout": upstream.idle_timeout != _IDLE_TIMEOUT,
    }
    for field, is_said in said.items():
        if is_said:
            yield f"connectionPool.{field}", "does not hold"
    if limits.budget is not None:
        yield "retryBudget", "does not hold"


def _own_tls(used: Used) -> Found:
    tls = used.cluster.tls
    if tls is not None and not tls.mesh_identity:
        yield "tls.mode", "SIMPLE and MUTUAL are plain text: calls are not encrypted"


def _by_itself(used: Used) -> Found:
    cluster = used.cluster
    if cluster.transports and any(secure(cluster, one) is not None for one in used.endpoints):
        what = "calls are plain text, for there is no mutual TLS by itself: a DestinationRule has to say it"
        yield "tls.mode ISTIO_MUTUAL", what


def _proxied(used: Used) -> Found:
    if used.cluster.upstream.proxy_protocol:
        yield "proxyProtocol", "connections begin without a PROXY header"


def _sockets(used: Used) -> Found:
    if any(not one.port for one in used.endpoints):
        yield "address", "sockets of the file system are not reached"


OF_ROUTES = (
    OfRoute("query matches, redirects, direct responses", _answers),
    OfRoute("header edits, rewrites, mirrors", _edits),
    OfRoute("retries: conditions", _conditions),
    OfRoute("number of tries", _tries),
    OfRoute("time per try", _time_of_a_try),
    OfRoute("hedging", _hedged),
    OfRoute("time of the rule", _time_of_the_rule),
    OfRoute("consistentHash: a cookie, the caller's address", _keys),
)
OF_CLUSTERS = (
    OfCluster("LEAST_REQUEST, RANDOM, MAGLEV, weights of endpoints", _balancers),
    OfCluster("warmup", _warming),
    OfCluster("consecutive errors (outlier detection)", _in_a_row),
    OfCluster("connectionPool but http2MaxRequests, retryBudget", _pool),
    OfCluster("TLS of modes SIMPLE and MUTUAL", _own_tls),
    OfCluster("PERMISSIVE, endpoint by endpoint", _by_itself),
    OfCluster("proxyProtocol", _proxied),
    OfCluster("sockets of the file system", _sockets),
)
