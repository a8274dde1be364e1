"""A forwarded request: which cluster, what it looks like on its way, how long it may take.

Rules (Envoy, RouteEntryImplBase::finalizeRequestHeaders, Router::FilterUtility::finalTimeout):
* A cluster of weight 0 is never picked.
* In this order: the weighted cluster's header edits, its host, the route's edits, its host, its path.
* A rewritten path leaves the old one in x-envoy-original-path, the route's host the one before it in
  x-envoy-original-host.
* A gRPC request's own grpc-timeout counts, up to the route's max_grpc_timeout, if the route has one.
* A per-try timeout that is not shorter than the whole has no effect.
"""

from collections.abc import Iterable

from meshlib.core.headers import EditContext, one_value
from meshlib.core.request import Dice, Header, RequestHead
from meshlib.core.route.rule import Forward, Route, Timeouts, WeightedCluster

ORIGINAL_PATH = b"x-envoy-original-path"
ORIGINAL_HOST = b"x-envoy-original-host"
_GRPC_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def pick_cluster(forward: Forward, dice: Dice) -> WeightedCluster:
    """One of the clusters, each as often as its weight says."""
    clusters = forward.clusters
    if len(clusters) == 1:
        return clusters[0]
    point = dice.random() * forward.total_weight
    for cluster in clusters:
        if point < cluster.upto:
            return cluster
    return clusters[-1]


def outgoing(head: RequestHead, route: Route, forward: Forward, cluster: WeightedCluster) -> RequestHead:
    """The request as it is sent to `cluster`; `head` itself if nothing changes."""
    made = head
    if cluster.request_headers.levels:
        made = cluster.request_headers.apply_to_request(EditContext(made, cluster.name, route.name))
    if cluster.authority:
        made = _changed(made, cluster.authority, made.path, made.headers)
    if route.request_headers.levels:
        made = route.request_headers.apply_to_request(EditContext(made, cluster.name, route.name))
    if forward.authority:
        headers = _set(made.headers, ORIGINAL_HOST, made.authority)
        made = _changed(made, forward.authority, made.path, headers)
    if forward.rewrite is not None and (path := forward.rewrite(made)):
        made = _changed(made, made.authority, path, _set(made.headers, ORIGINAL_PATH, made.path))
    return made


def _changed(head: RequestHead, authority: str, path: str, headers: list[Header]) -> RequestHead:
    return RequestHead(head.method, head.scheme, authority, path, headers)


def _set(headers: list[Header], name: bytes, value: str) -> list[Header]:
    made = [header for header in headers if header[0].lower() != name]
    made.append((name, value.encode("latin-1")))
    return made


def incoming(
    headers: Iterable[Header], status: int, sent: RequestHead, route: Route, cluster: WeightedCluster | None
) -> tuple[Header, ...]:
    """The response's headers as the application sees them.

    `sent` is the request as it went out (Envoy's templates see that one). `cluster` is None for a
    reply of our own, and `sent` is then the request as it came.
    """
    edits = route.response_headers
    if cluster is not None and cluster.response_headers.levels:
        edits = cluster.response_headers.then(edits)
    if not edits.levels:
        return tuple(headers)
    if cluster is None:
        context = EditContext(sent, route=route.name)
    else:
        context = EditContext(sent, cluster.name, route.name, status)
    return tuple(edits.apply(headers, context))


def timeouts(forward: Forward, head: RequestHead) -> Timeouts:
    """How long the whole response and each try may take: `forward.times`, unless it is gRPC."""
    if forward.max_grpc_timeout is None or not is_grpc(head):
        return forward.times
    whole = grpc_timeout(head.header(b"grpc-timeout"))
    if forward.max_grpc_timeout and not 0 < whole <= forward.max_grpc_timeout:
        whole = forward.max_grpc_timeout
    return Timeouts.of(whole, forward.retry)


def grpc_timeout(value: bytes | None) -> float:
    """The seconds in a grpc-timeout header (`1S`, `200m`); 0 if there is none or it is malformed."""
    if value is None or not value[:-1].isdigit() or len(value) > 9:
        return 0.0
    return int(value[:-1]) * _GRPC_UNITS.get(value[-1:], 0.0)


def is_grpc(head: RequestHead) -> bool:
    """Whether Envoy takes the request for gRPC: by its content-type."""
    kind = head.index.get(b"content-type")
    if kind is None:
        return False
    if kind == b"application/grpc":
        return True
    if b"," in kind:
        kind = one_value(head, b"content-type") or b""
    return kind == b"application/grpc" or kind.startswith(b"application/grpc+")
