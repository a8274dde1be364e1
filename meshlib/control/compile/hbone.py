"""HBONE between nodes: HTTP/2 CONNECT over mutual TLS to port 15008 of the workload.

    cluster ──► an endpoint inside the Envoy ──► listener `connect` ──► cluster `hbone` ══► the peer's
    listener `hbone` ──► its listener `tunnelled`, with the chains of each port

Rules (Istio, ztunnel):

- TLS 1.3, ALPN h2, no SNI; both sides show a certificate. The caller takes only the identities that it
  takes at the service's port, the peer any of the mesh's trust domains.
- `:authority` is the address and port that the connection is for; of a workload its own address, nothing
  else is connected to.
- Who called is known behind the tunnel by filter state: rules of authorization look there
  (`io.istio.peer_principal`), and x-forwarded-client-cert is made of it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from meshlib.control.compile.breaker import HTTP_OPTIONS, breakers
from meshlib.control.compile.secrets import put_socket, show_own, trust_mesh
from meshlib.control.registry import Endpoint
from meshlib.identity.spiffe import SCHEME
from meshlib.xds import pb
from meshlib.xds.names import HBONE_PORT, TRANSPORT_SOCKET_MATCH, TUNNEL_HTTP
from meshlib.xds.node import Flavour

CONNECT, HBONE, TUNNELLED = "connect", "hbone", "tunnelled"
PRINCIPAL, CERTIFICATE = "io.istio.peer_principal", "meshlib.peer_certificate"
"""Filter state behind the tunnel: the caller's identity, and what x-forwarded-client-cert says of it."""
_TUNNEL = "tunnel"
"""Endpoint metadata: where the tunnel ends (`address`), what for (`destination`), who is there (`san`)."""
_STATE = "envoy.extensions.filters.{}.set_filter_state.v3.Config"
_STATE_FILTER = "envoy.filters.{}.set_filter_state"
_TCP_PROXY = "envoy.filters.network.tcp_proxy"
_MANAGER = "envoy.filters.network.http_connection_manager"
_INTERNAL = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"
_RAW_BUFFER = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_MUTATION = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
_EVERY_SAN = "envoy.network.upstream_subject_alt_names"
_LOCAL, _REMOTE = (
    "envoy.filters.listener.original_dst.local_ip",
    "envoy.filters.listener.original_dst.remote_ip",
)
_XFCC = (
    'By=%DOWNSTREAM_LOCAL_URI_SAN%;Hash=%DOWNSTREAM_PEER_FINGERPRINT_256%;Subject="%DOWNSTREAM_PEER_SUBJECT%";'
    "URI=%DOWNSTREAM_PEER_URI_SAN%"
)
MAX_STREAMS = 100
KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS = 30.0, 10.0
IDLE_SECONDS = 300.0


# The caller's side


def put_tunnelled(match: Any) -> None:
    """Fills the TransportSocketMatch of endpoints that are reached through a tunnel."""
    match.name = HBONE
    match.match.update({_TUNNEL: TUNNEL_HTTP})
    _internal(match.transport_socket, metadata=True)


def put_target(made: Any, endpoint: Endpoint, names: Sequence[str]) -> None:
    """Fills the address and metadata of an LbEndpoint that is reached through a tunnel."""
    target = _authority(endpoint.address, endpoint.port)
    internal = made.endpoint.address.envoy_internal_address
    internal.server_listener_name, internal.endpoint_id = CONNECT, target
    said = {
        "destination": target,
        "address": _authority(endpoint.address, HBONE_PORT),
        "san": ",".join(names),
    }
    made.metadata.filter_metadata[_TUNNEL].update(said)
    made.metadata.filter_metadata[TRANSPORT_SOCKET_MATCH].update({_TUNNEL: TUNNEL_HTTP})


def connect_listener() -> Any:
    """The Listener inside the Envoy whose connections go into tunnels."""
    made = pb.Listener(name=CONNECT)
    made.internal_listener.SetInParent()
    chain = made.filter_chains.add()
    names = pb.message(_STATE.format("network"))()
    _state(names.on_new_connection.add(), _EVERY_SAN, f"%DYNAMIC_METADATA({_TUNNEL}:san)%")
    chain.filters.add(name=_STATE_FILTER.format("network"), typed_config=pb.pack(names))
    proxy = pb.TcpProxy(stat_prefix=HBONE, cluster=HBONE)
    proxy.tunneling_config.hostname = f"%DYNAMIC_METADATA({_TUNNEL}:destination)%"
    proxy.idle_timeout.CopyFrom(pb.duration(0.0))
    chain.filters.add(name=_TCP_PROXY, typed_config=pb.pack(proxy))
    return made


def hbone_cluster(own: str, domains: Iterable[str]) -> Any:
    """The Cluster of the tunnels of one workload, whose secret is `own`."""
    made = pb.Cluster(name=HBONE, type="ORIGINAL_DST", lb_policy="CLUSTER_PROVIDED")
    key = made.original_dst_lb_config.metadata_key
    key.key = _TUNNEL
    key.path.add(key="address")
    breakers(made, None, None, Flavour.NODE)
    options = pb.HttpProtocolOptions()
    options.common_http_protocol_options.idle_timeout.CopyFrom(pb.duration(IDLE_SECONDS))
    second = options.explicit_http_config.http2_protocol_options
    second.allow_connect = True
    second.max_concurrent_streams.value = MAX_STREAMS
    _keep_alive(second)
    made.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(pb.pack(options))
    context = pb.UpstreamTlsContext()
    _tls(context.common_tls_context, own, domains)
    put_socket(made.transport_socket, context)
    return made


# The peer's side


def hbone_listener(address: str, own: str, domains: Iterable[str]) -> Any:
    """The Listener at port 15008 of a workload of that address, without its own."""
    made = pb.Listener(name=HBONE, traffic_direction="INBOUND")
    context = pb.DownstreamTlsContext()
    context.require_client_certificate.value = True
    _tls(context.common_tls_context, own, domains)
    chain = made.filter_chains.add(name=HBONE)
    put_socket(chain.transport_socket, context)
    manager = pb.HttpConnectionManager(stat_prefix=HBONE, codec_type="HTTP2")
    manager.http2_protocol_options.allow_connect = True
    manager.http2_protocol_options.max_concurrent_streams.value = MAX_STREAMS
    _keep_alive(manager.http2_protocol_options)
    manager.stream_idle_timeout.CopyFrom(pb.duration(0.0))
    manager.upgrade_configs.add(upgrade_type="CONNECT")
    states = pb.message(_STATE.format("http"))()
    for key, form, factory in (
        (_LOCAL, "%REQ(:AUTHORITY)%", ""),
        (_REMOTE, "%DOWNSTREAM_REMOTE_ADDRESS%", ""),
        (PRINCIPAL, "%DOWNSTREAM_PEER_URI_SAN%", "envoy.string"),
        (CERTIFICATE, _XFCC, "envoy.string"),
    ):
        _state(states.on_request_headers.add(), key, form, factory, shared=True)
    manager.http_filters.add(name=_STATE_FILTER.format("http"), typed_config=pb.pack(states))
    manager.http_filters.add(name="envoy.filters.http.router", typed_config=pb.pack(pb.Router()))
    manager.route_config.name = HBONE
    route = manager.route_config.virtual_hosts.add(name=HBONE, domains=["*"]).routes.add()
    route.match.connect_matcher.SetInParent()
    start = _authority(address, 0).removesuffix("0")
    route.match.headers.add(name=":authority", string_match={"prefix": start})
    route.route.cluster = TUNNELLED
    route.route.timeout.CopyFrom(pb.duration(0.0))
    route.route.upgrade_configs.add(upgrade_type="CONNECT").connect_config.SetInParent()
    chain.filters.add(name=_MANAGER, typed_config=pb.pack(manager))
    return made


def tunnelled_cluster(listener: str) -> Any:
    """The Cluster that leads from the tunnels to the chains behind them, the Listener of that name."""
    made = pb.Cluster(name=TUNNELLED, type="STATIC")
    breakers(made, None, None, Flavour.NODE)
    made.load_assignment.cluster_name = TUNNELLED
    endpoint = made.load_assignment.endpoints.add().lb_endpoints.add()
    endpoint.endpoint.address.envoy_internal_address.server_listener_name = listener
    _internal(made.transport_socket, metadata=False)
    return made


def certificate_filter() -> tuple[str, Any]:
    """Name and configuration of the HTTP filter that says who called behind a tunnel, as a sidecar would."""
    made = pb.message(_MUTATION)()
    added = made.mutations.request_mutations.add().append
    added.header.key, added.header.value = "x-forwarded-client-cert", f"%FILTER_STATE({CERTIFICATE}:PLAIN)%"
    added.append_action = "APPEND_IF_EXISTS_OR_ADD"
    return "envoy.filters.http.header_mutation", made


def behind_tunnel(config: Any) -> None:
    """Makes the RBAC of an HTTP or network filter look for identities where they are behind a tunnel."""
    for rules in (config.rules, config.shadow_rules):
        for policy in rules.policies.values():
            for principal in policy.principals:
                _look_in_state(principal)


def _look_in_state(principal: Any) -> None:
    match principal.WhichOneof("identifier"):
        case "and_ids" | "or_ids" as several:
            for one in getattr(principal, several).ids:
                _look_in_state(one)
        case "not_id":
            _look_in_state(principal.not_id)
        case "authenticated":
            said = principal.authenticated.principal_name
            wanted = pb.StringMatcher(prefix=SCHEME)
            if said.ByteSize():
                wanted.CopyFrom(said)
            principal.filter_state.key = PRINCIPAL
            principal.filter_state.string_match.CopyFrom(wanted)


# Both


def _authority(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _tls(common: Any, own: str, domains: Iterable[str]) -> None:
    show_own(common, Flavour.NODE, own)
    common.alpn_protocols.append("h2")
    common.tls_params.tls_minimum_protocol_version = "TLSv1_3"
    common.tls_params.tls_maximum_protocol_version = "TLSv1_3"
    trusted = trust_mesh(common, grpc=False)
    for domain in domains:
        trusted.match_subject_alt_names.add(prefix=f"{SCHEME}{domain}/")


def _keep_alive(second: Any) -> None:
    second.connection_keepalive.interval.CopyFrom(pb.duration(KEEPALIVE_SECONDS))
    second.connection_keepalive.timeout.CopyFrom(pb.duration(KEEPALIVE_TIMEOUT_SECONDS))


def _internal(socket: Any, *, metadata: bool) -> None:
    made = pb.message(_INTERNAL)()
    if metadata:
        passed = made.passthrough_metadata.add(name=_TUNNEL)
        passed.kind.host.SetInParent()
    made.transport_socket.name = "envoy.transport_sockets.raw_buffer"
    made.transport_socket.typed_config.CopyFrom(pb.pack(pb.message(_RAW_BUFFER)()))
    socket.name = "envoy.transport_sockets.internal_upstream"
    socket.typed_config.CopyFrom(pb.pack(made))


def _state(value: Any, key: str, form: str, factory: str = "", *, shared: bool = False) -> None:
    value.object_key, value.factory_key = key, factory
    value.format_string.text_format_source.inline_string = form
    value.format_string.omit_empty_values = True
    value.read_only = True
    if shared:
        value.shared_with_upstream = "ONCE"
