"""What TLS a client speaks to a service: a DestinationRule's, else mutual TLS by itself where it is taken.

Rules (Istio):

- `tls` of the policy in force counts whole; `{}` is DISABLE. Without one a service of the mesh gets mutual
  TLS by itself, unless MeshConfig.enableAutoMtls is false or its namespace's (or the mesh's) mode is
  DISABLE: each endpoint that says it takes it, others in plain text.
- A service that is passed through has no endpoints' metadata to go by: mutual TLS for all, if all that are
  known take it.
- A server must be one of the names: subjectAltNames of the DestinationRule, else those of the ServiceEntry
  and the service's accounts, in the trust domain and its aliases. With no account known any of
  the mesh will do. SIMPLE and MUTUAL to a Service know no accounts.
- The SNI of mutual TLS is `outbound_.<port>_.<subset>_.<host>`. SIMPLE and MUTUAL without `sni` send the
  request's host, and the certificate must be for it unless other names are given.
- SIMPLE and MUTUAL trust `caCertificates`, else the system's roots, and with insecureSkipVerify anybody.
  `credentialName` is for gateways; without files beside it there is no certificate to show.
- A node's workload reaches those that take HBONE by it, wherever it would speak mutual TLS, and all others at
  the service's port; where a header of the PROXY protocol is asked for there is no HBONE.
- gRPC's clients do mutual TLS where a DestinationRule says ISTIO_MUTUAL, and no other: they have no
  certificates but the mesh's. Where it says SIMPLE or MUTUAL they find nobody. (Istio has them speak plain
  text.)
- The mesh's certificates need the mesh's roots: without them there is no mutual TLS.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshlib.control.compile.breaker import HTTP_OPTIONS, spoken
from meshlib.control.compile.hbone import put_tunnelled
from meshlib.control.compile.policy import Policy
from meshlib.control.compile.secrets import own_secret, put_socket, show_own, trust_mesh
from meshlib.control.graph.graph import Graph
from meshlib.control.istio.destinationrule import ClientTLSMode, ClientTLSSettings
from meshlib.control.istio.meshconfig import MeshConfig, domain_name
from meshlib.control.istio.peerauthentication import MutualTLSMode
from meshlib.control.registry import Endpoint, Port, Protocol, Service
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb
from meshlib.xds.names import MUTUAL, OWN_SECRET, TLS_MODE, ClusterName
from meshlib.xds.node import Client, Flavour

RAW_BUFFER = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
"""Where an Envoy's system keeps its roots; it has no word for them."""

_ALPN = {Protocol.HTTP: ("istio-http/1.1", "istio", "http/1.1"), Protocol.HTTP2: ("istio-h2", "istio", "h2")}
"""What Istio's proxies offer once they know which HTTP they speak."""
_ANY_ALPN = ("istio-peer-exchange", "istio")


@dataclass(frozen=True, slots=True)
class Secured:
    """What TLS is spoken to the endpoints of one cluster. Equal is equal."""

    mode: ClientTLSMode
    settings: ClientTLSSettings | None = None
    """None: it is by itself."""
    per_endpoint: bool = False
    """Whether it depends on what each endpoint says."""
    sni: str = ""
    names: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()
    min_version: str = ""
    own: str = OWN_SECRET
    """The secret of the client's own certificate."""
    tunnels: bool = False
    """Whether endpoints that take HBONE are reached by it."""


def secured(
    name: ClusterName,
    service: Service,
    port: Port,
    policy: Policy,
    graph: Graph,
    client: Client,
    *,
    passes_through: bool,
    roots: bool,
) -> Secured | None:
    """What TLS a client speaks to that cluster; None: none. `roots`: the mesh has certificates."""
    flavour = client.flavour
    said = policy.tls
    speaks = spoken(policy.connection_pool, port.protocol, graph.mesh)
    if said is None:
        automatic = (
            roots and flavour is not Flavour.GRPC and _is_automatic(service, port, graph, passes_through)
        )
        if not automatic:
            return None
        made = _mutual(name, service, port, graph, None, speaks)
        made = replace(made, per_endpoint=not passes_through)
        return _as_node(made, client, policy, graph.mesh, passes_through)
    match said.mode:
        case ClientTLSMode.DISABLE:
            return None
        case ClientTLSMode.ISTIO_MUTUAL:
            if not roots:
                return None
            made = _mutual(name, service, port, graph, said, speaks)
            return _as_node(made, client, policy, graph.mesh, passes_through)
        case ClientTLSMode.SIMPLE | ClientTLSMode.MUTUAL:
            if flavour is Flavour.GRPC:
                return None  # and no endpoints, see `is_beyond`
            names = said.subject_alt_names
            if not names and not service.kubernetes:
                names = accounts(service, port, graph)
            alpn = ("h2",) if speaks is Protocol.HTTP2 else ()
            least = least_version(graph.mesh.tls_defaults)
            return Secured(said.mode, said, sni=said.sni, names=names, alpn=alpn, min_version=least)


def is_beyond(policy: Policy, flavour: Flavour) -> bool:
    """Whether TLS is asked for that such clients can't speak: they must not go on without it."""
    said = policy.tls
    foreign = said is not None and said.mode in (ClientTLSMode.SIMPLE, ClientTLSMode.MUTUAL)
    return foreign and flavour is Flavour.GRPC


def _mutual(
    name: ClusterName,
    service: Service,
    port: Port,
    graph: Graph,
    said: ClientTLSSettings | None,
    speaks: Protocol,
) -> Secured:
    names = said.subject_alt_names if said is not None else ()
    sni = said.sni if said is not None else ""
    return Secured(
        ClientTLSMode.ISTIO_MUTUAL,
        said,
        sni=sni or f"outbound_.{name.port}_.{name.subset}_.{name.host}",
        names=names or accounts(service, port, graph),
        alpn=_ALPN.get(speaks, _ANY_ALPN),
        min_version=least_version(graph.mesh.mesh_mtls),
    )


def _as_node(
    made: Secured, client: Client, policy: Policy, mesh: MeshConfig, passes_through: bool
) -> Secured:
    """The same for a node's workload, which shows a certificate of its own name."""
    if client.flavour is not Flavour.NODE:
        return made
    tunnels = not passes_through and policy.proxy_protocol is None
    return replace(made, own=own_secret(client, mesh), tunnels=tunnels)


def _is_automatic(service: Service, port: Port, graph: Graph, passes_through: bool) -> bool:
    if service.external or graph.mesh.enable_auto_mtls is False:
        return False
    if passes_through:
        endpoints = graph.registry.endpoints(service, port)
        return bool(endpoints) and all(endpoint.mutual for endpoint in endpoints)
    return graph.peer_authentications.of_namespace(service.namespace).mode is not MutualTLSMode.DISABLE


def accounts(service: Service, port: Port, graph: Graph) -> tuple[str, ...]:
    """The names that a server of the service may have: of its entry, and of its endpoints' accounts."""
    domains = trust_domains(graph.mesh)
    found = set(service.subject_alt_names)
    for namespace, account in _identities(graph.registry.endpoints(service, port)):
        found.update(str(SpiffeId(domain, namespace, account)) for domain in domains)
    return tuple(sorted(found))


def _identities(endpoints: Iterable[Endpoint]) -> set[tuple[str, str]]:
    return {endpoint.identity for endpoint in endpoints if endpoint.identity is not None}


def trust_domains(mesh: MeshConfig) -> tuple[str, ...]:
    """The mesh's trust domain and its aliases, as they stand in identities."""
    listed = (mesh.trust_domain, *mesh.trust_domain_aliases)
    return tuple(dict.fromkeys(domain_name(domain) for domain in listed))


def least_version(settings: Mapping[str, Any]) -> str:
    """The lowest TLS version of meshMTLS or tlsDefaults, as Envoy names it; empty: 1.2."""
    return "TLSv1_3" if settings.get("minProtocolVersion") == "TLSV1_3" else ""


def apply(made: Any, how: Secured, flavour: Flavour) -> None:
    """Puts it on an envoy.config.cluster.v3.Cluster that is finished otherwise."""
    context = _context(how, flavour)
    if how.tunnels:
        put_tunnelled(made.transport_socket_matches.add())
    if how.per_endpoint:
        match = made.transport_socket_matches.add(name="tlsMode-istio")
        match.match.update({TLS_MODE: MUTUAL})
        put_socket(match.transport_socket, context)
        rest = made.transport_socket_matches.add(name="tlsMode-disabled")
        rest.match.SetInParent()
        rest.transport_socket.name = "envoy.transport_sockets.raw_buffer"
        rest.transport_socket.typed_config.CopyFrom(pb.pack(pb.message(RAW_BUFFER)()))
        return
    put_socket(made.transport_socket, context)
    if how.mode is not ClientTLSMode.ISTIO_MUTUAL and not how.sni:
        _by_host(made, verify=not how.names and not _anybody(how))


def _context(how: Secured, flavour: Flavour) -> Any:
    grpc = flavour is Flavour.GRPC
    context = pb.UpstreamTlsContext()
    common = context.common_tls_context
    if not grpc:  # gRPC refuses versions and knows neither SNI nor ALPN
        context.sni = how.sni
        common.alpn_protocols.extend(how.alpn)
        if how.min_version:
            common.tls_params.tls_minimum_protocol_version = how.min_version
        # Envoy's clients stop at 1.2 by themselves.
        common.tls_params.tls_maximum_protocol_version = "TLSv1_3"
    if how.mode is ClientTLSMode.ISTIO_MUTUAL:
        show_own(common, flavour, how.own)
        _match(trust_mesh(common, grpc=grpc), how.names)
        return context
    said = how.settings
    if said is not None and how.mode is ClientTLSMode.MUTUAL and said.client_certificate:
        shown = common.tls_certificates.add()
        shown.certificate_chain.filename = said.client_certificate
        shown.private_key.filename = said.private_key
    if _anybody(how):
        return context
    trusted = common.validation_context
    if said is not None and said.ca_certificates:
        trusted.trusted_ca.filename = said.ca_certificates
        if said.ca_crl:
            trusted.crl.filename = said.ca_crl
    elif flavour is Flavour.MESHLIB:
        trusted.system_root_certs.SetInParent()
    else:
        trusted.trusted_ca.filename = SYSTEM_ROOTS
    _match(trusted, how.names)
    return context


def _anybody(how: Secured) -> bool:
    return how.settings is not None and bool(how.settings.insecure_skip_verify)


def _match(context: Any, names: Iterable[str]) -> None:
    for name in names:
        context.match_subject_alt_names.add(exact=name)


def _by_host(made: Any, *, verify: bool) -> None:
    """The request's host is the SNI and, with `verify`, what the certificate must be for."""
    packed = made.typed_extension_protocol_options
    options = pb.unpack(packed[HTTP_OPTIONS]) if HTTP_OPTIONS in packed else pb.HttpProtocolOptions()
    if options.WhichOneof("upstream_protocol_options") is None:
        options.explicit_http_config.http_protocol_options.SetInParent()
    options.upstream_http_protocol_options.auto_sni = True
    options.upstream_http_protocol_options.auto_san_validation = verify
    packed[HTTP_OPTIONS].CopyFrom(pb.pack(options))
