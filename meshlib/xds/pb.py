"""The one door to protobuf messages.

Messages live in a private descriptor pool, filled once from `descriptors.binpb.gz` (made from
xds-protos at build time). Nothing here touches protobuf's default pool, so any other package's
generated code, xds-protos included, can be imported in the same process.

Classes are made when they are first asked for: `pb.Cluster` by the short names below, anything
else by its full name with `pb.message("envoy.config.core.v3.Address")`. They are dynamic, so
they are typed `Any`; every function that takes or returns one says which message it is.
"""

import functools
import gzip
import pkgutil
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pool, message_factory

_SHORT = {
    "Any": "google.protobuf.Any",
    "Duration": "google.protobuf.Duration",
    "Struct": "google.protobuf.Struct",
    "Status": "google.rpc.Status",
    "Node": "envoy.config.core.v3.Node",
    "Address": "envoy.config.core.v3.Address",
    "Locality": "envoy.config.core.v3.Locality",
    "Metadata": "envoy.config.core.v3.Metadata",
    "HeaderValueOption": "envoy.config.core.v3.HeaderValueOption",
    "Bootstrap": "envoy.config.bootstrap.v3.Bootstrap",
    "Listener": "envoy.config.listener.v3.Listener",
    "FilterChain": "envoy.config.listener.v3.FilterChain",
    "RouteConfiguration": "envoy.config.route.v3.RouteConfiguration",
    "ScopedRouteConfiguration": "envoy.config.route.v3.ScopedRouteConfiguration",
    "VirtualHost": "envoy.config.route.v3.VirtualHost",
    "Route": "envoy.config.route.v3.Route",
    "RouteMatch": "envoy.config.route.v3.RouteMatch",
    "RouteAction": "envoy.config.route.v3.RouteAction",
    "RetryPolicy": "envoy.config.route.v3.RetryPolicy",
    "HeaderMatcher": "envoy.config.route.v3.HeaderMatcher",
    "QueryParameterMatcher": "envoy.config.route.v3.QueryParameterMatcher",
    "StringMatcher": "envoy.type.matcher.v3.StringMatcher",
    "RegexMatcher": "envoy.type.matcher.v3.RegexMatcher",
    "FractionalPercent": "envoy.type.v3.FractionalPercent",
    "Cluster": "envoy.config.cluster.v3.Cluster",
    "OutlierDetection": "envoy.config.cluster.v3.OutlierDetection",
    "CircuitBreakers": "envoy.config.cluster.v3.CircuitBreakers",
    "ClusterLoadAssignment": "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "LocalityLbEndpoints": "envoy.config.endpoint.v3.LocalityLbEndpoints",
    "LbEndpoint": "envoy.config.endpoint.v3.LbEndpoint",
    "HttpConnectionManager": (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    ),
    "HttpFilter": "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    "TcpProxy": "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "ProxyProtocolUpstreamTransport": (
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"
    ),
    "Router": "envoy.extensions.filters.http.router.v3.Router",
    "HTTPFault": "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "FaultDelay": "envoy.extensions.filters.common.fault.v3.FaultDelay",
    "FaultAbort": "envoy.extensions.filters.http.fault.v3.FaultAbort",
    "Cors": "envoy.extensions.filters.http.cors.v3.Cors",
    "CorsPolicy": "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    "HttpProtocolOptions": "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "UpstreamTlsContext": "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "DownstreamTlsContext": "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "Secret": "envoy.extensions.transport_sockets.tls.v3.Secret",
    "DiscoveryRequest": "envoy.service.discovery.v3.DiscoveryRequest",
    "DiscoveryResponse": "envoy.service.discovery.v3.DiscoveryResponse",
    "DeltaDiscoveryRequest": "envoy.service.discovery.v3.DeltaDiscoveryRequest",
    "DeltaDiscoveryResponse": "envoy.service.discovery.v3.DeltaDiscoveryResponse",
    "Resource": "envoy.service.discovery.v3.Resource",
    "HealthCheckRequestOrEndpointHealthResponse": (
        "envoy.service.health.v3.HealthCheckRequestOrEndpointHealthResponse"
    ),
    "HealthCheckSpecifier": "envoy.service.health.v3.HealthCheckSpecifier",
    "LoadStatsRequest": "envoy.service.load_stats.v3.LoadStatsRequest",
    "LoadStatsResponse": "envoy.service.load_stats.v3.LoadStatsResponse",
    "ClientStatusRequest": "envoy.service.status.v3.ClientStatusRequest",
    "ClientStatusResponse": "envoy.service.status.v3.ClientStatusResponse",
    "RBAC": "envoy.extensions.filters.http.rbac.v3.RBAC",
    "JwtAuthentication": "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
    "ExtAuthz": "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    "CheckRequest": "envoy.service.auth.v3.CheckRequest",
    "CheckResponse": "envoy.service.auth.v3.CheckResponse",
    "IstioCertificateRequest": "istio.v1.auth.IstioCertificateRequest",
    "IstioCertificateResponse": "istio.v1.auth.IstioCertificateResponse",
}

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
DELTA_ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
HDS = "/envoy.service.health.v3.HealthDiscoveryService/StreamHealthCheck"
LRS = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
CREATE_CERTIFICATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
CSDS = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus"


_pools: dict[str, descriptor_pool.DescriptorPool] = {}


def pool() -> descriptor_pool.DescriptorPool:
    """The private pool with every message of the contract (5 ms, at first use).

    There is one, also if several threads ask first: a message of one pool is none of another. No lock,
    for a fork to find held: each may build one, and the first that is put down is everybody's.
    """
    return _pools.get("") or _pools.setdefault("", _built())


def _built() -> descriptor_pool.DescriptorPool:
    packed = pkgutil.get_data("meshlib.xds", "descriptors.binpb.gz")
    assert packed is not None  # noqa: S101 - it is a part of the package
    made = descriptor_pool.DescriptorPool()
    for file in _files(gzip.decompress(packed)):
        made.AddSerializedFile(file)
    return made


def _files(of: bytes) -> Iterator[bytes]:
    """The FileDescriptorProtos of a FileDescriptorSet, as they are: `repeated file = 1` and nothing else.

    protobuf's class for it takes longer to load than the whole pool to be built.
    """
    at = 0
    while at < len(of):
        assert of[at] == 0x0A  # noqa: S101 - it is made by us
        at, size, shift = at + 1, 0, 0
        while True:
            size |= (of[at] & 0x7F) << shift
            at, shift, more = at + 1, shift + 7, of[at] & 0x80
            if not more:
                break
        yield of[at : at + size]
        at += size


@functools.cache
def message(full_name: str) -> Any:
    """The message class of that full name, e.g. `envoy.config.core.v3.Address`; KeyError if unknown."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(full_name))


def __getattr__(name: str) -> Any:
    if name not in _SHORT:
        raise AttributeError(name)
    made = message(_SHORT[name])
    globals()[name] = made
    return made


def type_url(cls: Any) -> str:
    """`type.googleapis.com/<full name>` of a message or a message class."""
    return f"type.googleapis.com/{cls.DESCRIPTOR.full_name}"


def pack(inner: Any) -> Any:
    """`inner` in a google.protobuf.Any, serialised deterministically: equal messages, equal bytes."""
    return message("google.protobuf.Any")(
        type_url=type_url(inner), value=inner.SerializeToString(deterministic=True)
    )


def unpack(any_message: Any) -> Any:
    """The message inside an Any. KeyError: a type outside the contract; DecodeError: broken bytes."""
    return message(any_message.type_url.rpartition("/")[2]).FromString(any_message.value)


def to_dict(inner: Any) -> dict[str, Any]:
    """A message as JSON-like values with proto field names; for people, golden files and tests."""
    from google.protobuf import json_format  # which no client needs

    found = json_format.MessageToDict(inner, preserving_proto_field_name=True, descriptor_pool=pool())
    return dict(found)


def from_dict(cls: Any, values: dict[str, Any]) -> Any:
    """A message from JSON-like values; slow (150 microseconds for ten endpoints): not on a hot path."""
    from google.protobuf import json_format

    return json_format.ParseDict(values, cls(), descriptor_pool=pool())


def duration(seconds: float) -> Any:
    """A google.protobuf.Duration of that many seconds, to the nanosecond."""
    made = message("google.protobuf.Duration")()
    made.FromNanoseconds(round(seconds * 1_000_000_000))
    return made


def seconds(of: Any) -> float:
    """The seconds in a google.protobuf.Duration."""
    return float(of.seconds) + float(of.nanos) / 1_000_000_000
