"""Envoy's RouteMatch, HeaderMatcher and QueryParameterMatcher as core's conditions.

Refused: what can't be decided in a process (TLS of the caller, dynamic metadata, CONNECT), rather
than taken as true.
"""

import functools
from typing import Any

from meshlib.core.route.match import HeaderMatch, PathKind, PathMatch, QueryMatch, RouteMatch
from meshlib.core.route.text import Presence, Range, TextKind, TextMatch
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.text import decode_millionths, decode_regex, decode_string, plain

MAX_CONDITIONS = 200
"""Header and query conditions of one rule."""
_PATHS = {"prefix": PathKind.PREFIX, "path": PathKind.EXACT, "path_separated_prefix": PathKind.SEGMENTS}
_UNSUPPORTED = ("tls_context", "dynamic_metadata", "filter_state")
_OLD_TEXTS = {
    "exact_match": TextKind.EXACT,
    "prefix_match": TextKind.PREFIX,
    "suffix_match": TextKind.SUFFIX,
    "contains_match": TextKind.CONTAINS,
}


def decode_match(message: Any) -> RouteMatch:
    """An envoy.config.route.v3.RouteMatch."""
    for field, _ in message.ListFields():
        if field.name in _UNSUPPORTED:
            raise Refused(field.name, "is not supported")
    if len(message.headers) + len(message.query_parameters) > MAX_CONDITIONS:
        raise Refused("headers", f"more than {MAX_CONDITIONS} conditions in one rule")
    headers = decode_each(message.headers, "headers", decode_header_match)
    query = decode_each(message.query_parameters, "query_parameters", _decode_query)
    if message.HasField("grpc"):
        headers.append(_grpc())
    return RouteMatch(_decode_path(message), tuple(headers), tuple(query), _decode_share(message))


@functools.cache
def _grpc() -> HeaderMatch:
    return HeaderMatch(b"content-type", TextMatch(TextKind.REGEX, r"(?s)application/grpc(\+.*)?"))


def _decode_path(message: Any) -> PathMatch:
    which = message.WhichOneof("path_specifier")
    sensitive = message.case_sensitive.value if message.HasField("case_sensitive") else True
    if which == "safe_regex":
        return PathMatch(PathKind.REGEX, decode_regex(message.safe_regex, "safe_regex"))
    if which not in _PATHS:
        raise Refused(which or "path_specifier", "is not supported" if which else "is not set")
    value = str(getattr(message, which))
    if which == "path_separated_prefix" and (len(value) < 2 or value.endswith("/") or set("?#") & set(value)):
        raise Refused(which, f'"{value}" has less than two characters, a ? or #, or a / at its end')
    return PathMatch(_PATHS[which], value, sensitive)


def _decode_share(message: Any) -> int | None:
    if not message.HasField("runtime_fraction"):
        return None
    try:
        return decode_millionths(message.runtime_fraction.default_value)
    except Refused as refused:
        raise refused.within("runtime_fraction.default_value") from None


def decode_header_match(message: Any) -> HeaderMatch:
    """An envoy.config.route.v3.HeaderMatcher."""
    if not message.name:
        raise Refused("name", "is empty")
    return HeaderMatch(
        message.name.lower().encode(),
        _decode_header_test(message),
        message.invert_match,
        message.treat_missing_header_as_empty,
    )


def _decode_header_test(message: Any) -> TextMatch | Range | Presence:
    which = message.WhichOneof("header_match_specifier")
    if which is None:
        return Presence()
    if which == "present_match":
        return Presence(message.present_match)
    if which == "range_match":
        return Range(message.range_match.start, message.range_match.end)
    if which == "safe_regex_match":
        return TextMatch(TextKind.REGEX, decode_regex(message.safe_regex_match, which))
    if which in _OLD_TEXTS:
        return plain(_OLD_TEXTS[which], getattr(message, which), which)
    try:
        return decode_string(message.string_match)
    except Refused as refused:
        raise refused.within(which) from None


def _decode_query(message: Any) -> QueryMatch:
    if not message.name:
        raise Refused("name", "is empty")
    which = message.WhichOneof("query_parameter_match_specifier")
    if which == "string_match":
        try:
            return QueryMatch(message.name, decode_string(message.string_match))
        except Refused as refused:
            raise refused.within(which) from None
    return QueryMatch(message.name, Presence(message.present_match if which else True))
