"""Envoy's Cluster as core's: where its endpoints come from, how it balances, connects and stops."""

from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.core.balance.cluster import Cluster, Keepalive, Resolution, Upstream
from meshlib.core.balance.endpoints import EndpointSet
from meshlib.core.outlier_policy import OutlierPolicy
from meshlib.dataplane.decode.balance import decode_balance
from meshlib.dataplane.decode.breaker import decode_limits
from meshlib.dataplane.decode.dns import decode_named, is_dynamic
from meshlib.dataplane.decode.endpoints import decode_endpoints
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.http2 import decode_http2
from meshlib.dataplane.decode.mtls import decode_transports
from meshlib.dataplane.decode.origin import decode_origin
from meshlib.dataplane.decode.outlier import decode_outlier
from meshlib.dataplane.decode.proxy_protocol import decode_proxy_protocol
from meshlib.dataplane.decode.telemetry import decode_service
from meshlib.dataplane.decode.text import decode_seconds
from meshlib.xds import pb

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_RESOLUTIONS = (  # by Cluster.DiscoveryType: STATIC, STRICT_DNS, LOGICAL_DNS, EDS, ORIGINAL_DST
    Resolution.ENDPOINTS,
    Resolution.DNS,
    Resolution.DNS,
    Resolution.ENDPOINTS,
    Resolution.ORIGINAL,
)
_EDS = 3
_PROVIDED = 6
"""Cluster.LbPolicy CLUSTER_PROVIDED."""
_OPTIONS = f"typed_extension_protocol_options[{HTTP_OPTIONS}]"


def decode_cluster(message: Any) -> Cluster:
    """An envoy.config.cluster.v3.Cluster. Refused: it can't be used; the error names the field."""
    if not message.name:
        raise Refused("name", "is empty")
    resolution = _resolution(message)
    balance = decode_balance(message)
    connect = decode_seconds(message, "connect_timeout", 5.0)
    if connect <= 0:
        raise Refused("connect_timeout", "must be longer than nothing")
    options = _options(message)
    requests, idle = _decode_http(message, options)
    http2 = _within(_OPTIONS, decode_http2, options)
    upstream = options.upstream_http_protocol_options if options is not None else None
    transports, tls = decode_transports(
        message,
        auto_sni=upstream is not None and upstream.auto_sni,
        verify_host=upstream is not None and upstream.auto_san_validation,
        http2=http2 is not None,
    )
    listed = _decode_inline(message, resolution)
    return Cluster(
        name=message.name,
        endpoints_name=message.eds_cluster_config.service_name or message.name,
        policy=balance.policy,
        resolution=resolution,
        choice_count=balance.choice_count,
        upstream=Upstream(
            connect_timeout=connect,
            limits=_within("circuit_breakers", decode_limits, message.circuit_breakers),
            max_requests_per_connection=requests,
            idle_timeout=idle,
            http2=http2,
            max_connection_duration=_duration(options),
            keepalive=_keepalive(message),
            proxy_protocol=decode_proxy_protocol(message),
        ),
        outlier=_decode_outlier(message, options),
        panic_threshold=_panic(message.common_lb_config),
        fail_on_panic=balance.fail_on_panic,
        locality_weighted=balance.locality_weighted,
        active_request_bias=balance.active_request_bias,
        warmup=balance.warmup,
        hash_table=balance.hash_table,
        inline=None if resolution is Resolution.DNS else listed,
        named=None if listed is None or resolution is not Resolution.DNS else decode_named(message, listed),
        transports=transports,
        tls=tls,
        service=decode_service(message.metadata),
        origin=decode_origin(message),
    )


def _decode_outlier(message: Any, options: Any) -> OutlierPolicy | None:
    if not message.HasField("outlier_detection"):
        return None
    made: OutlierPolicy = _within("outlier_detection", decode_outlier, message.outlier_detection)
    detection = options.outlier_detection if options is not None else None
    if detection is None or not detection.HasField("error_matcher"):
        return made
    from meshlib.dataplane.decode.outlier_errors import decode_errors  # which few clusters have

    errors = _within(f"{_OPTIONS}.outlier_detection.error_matcher", decode_errors, detection.error_matcher)
    return replace(made, errors=errors)


def _resolution(message: Any) -> Resolution:
    if message.HasField("cluster_type") and is_dynamic(message):
        return Resolution.DYNAMIC
    if message.type >= len(_RESOLUTIONS):
        raise Refused("type", "is not supported")
    found = _RESOLUTIONS[message.type]
    listed = message.HasField("load_balancing_policy")
    if found is Resolution.ORIGINAL and not listed and message.lb_policy != _PROVIDED:
        # Envoy: "Only 'CLUSTER_PROVIDED' is allowed with cluster type 'ORIGINAL_DST'".
        raise Refused("lb_policy", "is not CLUSTER_PROVIDED, and ORIGINAL_DST leaves nothing to choose")
    return found


def _decode_inline(message: Any, resolution: Resolution) -> EndpointSet | None:
    if message.type == _EDS or resolution in (Resolution.ORIGINAL, Resolution.DYNAMIC):
        return None
    found: EndpointSet = _within("load_assignment", decode_endpoints, message.load_assignment)
    return found


def _within(name: str, decode: Any, message: Any) -> Any:
    try:
        return decode(message)
    except Refused as refused:
        raise refused.within(name) from None


def _options(message: Any) -> Any:
    """The HttpProtocolOptions of a Cluster, or None."""
    packed = message.typed_extension_protocol_options
    if HTTP_OPTIONS not in packed:
        return None
    try:
        return pb.unpack(packed[HTTP_OPTIONS])
    except (DecodeError, KeyError) as error:
        raise Refused(_OPTIONS, f"can't be decoded: {error}") from None


def _decode_http(message: Any, options: Any) -> tuple[int, float]:
    """Requests of one connection (0: no limit) and seconds until an idle one is closed."""
    requests = message.max_requests_per_connection.value
    if options is None:
        return requests, 3600.0
    common = options.common_http_protocol_options
    idle = _within(_OPTIONS, lambda inner: decode_seconds(inner, "idle_timeout", 3600.0), common)
    return common.max_requests_per_connection.value or requests, idle or float("inf")


def _duration(options: Any) -> float:
    """Seconds that a connection may live."""
    if options is None:
        return float("inf")
    common = options.common_http_protocol_options
    found = _within(_OPTIONS, lambda inner: decode_seconds(inner, "max_connection_duration", 0.0), common)
    return found or float("inf")


def _keepalive(message: Any) -> Keepalive | None:
    options = message.upstream_connection_options
    if not options.HasField("tcp_keepalive"):
        return None
    names = ("keepalive_probes", "keepalive_time", "keepalive_interval")
    numbers = []
    for name in names:
        field = getattr(options.tcp_keepalive, name)
        said = options.tcp_keepalive.HasField(name)
        if said and not 0 < field.value < 2**31:
            path = f"upstream_connection_options.tcp_keepalive.{name}"
            raise Refused(path, f"{field.value} is nothing that a socket takes")
        numbers.append(int(field.value) if said else None)
    return Keepalive(*numbers)


def _panic(message: Any) -> int:
    """Percent of healthy endpoints below which health is not looked at."""
    if not message.HasField("healthy_panic_threshold"):
        return 50
    percent = message.healthy_panic_threshold.value
    if not 0 <= percent <= 100:  # which NaN is not either
        raise Refused("common_lb_config.healthy_panic_threshold", f"{percent} is no percentage")
    return int(percent + 0.5)  # Envoy rounds it
