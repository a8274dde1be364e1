"""How the clients look up what is known by name: Envoy's DNS settings, and its dynamic forward proxy.

Rules (Istio):

- Names are asked for again every `dnsRefreshRate` (60 s), sooner if DNS says so (TTL).
- IPv4 addresses are wanted. Istio's proxies of IPv4 ask for no others; here a name that has none but IPv6
  addresses keeps these: the control service does not know what network a client has.
- DYNAMIC_DNS, and what is not known under ALLOW_ANY_DYNAMIC_DNS, is looked up by each request's own host. An
  Envoy has a filter for that, whose cache is the cluster's: both say the same of it.
"""

from typing import Any

from meshlib.control.graph.scope import Scope
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.istio.serviceentry import Resolution
from meshlib.control.istio.sidecar import OutboundTrafficMode
from meshlib.control.registry import Service
from meshlib.xds import pb

REFRESH = 60.0
FAMILY = "V4_PREFERRED"
FILTER = "envoy.filters.http.dynamic_forward_proxy"
_CLUSTER = "envoy.clusters.dynamic_forward_proxy"
_CLUSTER_CONFIG = "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig"
_FILTER_CONFIG = "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig"
_CACHE = "dynamic_forward_proxy_cache"


def by_name(made: Any, mesh: MeshConfig) -> None:
    """Puts it on a Cluster whose endpoints have names."""
    made.dns_refresh_rate.CopyFrom(pb.duration(mesh.dns_refresh_rate or REFRESH))
    made.respect_dns_ttl = True
    made.dns_lookup_family = FAMILY


def dynamic(made: Any, mesh: MeshConfig) -> None:
    """Makes a Cluster a dynamic forward proxy."""
    config = pb.message(_CLUSTER_CONFIG)()
    _cache(config.dns_cache_config, mesh)
    # Which names a certificate may have, a DestinationRule says, too.
    config.allow_insecure_cluster_options = True
    made.cluster_type.name = _CLUSTER
    made.cluster_type.typed_config.CopyFrom(pb.pack(config))
    made.lb_policy = "CLUSTER_PROVIDED"


def needs_filter(scope: Scope, services: list[Service]) -> bool:
    """Whether requests at the port of these services may go to a dynamic forward proxy."""
    return scope.outbound is OutboundTrafficMode.ALLOW_ANY_DYNAMIC_DNS or any(
        service.resolution is Resolution.DYNAMIC_DNS for service in services
    )


def put_filter(manager: Any, mesh: MeshConfig) -> None:
    """Puts the filter on an Envoy's HttpConnectionManager."""
    config = pb.message(_FILTER_CONFIG)()
    _cache(config.dns_cache_config, mesh)
    manager.http_filters.add(name=FILTER, typed_config=pb.pack(config))


def _cache(config: Any, mesh: MeshConfig) -> None:
    rate = mesh.dns_refresh_rate or REFRESH
    # Of one name an Envoy takes one cache, as long as anybody uses it.
    config.name = _CACHE if rate == REFRESH else f"{_CACHE}_{rate:g}s"
    config.dns_lookup_family = FAMILY
    config.dns_refresh_rate.CopyFrom(pb.duration(rate))
