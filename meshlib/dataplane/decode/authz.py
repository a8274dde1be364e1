"""Envoy's HTTP filter RBAC as core's rules.

Refused, with the path of the field, is what can't be decided in a process: CEL conditions, matcher
trees, filter state, extensions of others. A policy is never weakened by leaving a part of it out.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from meshlib.core.authz import conditions, values
from meshlib.core.authz.conditions import Block, Condition, ValueTest
from meshlib.core.authz.rbac import Policy, Rbac, Rules, Verb
from meshlib.core.authz.template import template_match
from meshlib.core.route.text import TextMatch
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.match import decode_header_match
from meshlib.dataplane.decode.text import decode_string
from meshlib.xds import pb

T = TypeVar("T")

MAX_DEPTH = 32
"""Of conditions in conditions."""
MAX_CONDITIONS = 100_000
"""In one filter."""
_VERBS = {0: Verb.ALLOW, 1: Verb.DENY, 2: Verb.LOG}
_TEMPLATE = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
_ANY = conditions.always
_UNSUPPORTED = ("condition", "checked_condition", "cel_config")


class _Budget:
    """Bounds what one filter may make us build."""

    def __init__(self) -> None:
        self.left = MAX_CONDITIONS

    def spend(self, depth: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise Refused("", f"more than {MAX_CONDITIONS} conditions")
        if depth > MAX_DEPTH:
            raise Refused("", f"conditions are nested more than {MAX_DEPTH} deep")


def decode_rbac(name: str, message: Any) -> Rbac:
    """An envoy.extensions.filters.http.rbac.v3.RBAC."""
    for field in ("matcher", "shadow_matcher"):
        if message.HasField(field):
            raise Refused(field, "is not supported")
    budget = _Budget()
    found: list[Rules | None] = []
    for field in ("rules", "shadow_rules"):
        if not message.HasField(field):
            found.append(None)
            continue
        try:
            found.append(_rules(getattr(message, field), budget))
        except Refused as refused:
            raise refused.within(field) from None
    return Rbac(name, found[0], found[1], message.shadow_rules_stat_prefix)


def _rules(message: Any, budget: _Budget) -> Rules:
    if message.action not in _VERBS:
        raise Refused("action", f"{message.action} is unknown")
    policies = []
    for name in sorted(message.policies):
        try:
            policies.append(_policy(name, message.policies[name], budget))
        except Refused as refused:
            raise refused.within(f"policies[{name}]") from None
    return Rules(_VERBS[message.action], tuple(policies))


def _policy(name: str, message: Any, budget: _Budget) -> Policy:
    for field in _UNSUPPORTED:
        if message.HasField(field):
            raise Refused(field, "is not supported")
    permission = conditions.some(_list(message.permissions, "permissions", _permission, budget, 0))
    principals = _list(message.principals, "principals", _principal, budget, 0)
    principal, named = (conditions.some(parts) for parts in zip(*principals, strict=True))
    return Policy(name, conditions.every((permission, principal)), named)


Decoder = Callable[[Any, _Budget, int], T]
Principal = tuple[Condition, Condition]
"""The condition, and what of it the names of the peer's certificate decide (`Policy.named`)."""


def _list(messages: Any, field: str, decode: Decoder[T], budget: _Budget, depth: int) -> list[T]:
    made = decode_each(messages, field, lambda message: decode(message, budget, depth + 1))
    if not made:
        raise Refused(field, "is empty")
    return made


def _one(field: str, decode: Callable[[], T]) -> T:
    try:
        return decode()
    except Refused as refused:
        raise refused.within(field) from None


def _permission(message: Any, budget: _Budget, depth: int) -> Condition:
    """An envoy.config.rbac.v3.Permission."""
    budget.spend(depth)
    which = message.WhichOneof("rule")
    value: Any = getattr(message, which) if which else None
    match which:
        case "and_rules" | "or_rules":
            parts = _one(which, lambda: _list(value.rules, "rules", _permission, budget, depth))
            return conditions.every(parts) if which == "and_rules" else conditions.some(parts)
        case "not_rule":
            return conditions.negated(_one(which, lambda: _permission(value, budget, depth + 1)))
        case "destination_ip":
            return conditions.local_ip(_block(value, which))
        case "destination_port":
            return conditions.local_port(int(message.destination_port), int(message.destination_port) + 1)
        case "destination_port_range":
            return _ports(message.destination_port_range)
        case "requested_server_name":
            return conditions.server_name(_one(which, lambda: decode_string(value)))
        case "uri_template":
            return conditions.url_path(_one(which, lambda: _template(value)))
    return _shared(which, message)


def _principal(message: Any, budget: _Budget, depth: int) -> Principal:
    """An envoy.config.rbac.v3.Principal."""
    budget.spend(depth)
    which = message.WhichOneof("identifier")
    value: Any = getattr(message, which) if which else None
    match which:
        case "and_ids" | "or_ids":
            parts = _one(which, lambda: _list(value.ids, "ids", _principal, budget, depth))
            join = conditions.every if which == "and_ids" else conditions.some
            whole, named = zip(*parts, strict=True)
            return join(whole), join(named)
        case "not_id":
            return conditions.negated(_one(which, lambda: _principal(value, budget, depth + 1))[0]), _ANY
        case "authenticated":
            found = conditions.authenticated(_name(message.authenticated))
            return found, found
        case "source_ip" | "direct_remote_ip":
            return conditions.direct_ip(_block(value, which)), _ANY
        case "remote_ip":
            return conditions.remote_ip(_block(value, which)), _ANY
    return _shared(which, message), _ANY


def _shared(which: str | None, message: Any) -> Condition:
    """What permissions and principals have in common."""
    match which:
        case "any":
            if not message.any:
                raise Refused("any", "is false")
            return conditions.always
        case "header":
            return conditions.header(_one(which, lambda: decode_header_match(message.header)))
        case "url_path":
            return conditions.url_path(_one(which, lambda: _path(message.url_path)))
        case "metadata":
            return _one(which, lambda: decode_metadata(message.metadata))
        case None:
            raise Refused("", "no condition is set")
    raise Refused(which, "is not supported")


def _name(message: Any) -> TextMatch | None:
    if not message.HasField("principal_name"):
        return None
    try:
        return decode_string(message.principal_name)
    except Refused as refused:
        raise refused.within("authenticated.principal_name") from None


def _path(message: Any) -> TextMatch:
    if message.WhichOneof("rule") != "path":
        raise Refused("path", "is not set")
    try:
        return decode_string(message.path)
    except Refused as refused:
        raise refused.within("path") from None


def _block(message: Any, path: str) -> Block:
    try:
        return Block(message.address_prefix, message.prefix_len.value)
    except ValueError as error:
        raise Refused(path, str(error)) from None


def _ports(message: Any) -> Condition:
    if message.start >= message.end:
        raise Refused("destination_port_range", f"[{message.start}, {message.end}) is empty")
    return conditions.local_port(message.start, message.end)


def _template(message: Any) -> TextMatch:
    try:
        config = pb.unpack(message.typed_config)
    except (DecodeError, KeyError) as error:
        raise Refused("typed_config", f"can't be decoded: {error}") from None
    if config.DESCRIPTOR.full_name != _TEMPLATE:
        raise Refused("typed_config", f"{config.DESCRIPTOR.full_name} is not supported")
    try:
        return template_match(config.path_template)
    except ValueError as error:
        raise Refused("typed_config.path_template", str(error)) from None


def decode_metadata(message: Any) -> Condition:
    """An envoy.type.matcher.v3.MetadataMatcher."""
    if not message.filter:
        raise Refused("filter", "is empty")
    keys = []
    for number, segment in enumerate(message.path):
        if not segment.key:
            raise Refused(f"path[{number}].key", "is empty")
        keys.append(segment.key)
    if not keys:
        raise Refused("path", "is empty")
    try:
        test = _value(message.value, 0)
    except Refused as refused:
        raise refused.within("value") from None
    return conditions.metadata(message.filter, keys, test, invert=message.invert)


def _value(message: Any, depth: int) -> ValueTest:
    """An envoy.type.matcher.v3.ValueMatcher."""
    if depth > MAX_DEPTH:
        raise Refused("", f"conditions are nested more than {MAX_DEPTH} deep")
    which = message.WhichOneof("match_pattern")
    try:
        match which:
            case "null_match":
                return values.is_null()
            case "bool_match":
                return values.is_bool(message.bool_match)
            case "present_match":
                return values.is_present(message.present_match)
            case "string_match":
                return values.is_text(decode_string(message.string_match))
            case "double_match":
                return _number(message.double_match)
            case "list_match":
                return values.has_item(_value(message.list_match.one_of, depth + 1))
            case "or_match":
                return values.passes_one([_value(one, depth + 1) for one in message.or_match.value_matchers])
    except Refused as refused:
        raise refused.within(str(which)) from None
    raise Refused("", f"{which} is not supported" if which else "no pattern is set")


def _number(message: Any) -> ValueTest:
    if message.WhichOneof("match_pattern") == "range":
        return values.is_number(message.range.start, message.range.end)
    return values.is_number(message.exact)
