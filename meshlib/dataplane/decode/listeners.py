"""Envoy's Listener, as an API listener or with one HTTP filter chain, as the name of its routes.

A listener leads to routes by name, or carries them. Its HTTP filters are noted by name. Chains with a TCP
proxy say where connections go (`tcp.py`); a listener that has nothing else answers no request.
"""

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from meshlib.core.route.table import RouteTable
from meshlib.core.telemetry import NOTHING, AccessLog, Telling
from meshlib.core.view import TargetListener
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.decode.tcp import decode_connections
from meshlib.dataplane.decode.tracing import decode_tracing
from meshlib.values import dataclass
from meshlib.xds import pb
from meshlib.xds.names import inbound_port

if TYPE_CHECKING:
    from meshlib.core.inbound import Inbound


@dataclass(frozen=True, slots=True)
class ListenerFacts:
    """What a target's listener says. `routes`: a route configuration's name, or the table itself."""

    name: str
    routes: str | RouteTable
    filters: tuple[str, ...] = ()
    """Names of the HTTP filters, in order."""
    metadata: tuple[tuple[str, str], ...] = ()
    """`space/key` and value of every text in the listener's filter metadata."""
    telling: Telling = NOTHING


def decode_listener(message: Any) -> ListenerFacts:
    """An envoy.config.listener.v3.Listener. Refused: it can't be used; the error names the field."""
    packed, path = _manager(message)
    try:
        manager = pb.unpack(packed)
    except (DecodeError, KeyError) as error:
        raise Refused(path, f"can't be decoded: {error}") from None
    if manager.DESCRIPTOR.full_name != pb.HttpConnectionManager.DESCRIPTOR.full_name:
        raise Refused(path, f"{manager.DESCRIPTOR.full_name} is not supported")
    metadata = tuple(
        (f"{space}/{key}", value.string_value)
        for space in sorted(message.metadata.filter_metadata)
        for key, value in sorted(message.metadata.filter_metadata[space].fields.items())
        if value.WhichOneof("kind") == "string_value"
    )
    filters = tuple(each.name for each in manager.http_filters)
    for number, each in enumerate(manager.http_filters):
        if each.typed_config.value and each.typed_config.type_url == pb.type_url(pb.HTTPFault):
            raise Refused(f"{path}.http_filters[{number}]", "faults are supported where routes say them")
    try:
        telling = Telling(_logs(manager, message), decode_tracing(manager))
    except Refused as refused:
        raise refused.within(path) from None
    return ListenerFacts(message.name, _routes(manager, path), filters, metadata, telling)


def listener_value(message: Any) -> "TargetListener | Inbound":
    """What a Listener amounts to: of a target where its routes are, of a served port its policy."""
    if inbound_port(message.name) is not None:
        from meshlib.dataplane.decode.inbound import decode_inbound  # which only servers need

        return decode_inbound(message)
    connections = decode_connections(message)
    if connections is not None and not _speaks_http(message):
        return TargetListener(RouteTable(message.name, ()), connections=connections)
    facts = decode_listener(message)
    return TargetListener(facts.routes, facts.telling, connections)


def _speaks_http(message: Any) -> bool:
    return message.HasField("api_listener") or any(
        each.typed_config.type_url == pb.type_url(pb.HttpConnectionManager)
        for chain in message.filter_chains
        for each in chain.filters
    )


def _manager(message: Any) -> tuple[Any, str]:
    if message.HasField("api_listener"):
        return message.api_listener.api_listener, "api_listener.api_listener"
    for number, chain in enumerate(message.filter_chains):
        for place, each in enumerate(chain.filters):
            if each.typed_config.type_url == pb.type_url(pb.HttpConnectionManager):
                return each.typed_config, f"filter_chains[{number}].filters[{place}].typed_config"
    raise Refused("api_listener", "is not set, and no filter chain speaks HTTP")


def _logs(manager: Any, message: Any) -> tuple[AccessLog, ...]:
    if not manager.access_log:
        return ()
    from meshlib.dataplane.decode.accesslog import (
        decode_logs,  # with a parser of CEL, which few listeners need
    )

    return decode_logs(manager, message)


def _routes(manager: Any, path: str) -> str | RouteTable:
    which = manager.WhichOneof("route_specifier")
    if which == "rds":
        if not manager.rds.route_config_name:
            raise Refused(f"{path}.rds.route_config_name", "is empty")
        return str(manager.rds.route_config_name)
    if which != "route_config":
        raise Refused(f"{path}.{which or 'route_specifier'}", "is not supported or not set")
    try:
        return decode_routes(manager.route_config)
    except Refused as refused:
        raise refused.within(f"{path}.route_config") from None
