"""Envoy's CorsPolicy of a route as core's. It is looked at where requests are served, not where made."""

from typing import Any

from meshlib.core.cors import Cors, CorsPolicy
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.fault import setting
from meshlib.dataplane.decode.text import MILLION, decode_millionths, decode_string
from meshlib.xds import pb

CORS = "envoy.filters.http.cors"
MAX_ORIGINS = 1_000
_BAD = frozenset("\0\r\n")


def decode_cors_filter(_name: str, _message: Any) -> Cors:
    """An envoy.extensions.filters.http.cors.v3.Cors, which has no fields."""
    return Cors()


def decode_cors(settings: Any) -> CorsPolicy | None:
    """What a route's `typed_per_filter_config` says of CORS."""
    message = setting(settings, CORS, pb.CorsPolicy)
    if message is None:
        return None
    try:
        return _decode(message)
    except Refused as refused:
        raise refused.within(f'typed_per_filter_config["{CORS}"]') from None


def _decode(message: Any) -> CorsPolicy | None:
    if message.HasField("filter_enabled") and not _is_on(message.filter_enabled):
        return None
    if len(message.allow_origin_string_match) > MAX_ORIGINS:
        raise Refused("allow_origin_string_match", f"more than {MAX_ORIGINS}")
    origins = decode_each(message.allow_origin_string_match, "allow_origin_string_match", decode_string)
    forwards = message.forward_not_matching_preflights
    return CorsPolicy(
        tuple(origins),
        _text(message, "allow_methods"),
        _text(message, "allow_headers"),
        _text(message, "expose_headers"),
        _text(message, "max_age"),
        credentials=message.allow_credentials.value,
        private_network=message.allow_private_network_access.value,
        forwards=forwards.value if message.HasField("forward_not_matching_preflights") else True,
    )


def _is_on(fraction: Any) -> bool:
    try:
        share = decode_millionths(fraction.default_value)
    except Refused as refused:
        raise refused.within("filter_enabled.default_value") from None
    if 0 < share < MILLION:
        raise Refused("filter_enabled", "a share of the requests is not supported")
    return share > 0


def _text(message: Any, name: str) -> bytes:
    value = str(getattr(message, name))
    if not _BAD.isdisjoint(value):
        raise Refused(name, "holds a line end or a NUL")
    return value.encode()
