"""Which responses count as errors of an endpoint: Envoy's MatchPredicate as core's rules."""

from typing import Any

from meshlib.core.outlier_errors import AllOf, AnyOf, Errors, Headers, Not, Statuses
from meshlib.core.route.match import HeaderMatch
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.match import decode_header_match

MAX_RULES = 200
"""Of an error matcher."""
MAX_DEPTH = 16


def decode_errors(message: Any) -> Errors:
    """An envoy.config.common.matcher.v3.MatchPredicate on responses."""
    if _size(message, MAX_DEPTH) > MAX_RULES:
        raise Refused("", f"more than {MAX_RULES} rules")
    return _decode_errors(message)


def _size(message: Any, depth: int) -> int:
    if not depth:
        raise Refused("", f"more than {MAX_DEPTH} rules within each other")
    which = message.WhichOneof("rule")
    if which == "not_match":
        return 1 + _size(message.not_match, depth - 1)
    if which in ("or_match", "and_match"):
        return 1 + sum(_size(rule, depth - 1) for rule in getattr(message, which).rules)
    if which == "http_response_headers_match":
        return 1 + len(message.http_response_headers_match.headers)
    return 1


def _decode_errors(message: Any) -> Errors:
    which = message.WhichOneof("rule")
    try:
        match which:
            case "any_match":
                return AllOf(())
            case "not_match":
                return Not(_decode_errors(message.not_match))
            case "and_match":
                return AllOf(_decode_rules(message.and_match))
            case "or_match":
                rules = _decode_rules(message.or_match)
                return _statuses(rules) or AnyOf(rules)
            case "http_response_headers_match":
                return _decode_headers(message.http_response_headers_match)
    except Refused as refused:
        raise refused.within(which) from None
    raise Refused(which or "rule", "is not supported: only headers of responses are looked at")


def _decode_rules(message: Any) -> tuple[Errors, ...]:
    if len(message.rules) < 2:
        raise Refused("rules", "less than two")
    return tuple(decode_each(message.rules, "rules", _decode_errors))


def _decode_headers(message: Any) -> Errors:
    made = decode_each(message.headers, "headers", decode_header_match)
    if len(made) == 1 and (status := _status(made[0])) is not None:
        return Statuses(frozenset((status,)))
    return Headers(tuple(made))


def _status(condition: HeaderMatch) -> int | None:
    exact = condition.exact if condition.name == b":status" else None
    return int(exact) if exact is not None and exact.isdigit() else None


def _statuses(rules: tuple[Errors, ...]) -> Statuses | None:
    if not all(isinstance(rule, Statuses) for rule in rules):
        return None
    return Statuses(frozenset().union(*(rule.statuses for rule in rules if isinstance(rule, Statuses))))
