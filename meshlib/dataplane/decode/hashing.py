"""Envoy's HashPolicy as core's: what of a request is hashed."""

from typing import Any

from meshlib.core.balance.hashing import HashCookie, HashHeader, HashPolicy, HashQuery, HashSource
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.text import decode_seconds

MAX_POLICIES = 100


def decode_hash_policies(messages: Any) -> tuple[HashPolicy, ...]:
    """The envoy.config.route.v3.RouteAction.HashPolicy of a route, in their order."""
    if len(messages) > MAX_POLICIES:
        raise Refused("hash_policy", f"more than {MAX_POLICIES}")
    made = decode_each(messages, "hash_policy", _decode)
    return tuple(policy for policy in made if policy is not None)


def _decode(message: Any) -> HashPolicy | None:
    which, terminal = message.WhichOneof("policy_specifier"), message.terminal
    match which:
        case "header":
            return HashHeader(_header(message.header), terminal)
        case "cookie":
            return _cookie(message.cookie, terminal=terminal)
        case "connection_properties":
            return HashSource(terminal) if message.connection_properties.source_ip else None
        case "query_parameter":
            return HashQuery(_name(message.query_parameter.name, "query_parameter.name"), terminal)
    raise Refused(which or "policy_specifier", "is not supported" if which else "is not set")


def _header(message: Any) -> bytes:
    if message.HasField("regex_rewrite"):
        raise Refused("header.regex_rewrite", "is not supported")
    return _name(message.header_name, "header.header_name").lower()


def _cookie(message: Any, *, terminal: bool) -> HashCookie:
    try:
        ttl = int(decode_seconds(message, "ttl", 0.0)) if message.HasField("ttl") else None
    except Refused as refused:
        raise refused.within("cookie") from None
    return HashCookie(
        name=_name(message.name, "cookie.name"),
        ttl=ttl,
        path=message.path.encode(),
        attributes=tuple((each.name.encode(), each.value.encode()) for each in message.attributes),
        terminal=terminal,
    )


def _name(text: str, field: str) -> bytes:
    if not text:
        raise Refused(field, "is empty")
    return str(text).encode()
