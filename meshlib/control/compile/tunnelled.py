"""The end of a tunnel of HBONE at a workload: who may connect, to what, and what is known behind it.

Rules (Istio, ztunnel):

- A caller shows a certificate of one of the mesh's trust domains. `:authority` is the workload's own
  address and a port, in the one spelling that they have: rules match it as text, and Envoy reads `07000` and
  `+7000` as 7000. Nothing else is connected to, nor is a port of the Envoy itself: behind a tunnel in a
  tunnel the caller would have an address of the workload's own namespace.
- Who does not shake hands, or sends no whole head of a request, is not waited for; who asks for nothing more
  leaves after a while, which is longer than callers keep a connection.
- Whether a caller may connect to a port of TCP is judged before the workload hears of it. The rules are in
  routes, so that they hold for the next tunnel on any connection. Behind the tunnel all is as at the port
  itself.
- Who called is known there by filter state: rules of authorization look at `io.istio.peer_principal` and at
  the address of the other end of the tunnel's connection, and x-forwarded-client-cert is made of what the
  handshake showed. What a caller says of its address (x-forwarded-for of the tunnel) is not believed.
"""

from collections.abc import Iterable
from typing import Any

from meshlib.control.compile import matchers
from meshlib.control.compile.authz import DECIDING, TCP_RBAC, deciding
from meshlib.control.compile.hbone import (
    HANDSHAKE_SECONDS,
    HBONE,
    HEADERS_SECONDS,
    IDLE_SECONDS,
    LOCAL,
    MAX_STREAMS,
    REMOTE,
    STATE,
    STATE_FILTER,
    TUNNELLED,
    authority_of,
    keep_alive,
    mutual_tls,
    put_state,
)
from meshlib.control.compile.secrets import put_socket
from meshlib.identity.spiffe import SCHEME
from meshlib.xds import pb
from meshlib.xds.names import HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT

PRINCIPAL, CERTIFICATE = "io.istio.peer_principal", "meshlib.peer_certificate"
"""Filter state behind the tunnel: the caller's identity, and what x-forwarded-client-cert says of it."""
ADDRESS = "meshlib.peer_address"
"""Filter state behind the tunnel: the caller's address. The connection there comes from inside the Envoy."""
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
"""1 to 65535, without a sign or zeros before it."""
OWN_PORTS = (OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT)
"""In the workload's namespace, of the Envoy and not of the workload."""
_MANAGER = "envoy.filters.network.http_connection_manager"
_MUTATION = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
_XFCC = (
    'By=%DOWNSTREAM_LOCAL_URI_SAN%;Hash=%DOWNSTREAM_PEER_FINGERPRINT_256%;Subject="%DOWNSTREAM_PEER_SUBJECT%";'
    "URI=%DOWNSTREAM_PEER_URI_SAN%"
)


def hbone_listener(address: str, own: str, domains: Iterable[str]) -> Any:
    """The Listener at port 15008 of a workload of that address, without its own."""
    made = pb.Listener(name=HBONE, traffic_direction="INBOUND")
    context = pb.DownstreamTlsContext()
    context.require_client_certificate.value = True
    mutual_tls(context.common_tls_context, own, domains)
    chain = made.filter_chains.add(name=HBONE)
    put_socket(chain.transport_socket, context)
    chain.transport_socket_connect_timeout.CopyFrom(pb.duration(HANDSHAKE_SECONDS))
    manager = pb.HttpConnectionManager(stat_prefix=HBONE, codec_type="HTTP2")
    manager.http2_protocol_options.allow_connect = True
    manager.http2_protocol_options.max_concurrent_streams.value = MAX_STREAMS
    keep_alive(manager.http2_protocol_options)
    manager.request_headers_timeout.CopyFrom(pb.duration(HEADERS_SECONDS))
    manager.common_http_protocol_options.idle_timeout.CopyFrom(pb.duration(2 * IDLE_SECONDS))
    manager.stream_idle_timeout.CopyFrom(pb.duration(0.0))
    manager.use_remote_address.value = True
    manager.upgrade_configs.add(upgrade_type="CONNECT")
    states = pb.message(STATE.format("http"))()
    for key, form, factory in (
        (LOCAL, "%REQ(:AUTHORITY)%", ""),
        (REMOTE, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", ""),
        (ADDRESS, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "envoy.network.ip"),
        (PRINCIPAL, "%DOWNSTREAM_PEER_URI_SAN%", "envoy.string"),
        (CERTIFICATE, _XFCC, "envoy.string"),
    ):
        put_state(states.on_request_headers.add(), key, form, factory, shared=True)
    manager.http_filters.add(name=STATE_FILTER.format("http"), typed_config=pb.pack(states))
    for name in DECIDING:
        manager.http_filters.add(name=name, typed_config=pb.pack(pb.RBAC()))
    manager.http_filters.add(name="envoy.filters.http.router", typed_config=pb.pack(pb.Router()))
    manager.rds.route_config_name = HBONE
    manager.rds.config_source.ads.SetInParent()
    manager.rds.config_source.resource_api_version = "V3"
    chain.filters.add(name=_MANAGER, typed_config=pb.pack(manager))
    return made


def hbone_routes(address: str, requests: Iterable[int], rules: Iterable[tuple[str, Any]]) -> Any:
    """The RouteConfiguration of that Listener: to the workload's address, and nowhere else.

    `requests` are the ports whose requests are judged behind the tunnel; whoever asks for another one must
    pass these `rules` of connections, network filters by name.
    """
    made = pb.RouteConfiguration(name=HBONE)
    host = made.virtual_hosts.add(name=HBONE, domains=["*"])
    for port in sorted({*requests} - {*OWN_PORTS}):
        _connect(host, pb.StringMatcher(exact=authority_of(address, port)))
    own = matchers.literal(authority_of(address, 0).removesuffix("0"))
    rest = _connect(host, matchers.pattern(own + _PORT))
    of_envoy = matchers.pattern(own + f"({'|'.join(map(str, OWN_PORTS))})")
    rest.match.headers.add(name=":authority", string_match=of_envoy, invert_match=True)
    for name, config in rules:
        if name != TCP_RBAC or not config.HasField("rules"):
            continue
        kept = pb.RBAC()
        kept.rules.CopyFrom(config.rules)
        for policy in kept.rules.policies.values():
            for permission in policy.permissions:
                _ask_authority(permission)
        said = pb.message("envoy.extensions.filters.http.rbac.v3.RBACPerRoute")(rbac=kept)
        rest.typed_per_filter_config[deciding(kept)].CopyFrom(pb.pack(said))
    return made


def _connect(host: Any, authority: Any) -> Any:
    made = host.routes.add()
    made.match.connect_matcher.SetInParent()
    made.match.headers.add(name=":authority", string_match=authority)
    made.route.cluster = TUNNELLED
    made.route.timeout.CopyFrom(pb.duration(0.0))
    made.route.upgrade_configs.add(upgrade_type="CONNECT").connect_config.SetInParent()
    return made


def _ask_authority(permission: Any) -> None:
    """The port that a tunnel is for is in `:authority`."""
    match permission.WhichOneof("rule"):
        case "and_rules" | "or_rules" as several:
            for one in getattr(permission, several).rules:
                _ask_authority(one)
        case "not_rule":
            _ask_authority(permission.not_rule)
        case "destination_port":
            wanted = {"suffix": f":{permission.destination_port}"}
            permission.header.name = ":authority"
            permission.header.string_match.CopyFrom(pb.StringMatcher(**wanted))


def certificate_filter() -> tuple[str, Any]:
    """Name and configuration of the HTTP filter that says who called behind a tunnel, as a sidecar would."""
    made = pb.message(_MUTATION)()
    added = made.mutations.request_mutations.add().append
    added.header.key, added.header.value = "x-forwarded-client-cert", f"%FILTER_STATE({CERTIFICATE}:PLAIN)%"
    added.append_action = "APPEND_IF_EXISTS_OR_ADD"
    return "envoy.filters.http.header_mutation", made


def behind_tunnel(config: Any) -> None:
    """Makes the RBAC of an HTTP or network filter look for callers where they are behind a tunnel."""
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
        case "direct_remote_ip":
            block = principal.direct_remote_ip
            prefix, length = block.address_prefix, block.prefix_len.value
            principal.filter_state.key = ADDRESS
            made = principal.filter_state.address_match.ranges.add(address_prefix=prefix)
            made.prefix_len.value = length
