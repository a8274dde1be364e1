"""The Listener of a port that a client serves: how connections to it are secured, and what it filters.

Rules (Istio):

- STRICT takes mutual TLS only, PERMISSIVE both, DISABLE plain text only. Callers must show a certificate
  of the mesh's trust domain or one of its aliases.
- gRPC's servers take one of the two: PERMISSIVE is plain text, unless the workload's label
  `security.istio.io/tlsMode` says `istio`: then it is mutual TLS. They do not look at trust domains.
- Their HTTP connection manager says by its `stat_prefix` which of the two it is. Node.js's server takes no
  notice of a listener that differs in nothing but its TLS, and ends by an exception if that was none
  before (`filterChainsEquivalent` of @grpc/grpc-js-xds 1.14).
- Without the mesh's roots nobody has a certificate: PERMISSIVE is plain text. STRICT stays STRICT, so that
  nothing is served in plain text that must not be.
- A server in a process answers the request itself: its only route forwards nowhere, unless rules with CORS
  lead to it (`cors.py`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meshlib.control.compile.cors import served_routes
from meshlib.control.compile.filters import http_filters
from meshlib.control.compile.mtls import least_version, trust_domains
from meshlib.control.compile.provenance import mark_document, mark_policies
from meshlib.control.compile.secrets import put_socket, show_own, trust_mesh
from meshlib.control.compile.security import Security, security_filters, sources_of
from meshlib.control.compile.telemetry import put_telemetry
from meshlib.control.graph.graph import Graph
from meshlib.control.istio.meshconfig import MeshConfig, NormalizationType
from meshlib.control.istio.parse import spell
from meshlib.control.istio.peerauthentication import MutualTLSMode
from meshlib.control.istio.telemetry import WorkloadMode
from meshlib.identity.spiffe import SCHEME
from meshlib.xds import pb
from meshlib.xds.names import INBOUND_LISTENER, MUTUAL, OWN_SECRET, TLS_MODE_LABEL
from meshlib.xds.node import Client, Flavour

TLS, PLAIN = "tls", "raw_buffer"
TLS_INSPECTOR = "envoy.filters.listener.tls_inspector"
_INSPECTOR = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
_MANAGER = "envoy.filters.network.http_connection_manager"
_ALPN = ("h2", "http/1.1")


def inbound_listener(
    name: str, port: int, graph: Graph, client: Client, *, roots: bool
) -> tuple[Any, tuple[str, ...]]:
    """An envoy.config.listener.v3.Listener for `port` of the client itself, and the clusters that it asks."""
    decided = graph.peer_authentications.of_port(client.namespace, client.label_map, port)
    grpc = client.flavour is Flavour.GRPC
    security = security_filters(graph, client.namespace, client.label_map, grpc=grpc)
    made = pb.Listener(name=name, traffic_direction="INBOUND")
    made.address.socket_address.address = _address(name)
    made.address.socket_address.port_value = port
    crossed = [] if grpc else served_routes(graph, client, port)
    manager = _manager(port, security, crossed)
    if not grpc:
        as_sidecar(manager, graph.mesh)
        told = graph.telemetries.told(client.namespace, client.label_map, WorkloadMode.SERVER)
        put_telemetry(manager, made, told, client.flavour)
    for transport in _transports(decided.mode, client.label_map, grpc=grpc, roots=roots):
        how = "mtls" if transport == TLS else "plaintext"
        chain = made.filter_chains.add(name=f"inbound-{how}")
        if grpc:
            manager.stat_prefix = f"inbound_{port}_{how}"
        if not grpc:
            chain.filter_chain_match.transport_protocol = transport
        if transport == TLS:
            put_socket(
                chain.transport_socket, server_context(graph, Flavour.GRPC if grpc else Flavour.MESHLIB)
            )
        chain.filters.add(name=_MANAGER, typed_config=pb.pack(manager))
    if not grpc:
        inspector = pb.pack(pb.message(_INSPECTOR)())
        made.listener_filters.add(name=TLS_INSPECTOR, typed_config=inspector)
    if decided.document is not None:
        mark_document(made, decided.document, spell(decided.path), *decided.path)
    mark_policies(made, sources_of(graph, client.namespace, client.label_map))
    return made, security.clusters


def _address(name: str) -> str:
    """The address in the listener's name: gRPC's servers refuse another one."""
    return name.removeprefix(INBOUND_LISTENER).rpartition(":")[0].strip("[]")


def _transports(
    mode: MutualTLSMode, labels: Mapping[str, str], *, grpc: bool, roots: bool
) -> tuple[str, ...]:
    if mode is MutualTLSMode.STRICT:
        return (TLS,)
    if mode is MutualTLSMode.DISABLE or not roots:
        return (PLAIN,)
    if grpc:
        return (TLS,) if labels.get(TLS_MODE_LABEL) == MUTUAL else (PLAIN,)
    return (TLS, PLAIN)


def server_context(graph: Graph, flavour: Flavour, own: str = OWN_SECRET) -> Any:
    """The DownstreamTlsContext of mutual TLS; `own` is the secret of the server's certificate."""
    context = pb.DownstreamTlsContext()
    context.require_client_certificate.value = True
    common = context.common_tls_context
    show_own(common, flavour, own)
    trusted = trust_mesh(common, grpc=flavour is Flavour.GRPC)
    if flavour is Flavour.GRPC:
        return context
    for domain in trust_domains(graph.mesh):
        trusted.match_subject_alt_names.add(prefix=f"{SCHEME}{domain}/")
    common.alpn_protocols.extend(_ALPN)
    common.tls_params.tls_minimum_protocol_version = least_version(graph.mesh.mesh_mtls) or "TLSv1_2"
    common.tls_params.tls_maximum_protocol_version = "TLSv1_3"
    return context


def as_sidecar(made: Any, mesh: MeshConfig) -> None:
    """How a path is put in order before anybody looks at it, and what is said of the caller's certificate."""
    how = mesh.path_normalization.normalization if mesh.path_normalization else NormalizationType.DEFAULT
    made.normalize_path.value = how is not NormalizationType.NONE
    made.merge_slashes = how in (
        NormalizationType.MERGE_SLASHES,
        NormalizationType.DECODE_AND_MERGE_SLASHES,
    )
    if how is NormalizationType.DECODE_AND_MERGE_SLASHES:
        made.path_with_escaped_slashes_action = "UNESCAPE_AND_FORWARD"
    made.forward_client_cert_details = "APPEND_FORWARD"
    told = made.set_current_client_cert_details
    told.subject.value = told.uri = told.dns = True


def _manager(port: int, security: Security, crossed: Iterable[Any]) -> Any:
    """`crossed` are the virtual hosts with CORS, if there are any."""
    made = pb.HttpConnectionManager(stat_prefix=f"inbound_{port}")
    made.route_config.name = f"inbound|{port}||"
    made.route_config.virtual_hosts.extend(crossed)
    if made.route_config.virtual_hosts:
        made.route_config.ignore_port_in_host_matching = True
    else:
        host = made.route_config.virtual_hosts.add(name=f"inbound|http|{port}", domains=["*"])
        route = host.routes.add(name="default")
        route.match.prefix = "/"
        route.non_forwarding_action.SetInParent()
    for name, config in http_filters(security, cors=made.route_config.ignore_port_in_host_matching):
        made.http_filters.add(name=name, typed_config=pb.pack(config))
    return made
