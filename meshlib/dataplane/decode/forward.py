"""Envoy's RouteAction as core's Forward: clusters and weights, timeouts, retries, mirrors, rewrites.

Rules (Envoy):
* A route without a timeout has 15 s; a timeout of 0 means none. max_stream_duration is a second limit.
* A route's own retry policy, or list of mirrors, replaces that of its virtual host.
* A route's own hedge policy replaces that of its virtual host, too.
* Weights must sum up to more than 0.

Refused: every way to choose a cluster or a host that only a proxy has (a header's value, a plug-in).
"""

from typing import Any

from meshlib.core.fault import Fault
from meshlib.core.headers import EMPTY
from meshlib.core.retry import RetryPolicy
from meshlib.core.route.match import PathMatch
from meshlib.core.route.rule import Forward, MirrorPolicy, WeightedCluster
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.fault import decode_fault
from meshlib.dataplane.decode.hashing import decode_hash_policies
from meshlib.dataplane.decode.headers import decode_edits
from meshlib.dataplane.decode.hedge import decode_hedge
from meshlib.dataplane.decode.mirror import decode_mirrors
from meshlib.dataplane.decode.retry import decode_retry
from meshlib.dataplane.decode.rewrite import decode_rewrite
from meshlib.dataplane.decode.text import decode_seconds
from meshlib.values import dataclass

DEFAULT_TIMEOUT = 15.0
MAX_CLUSTERS = 1_000
MAX_TOTAL_WEIGHT = 2**32 - 1
_UNSUPPORTED = (
    "path_rewrite",
    "path_rewrite_policy",
    "auto_host_rewrite",
    "host_rewrite_header",
    "host_rewrite_path_regex",
    "host_rewrite",
    "append_x_forwarded_host",
    "grpc_timeout_offset",
    "retry_policy_typed_config",
    "metadata_match",
)


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a route takes from its virtual host and its route configuration unless it says otherwise."""

    retry: RetryPolicy | None = None
    mirrors: tuple[MirrorPolicy, ...] = ()
    fault: Fault | None = None
    hedged: bool = False


def decode_forward(message: Any, matched: PathMatch, inherited: Inherited, fault: Fault | None) -> Forward:
    """An envoy.config.route.v3.RouteAction; `fault` is that of its route."""
    for field, _ in message.ListFields():
        if field.name in _UNSUPPORTED:
            raise Refused(field.name, "is not supported")
    clusters, total = _decode_clusters(message, fault)
    rewrite, words = decode_rewrite(message, matched)
    retry = inherited.retry
    if message.HasField("retry_policy"):
        try:
            retry = decode_retry(message.retry_policy)
        except Refused as refused:
            raise refused.within("retry_policy") from None
    return Forward(
        clusters=clusters,
        total_weight=total,
        timeout=_decode_timeout(message),
        retry=retry,
        mirrors=decode_mirrors(message.request_mirror_policies) or inherited.mirrors,
        rewrite=rewrite,
        rewrite_text=words,
        authority=message.host_rewrite_literal,
        max_grpc_timeout=_decode_max_grpc_timeout(message),
        hedged=decode_hedge(message, inherited.hedged),
        hashing=decode_hash_policies(message.hash_policy),
    )


def _decode_clusters(message: Any, fault: Fault | None) -> tuple[tuple[WeightedCluster, ...], int]:
    which = message.WhichOneof("cluster_specifier")
    if which == "cluster":
        if not message.cluster:
            raise Refused("cluster", "is empty")
        only = WeightedCluster(message.cluster, 1, 1, EMPTY, EMPTY, fault=fault)
        return (only,), 1
    if which != "weighted_clusters":
        raise Refused(which or "cluster_specifier", "is not supported" if which else "is not set")
    try:
        return _decode_weighted(message.weighted_clusters, fault)
    except Refused as refused:
        raise refused.within("weighted_clusters") from None


def _decode_weighted(message: Any, fault: Fault | None) -> tuple[tuple[WeightedCluster, ...], int]:
    if len(message.clusters) > MAX_CLUSTERS:
        raise Refused("clusters", f"more than {MAX_CLUSTERS}")
    made = []
    total = 0
    for number, cluster in enumerate(message.clusters):
        try:
            total += cluster.weight.value
            made.append(_decode_weighted_cluster(cluster, total, fault))
        except Refused as refused:
            raise refused.within(f"clusters[{number}]") from None
    if not 0 < total <= MAX_TOTAL_WEIGHT:
        raise Refused("clusters", f"the weights sum up to {total}, allowed is 1 to {MAX_TOTAL_WEIGHT}")
    return tuple(made), total


def _decode_weighted_cluster(cluster: Any, upto: int, fault: Fault | None) -> WeightedCluster:
    if cluster.cluster_header:
        raise Refused("cluster_header", "is not supported")
    if not cluster.name:
        raise Refused("name", "is empty")
    return WeightedCluster(
        name=cluster.name,
        weight=cluster.weight.value,
        upto=upto,
        request_headers=decode_edits(cluster, "request"),
        response_headers=decode_edits(cluster, "response"),
        authority=cluster.host_rewrite_literal,
        fault=decode_fault(cluster.typed_per_filter_config, fault),
    )


def _decode_timeout(message: Any) -> float:
    timeout = decode_seconds(message, "timeout", DEFAULT_TIMEOUT)
    if not message.HasField("max_stream_duration"):
        return timeout
    stream = message.max_stream_duration
    if stream.HasField("grpc_timeout_header_offset"):
        raise Refused("max_stream_duration.grpc_timeout_header_offset", "is not supported")
    try:
        longest = decode_seconds(stream, "max_stream_duration", 0.0)
    except Refused as refused:
        raise refused.within("max_stream_duration") from None
    return min(timeout, longest) if timeout and longest else timeout or longest


def _decode_max_grpc_timeout(message: Any) -> float | None:
    if message.HasField("max_grpc_timeout"):
        return decode_seconds(message, "max_grpc_timeout", 0.0)
    stream = message.max_stream_duration
    if not stream.HasField("grpc_timeout_header_max"):
        return None
    return decode_seconds(stream, "grpc_timeout_header_max", 0.0)
