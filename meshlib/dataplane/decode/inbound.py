"""A server's own Listener as core's Inbound: how its connections are secured, and its HTTP filters.

Rules:

- Its filter chains are told apart by the transport alone: TLS, plain text, or both. All carry the same
  HTTP filters.
- An HTTP filter is a value by the table `FILTERS`. One that is not there is refused, whatever it says of
  being optional: a policy that is passed over lets in whom it should keep out.
- Its routes are looked at for the filter that asks for them: CORS.
- Paths are normalised unless the manager says that they are not: a policy on paths means little without.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.core.authz.path import EscapedSlashes, PathOptions
from meshlib.core.cors import Cors
from meshlib.core.inbound import Inbound
from meshlib.core.mtls import InboundMode, SanMatch, ServerTls
from meshlib.core.route.rule import Origin
from meshlib.core.route.table import RouteTable
from meshlib.core.telemetry import Telling
from meshlib.dataplane.decode.accesslog import decode_logs
from meshlib.dataplane.decode.authn import decode_jwt
from meshlib.dataplane.decode.authz import decode_rbac
from meshlib.dataplane.decode.cors import decode_cors_filter
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.extauthz import decode_ext_authz
from meshlib.dataplane.decode.mtls import (
    decode_mesh_trust,
    decode_sans,
    decode_version,
    is_own_certificate,
    unpack_socket,
)
from meshlib.dataplane.decode.origin import decode_origin, origin_of
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.decode.tracing import decode_tracing
from meshlib.identity.spiffe import SCHEME
from meshlib.xds import pb
from meshlib.xds.names import MESHLIB_METADATA

FilterDecoder = Callable[[str, Any], object]
"""The filter's name and its configuration's message, to a core value; Refused."""

_EXTENSIONS = "type.googleapis.com/envoy.extensions.filters.http"
FILTERS: Mapping[str, FilterDecoder] = MappingProxyType(
    {
        f"{_EXTENSIONS}.cors.v3.Cors": decode_cors_filter,
        f"{_EXTENSIONS}.rbac.v3.RBAC": decode_rbac,
        f"{_EXTENSIONS}.jwt_authn.v3.JwtAuthentication": decode_jwt,
        f"{_EXTENSIONS}.ext_authz.v3.ExtAuthz": decode_ext_authz,
    }
)
"""By the type URL of the configuration. The router is the end of every list and has no value."""

_ESCAPED = dict(
    enumerate(
        (
            EscapedSlashes.KEEP,
            EscapedSlashes.KEEP,
            EscapedSlashes.REJECT,
            EscapedSlashes.REDIRECT,
            EscapedSlashes.FORWARD,
        )
    )
)
_MODES = {
    frozenset(("tls",)): InboundMode.STRICT,
    frozenset(("raw_buffer",)): InboundMode.DISABLE,
    frozenset(("tls", "raw_buffer")): InboundMode.PERMISSIVE,
}


def decode_inbound(message: Any, filters: Mapping[str, FilterDecoder] = FILTERS) -> Inbound:
    """An envoy.config.listener.v3.Listener of a served port. Refused: it can't be used."""
    chains: dict[str, Any] = {}
    secured = ServerTls()
    for number, chain in enumerate(message.filter_chains):
        path = f"filter_chains[{number}]"
        try:
            tls = _secured(chain)
        except Refused as refused:
            raise refused.within(path) from None
        kind = "raw_buffer" if tls is None else "tls"
        _check_match(chain.filter_chain_match, kind, f"{path}.filter_chain_match")
        if kind in chains:
            raise Refused(path, f"is the second for {kind}")
        if any(list(other.filters) != list(chain.filters) for other in chains.values()):
            raise Refused(f"{path}.filters", "differ from those of the other chain")
        chains[kind] = chain
        secured = tls or secured
    if not chains:
        raise Refused("filter_chains", "is empty")
    manager, path = _manager(message.filter_chains[0])
    mode = _MODES[frozenset(chains)]
    try:
        telling = Telling(decode_logs(manager, message), decode_tracing(manager))
    except Refused as refused:
        raise refused.within(path) from None
    found = _filters(manager, path, filters)
    return Inbound(
        name=message.name,
        tls=ServerTls(mode, secured.trust_domains, secured.alpn, secured.min_version),
        filters=found,
        origin=decode_origin(message),
        paths=_paths(manager, path),
        policies=_policies(message),
        telling=telling,
        routes=_routes(manager, path) if any(isinstance(one, Cors) for one in found) else None,
    )


def decode_edge(listener: Any, manager: Any) -> Inbound:
    """What the HTTP filters of a connection manager ask of strangers; its faults and CORS stand in routes.

    Refused: one is not known.
    """
    passed = {pb.type_url(each): lambda _name, _config: None for each in (pb.HTTPFault, pb.Cors)}
    found = _filters(manager, "", {**FILTERS, **passed})
    return Inbound(
        name=listener.name,
        tls=ServerTls(InboundMode.PERMISSIVE),
        filters=tuple(one for one in found if one is not None),
        origin=decode_origin(listener),
        paths=_paths(manager, ""),
        policies=_policies(listener),
    )


def decode_behind(listener: Any, manager: Any, routes: Any, mode: InboundMode, origin: Origin) -> Inbound:
    """What a node's Envoy asks of those who call a port; `manager` None: it looks at connections alone.

    Rules that decide stand in the `routes`, in the place of the filters of their names. Refused.
    """
    found: tuple[object, ...] = ()
    if manager is not None:
        whole = pb.HttpConnectionManager()
        whole.CopyFrom(manager)
        said = routes.typed_per_filter_config if routes is not None else {}
        for each in whole.http_filters:
            if each.name in said:
                each.typed_config.CopyFrom(
                    pb.pack(_unpacked(said[each.name], "typed_per_filter_config").rbac)
                )
        cors = {pb.type_url(pb.Cors): lambda _name, _config: None}
        found = tuple(one for one in _filters(whole, "", {**FILTERS, **cors}) if one is not None)
    paths = _paths(manager, "") if manager is not None else PathOptions()
    return Inbound(listener.name, ServerTls(mode), found, origin, paths, _policies(listener))


def _check_match(match: Any, kind: str, path: str) -> None:
    """Nothing but the transport may be asked for."""
    if match.transport_protocol not in ("", kind):
        raise Refused(f"{path}.transport_protocol", f"{match.transport_protocol} at a chain for {kind}")
    for field, _ in match.ListFields():
        if field.name != "transport_protocol":
            raise Refused(f"{path}.{field.name}", "is not supported")


def _secured(chain: Any) -> ServerTls | None:
    """What a filter chain asks of TLS; None: it is for plain text. The mode is not known here."""
    if not chain.HasField("transport_socket"):
        return None
    context = unpack_socket(chain.transport_socket, "transport_socket")
    if context is None:
        return None
    path = "transport_socket.typed_config"
    if context.DESCRIPTOR.full_name != pb.DownstreamTlsContext.DESCRIPTOR.full_name:
        raise Refused(path, f"{context.DESCRIPTOR.full_name} is not supported")
    if not context.require_client_certificate.value:
        raise Refused(f"{path}.require_client_certificate", "is not set")
    common = context.common_tls_context
    try:
        if not is_own_certificate(common):
            raise Refused("common_tls_context", "does not show the workload's own certificate")
        trusted, at = decode_mesh_trust(common)
        domains = tuple(_domain(kind, text, at) for kind, text in decode_sans(trusted, at))
        version = decode_version(common)
    except Refused as refused:
        raise refused.within(path) from None
    return ServerTls(trust_domains=domains, alpn=tuple(common.alpn_protocols), min_version=version)


def _domain(kind: SanMatch, text: str, path: str) -> str:
    domain = text.removeprefix(SCHEME).removesuffix("/")
    if kind is not SanMatch.PREFIX or f"{SCHEME}{domain}/" != text or "/" in domain or not domain:
        raise Refused(f"{path}.match_subject_alt_names", f"{kind.value} {text!r} is no trust domain")
    return domain


def _manager(chain: Any) -> tuple[Any, str]:
    """The HttpConnectionManager of a chain, and its place."""
    path = "filter_chains[0].filters[0].typed_config"
    if len(chain.filters) != 1:
        raise Refused("filter_chains[0].filters", f"has {len(chain.filters)}; one that speaks HTTP is needed")
    manager = _unpacked(chain.filters[0].typed_config, path)
    if manager.DESCRIPTOR.full_name != pb.HttpConnectionManager.DESCRIPTOR.full_name:
        raise Refused(path, f"{manager.DESCRIPTOR.full_name} is not supported")
    return manager, path


def _paths(manager: Any, path: str) -> PathOptions:
    action = manager.path_with_escaped_slashes_action
    if action not in _ESCAPED:
        raise Refused(f"{path}.path_with_escaped_slashes_action", f"{action} is unknown")
    said = manager.HasField("normalize_path")
    return PathOptions(
        manager.normalize_path.value if said else True, manager.merge_slashes, _ESCAPED[action]
    )


def _filters(manager: Any, path: str, decoders: Mapping[str, FilterDecoder]) -> tuple[object, ...]:
    found = []
    router = pb.type_url(pb.Router)
    listed = list(manager.http_filters)
    if not listed or listed[-1].typed_config.type_url != router:
        raise Refused(f"{path}.http_filters", "does not end with the router")
    for number, each in enumerate(listed[:-1]):
        at = f"{path}.http_filters[{number}]"
        url = each.typed_config.type_url
        if url not in decoders or each.disabled:
            raise Refused(at, f"{each.name}: {url or 'no configuration'} is not supported")
        try:
            found.append(decoders[url](each.name, _unpacked(each.typed_config, "typed_config")))
        except Refused as refused:
            raise refused.within(at) from None
    return tuple(found)


def _routes(manager: Any, path: str) -> RouteTable:
    which = manager.WhichOneof("route_specifier")
    if which != "route_config":
        raise Refused(f"{path}.{which or 'route_specifier'}", "is not supported: the routes must be inline")
    try:
        return decode_routes(manager.route_config, served=True)
    except Refused as refused:
        raise refused.within(f"{path}.route_config") from None


def _unpacked(packed: Any, path: str) -> Any:
    try:
        return pb.unpack(packed)
    except (DecodeError, KeyError) as error:
        raise Refused(path, f"can't be decoded: {error}") from None


def _policies(message: Any) -> Mapping[str, Origin]:
    """Which YAML made each policy, by its name in the filters."""
    if MESHLIB_METADATA not in message.metadata.filter_metadata:
        return MappingProxyType({})
    said = message.metadata.filter_metadata[MESHLIB_METADATA].fields
    listed = said["policies"].struct_value.fields if "policies" in said else {}
    return MappingProxyType({name: origin_of(listed[name].struct_value.fields) for name in listed})
