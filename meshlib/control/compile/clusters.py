"""A cluster of the graph as Envoy's Cluster: how its endpoints are found, and what holds for them.

Rules (Istio):

- A service with endpoints has them by EDS; one by name is resolved by the client (`dns.py`), and is left out
  if it has no name to resolve; one without resolution goes wherever the request was going.
- A host, port or subset that is not known has no cluster: the client answers 503, no such cluster.
- gRPC's clients know EDS and one name by DNS only.
"""

from dataclasses import dataclass
from typing import Any

from meshlib.control.compile import dns
from meshlib.control.compile.balance import balance
from meshlib.control.compile.breaker import HTTP_OPTIONS, breakers, connection, http_options
from meshlib.control.compile.endpoints import load_assignment, usable
from meshlib.control.compile.locality import Group, groups_of, weighted
from meshlib.control.compile.mtls import Secured, apply, secured
from meshlib.control.compile.outlier import outlier
from meshlib.control.compile.policy import Policy, policy_of
from meshlib.control.compile.provenance import config_path, mark_document
from meshlib.control.compile.proxy_protocol import put_proxy_protocol
from meshlib.control.graph.destinationrules import DestinationRule
from meshlib.control.graph.scope import Scope
from meshlib.control.istio.destinationrule import SimpleLB
from meshlib.control.istio.serviceentry import Resolution
from meshlib.control.istio.sidecar import OutboundTrafficMode
from meshlib.control.registry import Endpoint, Port, Service
from meshlib.xds import pb
from meshlib.xds.names import BLACK_HOLE_CLUSTER, ISTIO_METADATA, PASSTHROUGH_CLUSTER, ClusterName
from meshlib.xds.node import Client, Flavour, Locality

EDGE_BUFFER_BYTES = 32 * 1024
"""Of a connection at an edge, as Envoy advises it, on both sides."""
PASSTHROUGH_IDLE = 300.0


@dataclass(frozen=True, slots=True)
class Found:
    """What stands behind a cluster's name for one client."""

    name: ClusterName
    service: Service
    port: Port
    rule: DestinationRule | None
    policy: Policy

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Changes whenever the cluster does."""
        return self.service.fingerprint, self.rule.fingerprint if self.rule else None

    @property
    def by_discovery(self) -> bool:
        """Whether its endpoints are a resource of their own, unless the client sees to the contrary."""
        return self.service.resolution is Resolution.STATIC


def find(name: ClusterName, scope: Scope) -> Found | None:
    """What the name stands for; None: there is no such cluster."""
    service = scope.service(name.host)
    port = service.port(name.port) if service else None
    if service is None or port is None:
        return None
    rule = scope.rule(name.host, service.namespace)
    if name.subset and (rule is None or name.subset not in rule.subsets):
        return None
    return Found(name, service, port, rule, policy_of(rule, name.subset, name.port, scope.graph.mesh))


def endpoints_of(found: Found, scope: Scope, flavour: Flavour) -> tuple[Endpoint, ...]:
    """The endpoints of a cluster that such a client can reach."""
    endpoints = usable(scope.graph.registry.endpoints(found.service, found.port), flavour)
    if not found.name.subset or found.rule is None:
        return endpoints
    labels = found.rule.subsets[found.name.subset][0].labels
    return tuple(endpoint for endpoint in endpoints if endpoint.has(labels))


def grouped(found: Found, endpoints: tuple[Endpoint, ...], scope: Scope, client: Client) -> tuple[Group, ...]:
    """The endpoints as the client prefers them."""
    return groups_of(endpoints, found.policy, scope.graph.mesh, client)


def is_there(found: Found, endpoints: tuple[Endpoint, ...]) -> bool:
    """Whether there is something to be looked up, if that is how it is found."""
    by_name = found.service.resolution in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN)
    return bool(endpoints) or not by_name or _passes_through(found)


def is_discovered(found: Found) -> bool:
    """Whether the cluster has a ClusterLoadAssignment of its own."""
    return found.by_discovery and not _passes_through(found)


def security_of(found: Found, scope: Scope, client: Client, *, roots: bool) -> Secured | None:
    """What TLS the client speaks to the cluster; `roots`: the mesh has certificates."""
    passes = client.flavour is not Flavour.GRPC and _passes_through(found)
    name, service, port, policy = found.name, found.service, found.port, found.policy
    return secured(name, service, port, policy, scope.graph, client, passes_through=passes, roots=roots)


def cluster(found: Found, scope: Scope, client: Client, security: Secured | None) -> Any:
    """An envoy.config.cluster.v3.Cluster."""
    mesh = scope.graph.mesh
    name = str(found.name)
    made = pb.Cluster(name=name)
    flavour = client.flavour
    connection(made, found.policy.connection_pool, mesh)
    if flavour is Flavour.GATEWAY:
        made.per_connection_buffer_limit_bytes.value = EDGE_BUFFER_BYTES
    if client.flavour is not Flavour.GRPC and _passes_through(found):
        if _is_dynamic(found, flavour):
            dns.dynamic(made, mesh)
        else:
            made.type, made.lb_policy = "ORIGINAL_DST", "CLUSTER_PROVIDED"
    else:
        _discovery(made, found, scope, client)
        balance(made, found.policy.load_balancer, flavour)
        if weighted(found.policy, mesh) and flavour is not Flavour.GRPC:
            made.common_lb_config.locality_weighted_lb_config.SetInParent()
    breakers(made, found.policy.connection_pool, found.policy.retry_budget, flavour)
    outlier(made, found.policy.outlier_detection, flavour)
    if flavour is not Flavour.GRPC:
        policy = found.policy
        http_options(made, policy.connection_pool, policy.outlier_detection, found.port.protocol, mesh)
    if security is not None:
        apply(made, security, flavour)
    if flavour is not Flavour.GRPC:
        put_proxy_protocol(made, found.policy.proxy_protocol)
    _mark(made, found)
    return made


def _passes_through(found: Found) -> bool:
    balancer = found.policy.load_balancer
    if balancer is not None and balancer.simple is SimpleLB.PASSTHROUGH:
        return True
    return found.service.resolution in (Resolution.NONE, Resolution.DYNAMIC_DNS)


def _is_dynamic(found: Found, flavour: Flavour) -> bool:
    """Whether each request says by its host where it goes. An Envoy is given no filter that reads SNI."""
    knows = flavour is Flavour.MESHLIB or found.port.protocol.routed
    return found.service.resolution is Resolution.DYNAMIC_DNS and knows


def _by_ads(made: Any) -> None:
    made.type = "EDS"
    made.eds_cluster_config.service_name = made.name
    made.eds_cluster_config.eds_config.ads.SetInParent()
    made.eds_cluster_config.eds_config.resource_api_version = "V3"


def _discovery(made: Any, found: Found, scope: Scope, client: Client) -> None:
    if found.by_discovery:
        _by_ads(made)
        return
    one = found.service.resolution is Resolution.DNS_ROUND_ROBIN or client.flavour is Flavour.GRPC
    made.type = "LOGICAL_DNS" if one else "STRICT_DNS"
    endpoints = endpoints_of(found, scope, client.flavour)
    if found.service.resolution in (Resolution.NONE, Resolution.DYNAMIC_DNS):
        endpoints = (Endpoint(found.service.host, found.port.number),)
    groups = grouped(found, endpoints, scope, client)
    if one and endpoints:
        groups = (Group(endpoints[0].locality, 0, 1, endpoints[:1]),)
    made.load_assignment.CopyFrom(load_assignment(made.name, groups))
    if client.flavour is not Flavour.GRPC:
        dns.by_name(made, scope.graph.mesh)


def _mark(made: Any, found: Found) -> None:
    service, rule = found.service, found.rule
    said = {
        "default_original_port": found.port.number,
        "services": [{"host": service.host, "name": service.name, "namespace": service.namespace}],
    }
    if found.name.subset:
        said["subset"] = found.name.subset
    if rule is None:
        mark_document(made, service.source(found.port.number), "spec", "spec")
    else:
        document = rule.policy_document or rule.documents[0]
        path: tuple[str | int, ...] = ("spec", "trafficPolicy")
        if found.name.subset:
            _, document, number = rule.subsets[found.name.subset]
            path = ("spec", "subsets", number)
        said["config"] = config_path(document)
        text = f"spec.subsets[{path[2]}]" if len(path) == 3 else "spec.trafficPolicy"
        mark_document(made, document, text, *path)
    made.metadata.filter_metadata[ISTIO_METADATA].update(said)


def passthrough(scope: Scope) -> Any:
    """The Cluster of requests to hosts that are not known: wherever they were going."""
    made = pb.Cluster(name=PASSTHROUGH_CLUSTER)
    if scope.outbound is OutboundTrafficMode.ALLOW_ANY_DYNAMIC_DNS:
        dns.dynamic(made, scope.graph.mesh)
    else:
        made.type, made.lb_policy = "ORIGINAL_DST", "CLUSTER_PROVIDED"
    connection(made, None, scope.graph.mesh)
    breakers(made, None, None, Flavour.ENVOY)
    options = pb.HttpProtocolOptions()
    options.common_http_protocol_options.idle_timeout.CopyFrom(pb.duration(PASSTHROUGH_IDLE))
    options.use_downstream_protocol_config.SetInParent()
    made.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(pb.pack(options))
    return made


def black_hole(scope: Scope, name: str = BLACK_HOLE_CLUSTER) -> Any:
    """A Cluster that never has an endpoint: that of routes on which gRPC's client answers itself."""
    made = pb.Cluster(name=name)
    _by_ads(made)
    connection(made, None, scope.graph.mesh)
    return made


def out_of_reach(found: Found, scope: Scope) -> Any:
    """The Cluster in the place of one that asks for TLS that the client can't speak."""
    made = black_hole(scope, str(found.name))
    _mark(made, found)
    return made


def why_out_of_reach(found: Found) -> str:
    """In words, of which document that is."""
    rule, subset = found.rule, found.name.subset
    assert rule is not None  # noqa: S101 - what says TLS is one
    document = rule.policy_document or rule.documents[0]
    path: tuple[str | int, ...] = ("spec", "trafficPolicy")
    if subset and rule.subsets[subset][0].traffic_policy is not None:
        _, document, number = rule.subsets[subset]
        path = ("spec", "subsets", number, "trafficPolicy")
    mode = found.policy.tls.mode.value if found.policy.tls else ""
    said = f"{document.title} ({document.source(*path, 'tls')}) asks for TLS of mode {mode}"
    return f"{found.name} has no endpoints: {said}, which gRPC's own clients can't speak"


def by_name(name: ClusterName, scope: Scope) -> Any:
    """The Cluster of a host that is not known, for gRPC: resolved by DNS."""
    made = pb.Cluster(name=str(name), type="LOGICAL_DNS")
    connection(made, None, scope.graph.mesh)
    group = Group(Locality(), 0, 1, (Endpoint(name.host, name.port),))
    made.load_assignment.CopyFrom(load_assignment(str(name), (group,)))
    return made
