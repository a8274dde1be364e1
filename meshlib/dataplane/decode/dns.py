"""How the endpoints of an Envoy's DNS cluster are looked up: Named, or that each request names its own.

Rules:

- `respect_dns_ttl` and jitter change when a name is asked for again, which the system's resolver leaves to
  `dns_refresh_rate`: they are passed over. Resolvers of the configuration's own are refused.
- A name that nobody answered is asked for again after `dns_failure_refresh_rate`, else after 5 s at most.
- A dynamic forward proxy asks for each request's host when it connects; its cache settings are passed over.
"""

from typing import Any

from google.protobuf.message import DecodeError

from meshlib.core.balance.dns import Family, Named
from meshlib.core.balance.endpoints import EndpointSet
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.text import decode_seconds
from meshlib.xds import pb

DYNAMIC = "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig"
LOGICAL = 2
"""Of Cluster.DiscoveryType."""
_FAMILIES = (Family.AUTO, Family.V4_ONLY, Family.V6_ONLY, Family.V4_PREFERRED, Family.ALL)
_OWN = ("dns_resolvers", "dns_resolution_config", "typed_dns_resolver_config")
_REFRESH = 5.0
"""Envoy's dns_refresh_rate."""


def decode_named(message: Any, endpoints: EndpointSet) -> Named:
    """The names of an envoy.config.cluster.v3.Cluster of STRICT_DNS or LOGICAL_DNS."""
    logical = message.type == LOGICAL
    if logical and (len(endpoints.localities) != 1 or endpoints.size != 1):
        raise Refused("load_assignment", "LOGICAL_DNS has one endpoint")
    for name in _OWN:
        if getattr(message, name) if name == "dns_resolvers" else message.HasField(name):
            raise Refused(name, "is not supported: names are asked of the system's resolver")
    if message.dns_lookup_family >= len(_FAMILIES):
        raise Refused("dns_lookup_family", "is not supported")
    refresh = decode_seconds(message, "dns_refresh_rate", _REFRESH)
    if refresh < 0.001:
        raise Refused("dns_refresh_rate", "must be at least 1 ms")
    retry = min(refresh, _REFRESH)
    if message.HasField("dns_failure_refresh_rate"):
        try:
            retry = decode_seconds(message.dns_failure_refresh_rate, "base_interval", retry)
        except Refused as refused:
            raise refused.within("dns_failure_refresh_rate") from None
        if retry < 0.001:
            raise Refused("dns_failure_refresh_rate.base_interval", "must be at least 1 ms")
    return Named(endpoints, logical, _FAMILIES[message.dns_lookup_family], refresh, retry)


def is_dynamic(message: Any) -> bool:
    """Whether a Cluster's own type is a dynamic forward proxy. Refused: it is another one."""
    try:
        config = pb.unpack(message.cluster_type.typed_config)
    except (DecodeError, KeyError) as error:
        raise Refused("cluster_type.typed_config", f"can't be decoded: {error}") from None
    if config.DESCRIPTOR.full_name != DYNAMIC:
        raise Refused("cluster_type", f"{config.DESCRIPTOR.full_name} is not supported")
    if config.WhichOneof("cluster_implementation_specifier") == "sub_clusters_config":
        raise Refused("cluster_type.typed_config.sub_clusters_config", "is not supported")
    return True
