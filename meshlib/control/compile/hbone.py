"""HBONE between nodes: HTTP/2 CONNECT over mutual TLS to port 15008 of the workload.

    cluster ──► an endpoint inside the Envoy ──► listener `connect` ──► cluster `hbone` ══► the peer's
    listener `hbone` ──► its listener `tunnelled`, with the chains of each port

Rules (Istio, ztunnel):

- TLS 1.3, ALPN h2, no SNI; both sides show a certificate. The caller takes only the identities that it
  takes at the service's port, the peer any of the mesh's trust domains.
- `:authority` is the address and port that the connection is for; what the peer makes of it is in
  `tunnelled.py`.
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
_TUNNEL = "tunnel"
"""Endpoint metadata: where the tunnel ends (`address`), what for (`destination`), who is there (`san`)."""
STATE = "envoy.extensions.filters.{}.set_filter_state.v3.Config"
STATE_FILTER = "envoy.filters.{}.set_filter_state"
LOCAL, REMOTE = (
    "envoy.filters.listener.original_dst.local_ip",
    "envoy.filters.listener.original_dst.remote_ip",
)
"""Filter state: where a connection that is led to a listener inside the Envoy was going, and from where."""
_TCP_PROXY = "envoy.filters.network.tcp_proxy"
_INTERNAL = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"
_RAW_BUFFER = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_EVERY_SAN = "envoy.network.upstream_subject_alt_names"
MAX_STREAMS = 100
KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS = 30.0, 10.0
HANDSHAKE_SECONDS, HEADERS_SECONDS, IDLE_SECONDS = 15.0, 10.0, 300.0


def put_tunnelled(match: Any) -> None:
    """Fills the TransportSocketMatch of endpoints that are reached through a tunnel."""
    match.name = HBONE
    match.match.update({_TUNNEL: TUNNEL_HTTP})
    inside(match.transport_socket, metadata=True)


def put_target(made: Any, endpoint: Endpoint, names: Sequence[str]) -> None:
    """Fills the address and metadata of an LbEndpoint that is reached through a tunnel."""
    target = authority_of(endpoint.address, endpoint.port)
    internal = made.endpoint.address.envoy_internal_address
    internal.server_listener_name, internal.endpoint_id = CONNECT, target
    said = {
        "destination": target,
        "address": authority_of(endpoint.address, HBONE_PORT),
        "san": ",".join(names),
    }
    made.metadata.filter_metadata[_TUNNEL].update(said)
    made.metadata.filter_metadata[TRANSPORT_SOCKET_MATCH].update({_TUNNEL: TUNNEL_HTTP})


def connect_listener() -> Any:
    """The Listener inside the Envoy whose connections go into tunnels."""
    made = pb.Listener(name=CONNECT)
    made.internal_listener.SetInParent()
    chain = made.filter_chains.add()
    names = pb.message(STATE.format("network"))()
    put_state(names.on_new_connection.add(), _EVERY_SAN, f"%DYNAMIC_METADATA({_TUNNEL}:san)%")
    chain.filters.add(name=STATE_FILTER.format("network"), typed_config=pb.pack(names))
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
    keep_alive(second)
    made.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(pb.pack(options))
    context = pb.UpstreamTlsContext()
    mutual_tls(context.common_tls_context, own, domains)
    put_socket(made.transport_socket, context)
    return made


def authority_of(address: str, port: int) -> str:
    """`address:port`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def mutual_tls(common: Any, own: str, domains: Iterable[str]) -> None:
    """Fills a CommonTlsContext of a tunnel, whose end shows the secret `own`."""
    show_own(common, Flavour.NODE, own)
    common.alpn_protocols.append("h2")
    common.tls_params.tls_minimum_protocol_version = "TLSv1_3"
    common.tls_params.tls_maximum_protocol_version = "TLSv1_3"
    trusted = trust_mesh(common, grpc=False)
    for domain in domains:
        trusted.match_subject_alt_names.add(prefix=f"{SCHEME}{domain}/")


def keep_alive(second: Any) -> None:
    """Fills the Http2ProtocolOptions of a connection whose other end may vanish."""
    second.connection_keepalive.interval.CopyFrom(pb.duration(KEEPALIVE_SECONDS))
    second.connection_keepalive.timeout.CopyFrom(pb.duration(KEEPALIVE_TIMEOUT_SECONDS))


def inside(socket: Any, *, metadata: bool) -> None:
    """Fills a TransportSocket that leads to a listener inside the Envoy; `metadata`: with the endpoint's."""
    made = pb.message(_INTERNAL)()
    if metadata:
        passed = made.passthrough_metadata.add(name=_TUNNEL)
        passed.kind.host.SetInParent()
    made.transport_socket.name = "envoy.transport_sockets.raw_buffer"
    made.transport_socket.typed_config.CopyFrom(pb.pack(pb.message(_RAW_BUFFER)()))
    socket.name = "envoy.transport_sockets.internal_upstream"
    socket.typed_config.CopyFrom(pb.pack(made))


def inside_cluster(name: str, listener: str) -> Any:
    """The Cluster of that name that leads to a Listener inside the Envoy."""
    made = pb.Cluster(name=name, type="STATIC")
    breakers(made, None, None, Flavour.NODE)
    made.load_assignment.cluster_name = name
    endpoint = made.load_assignment.endpoints.add().lb_endpoints.add()
    endpoint.endpoint.address.envoy_internal_address.server_listener_name = listener
    inside(made.transport_socket, metadata=False)
    return made


def put_state(value: Any, key: str, form: str, factory: str = "", *, shared: bool = False) -> None:
    """Fills a FilterStateValue; `shared`: it is known behind the tunnel, too."""
    value.object_key, value.factory_key = key, factory
    value.format_string.text_format_source.inline_string = form
    value.format_string.omit_empty_values = True
    value.read_only = True
    if shared:
        value.shared_with_upstream = "ONCE"
