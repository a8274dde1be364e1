"""AuthorizationPolicy and PeerAuthentication, as Istio's webhook checks them."""

import re2

from meshlib.control.istio.authorizationpolicy import (
    Action,
    AuthorizationPolicy,
    Condition,
    Operation,
    Rule,
    Source,
)
from meshlib.control.istio.peerauthentication import PeerAuthentication
from meshlib.control.istio.requestauthentication import RequestAuthentication
from meshlib.control.istio.telemetry import Telemetry
from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.report import Report

TARGETS = {
    "Gateway": "gateway.networking.k8s.io",
    "GatewayClass": "gateway.networking.k8s.io",
    "Service": "",
    "ServiceEntry": "networking.istio.io",
}
MAX_VALUE = 10_000
"""Longest value of a rule, in characters: patterns are made of some."""
KEYS = (
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.principal",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
)
_INDEXED = re2.compile(
    r"(request\.headers\[[^\[\]]+\]|request\.auth\.claims(\[[^\[\]]+\])+|experimental\.envoy\.filters\.[^\[\]]+\[.+\])"
)
_LITERAL = re2.compile(r"[-a-zA-Z0-9._~%!$&'()+,;:@=]+")
"""A segment of a path beside templates."""
_NAMES = ("principals", "namespaces")
_OF_CONNECTIONS = tuple(
    prefix + name
    for prefix in ("", "not_")
    for name in ("principals", "namespaces", "service_accounts", "ip_blocks", "remote_ip_blocks")
)
"""What a source has without HTTP."""
_IDENTITY = ("principals", "request_principals", "namespaces", "service_accounts", "trust_domains")


def target(spec: AuthorizationPolicy | RequestAuthentication | Telemetry, to: Report) -> None:
    """Which workloads a policy is for."""
    if sum(map(bool, (spec.selector, spec.target_ref, spec.target_refs))) > 1:
        to.error("more than one of a choice is set", "", "one of selector, targetRef, targetRefs")
    hosts.selecting(spec.selector, to.at("selector"))
    listed = [(("target_refs", index), ref) for index, ref in enumerate(spec.target_refs)]
    for path, ref in ([(("target_ref",), spec.target_ref)] if spec.target_ref else []) + listed:
        if ref.kind not in TARGETS or ref.group not in (TARGETS[ref.kind], "core"):
            to.at(*path).error("not a target", f"{ref.group}/{ref.kind}", ", ".join(TARGETS))
        if not ref.name:
            to.at(*path, "name").error("no name", "", "the name of a target")
        if ref.namespace:
            to.at(*path, "namespace").error(
                "another namespace", repr(ref.namespace), "the policy's own; leave it out"
            )


def authorization_policy(spec: AuthorizationPolicy, to: Report) -> None:
    """The whole spec."""
    target(spec, to)
    custom = spec.action is Action.CUSTOM
    if spec.action in (Action.DENY, Action.CUSTOM) and not spec.rules:
        to.at("rules").error(f"{spec.action.value} without rules", "", "at least one rule")
    if custom and not (spec.provider and spec.provider.name):
        to.at("provider").error("CUSTOM without provider", "", "provider with a name")
    if spec.provider and not custom:
        to.at("provider").error(
            f"provider with {spec.action.value}", repr(spec.provider.name), "action CUSTOM"
        )
    for index, rule in enumerate(spec.rules):
        at = to.at("rules", index)
        for name in ("from_", "to", "when"):
            if name in rule.model_fields_set and not getattr(rule, name):
                at.at(name).error("an empty list", "[]", "at least one item, or leave it out")
        for position, origin in enumerate(rule.from_):
            _source(origin.source, custom, at.at("from_", position, "source"))
        for position, goal in enumerate(rule.to):
            _operation(goal.operation, at.at("to", position, "operation"))
        for position, condition in enumerate(rule.when):
            _condition(condition, custom, at.at("when", position))
        if spec.action is Action.DENY and _http_alone(rule):
            at.warn("denies all of TCP too: nothing of it is known there", "", "ports beside what is of HTTP")


def _http_alone(rule: Rule) -> bool:
    """Whether a rule speaks of nothing that a connection has by itself."""
    sources = [origin.source for origin in rule.from_ if origin.source]
    operations = [goal.operation for goal in rule.to if goal.operation]
    plain_source = any(getattr(source, name) for source in sources for name in _OF_CONNECTIONS)
    plain_operation = any(operation.ports or operation.not_ports for operation in operations)
    if operations:
        return not plain_operation
    return bool(sources) and not plain_source


def _values(given: Source | Operation, to: Report) -> None:
    for name in type(given).model_fields:
        values: tuple[str, ...] = getattr(given, name)
        if name in given.model_fields_set and not values:
            to.at(name).error("an empty list", "[]", "at least one value, or leave it out")
        for index, value in enumerate(values):
            _value(value, to.at(name, index))


def _value(value: str, to: Report) -> None:
    if not value:
        to.error("an empty value", "''", "a value")
    elif len(value) > MAX_VALUE:
        to.error("too long a value", len(value), f"at most {MAX_VALUE} characters")


def _source(source: Source | None, custom: bool, to: Report) -> None:
    if source is None or not source.model_fields_set:
        to.error("an empty source", "", "at least one field")
        return
    _values(source, to)
    for name in ("ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks"):
        hosts.subnets(getattr(source, name), to.at(name))
    for name in ("service_accounts", "not_service_accounts"):
        _accounts(getattr(source, name), to.at(name))
    for name in ("trust_domains", "not_trust_domains"):
        for index, domain in enumerate(getattr(source, name)):
            if "/" in domain:
                to.at(name, index).error("not a trust domain", repr(domain), "a name without /")
        _wildcards(getattr(source, name), to.at(name))
    named = any(getattr(source, prefix + name) for prefix in ("", "not_") for name in _NAMES)
    if (source.service_accounts or source.not_service_accounts) and named:
        name = "service_accounts" if source.service_accounts else "not_service_accounts"
        to.at(name).error("stands with principals or namespaces", "", "one of them")
    for name in _IDENTITY if custom else ():
        for spelling in (name, f"not_{name}"):
            if getattr(source, spelling):
                to.at(spelling).error("not with CUSTOM", "", "ipBlocks, remoteIpBlocks, to, or when")


def _accounts(given: tuple[str, ...], to: Report) -> None:
    if len(given) > 16:
        to.error("too many", len(given), "at most 16")
    for index, account in enumerate(given):
        parts = account.split("/")
        if account and ("*" in account or len(account) > 320 or len(parts) > 2 or not all(parts)):
            to.at(index).error("not a service account", repr(account), "name or namespace/name")


def _wildcards(given: tuple[str, ...], to: Report) -> None:
    for index, text in enumerate(given):
        if text.count("*") > 1 or "*" in text[1:-1]:
            to.at(index).error("a wildcard in the middle", repr(text), "one * at the beginning or the end")


def _operation(operation: Operation | None, to: Report) -> None:
    if operation is None or not operation.model_fields_set:
        to.error("an empty operation", "", "at least one field")
        return
    _values(operation, to)
    for name in ("ports", "not_ports"):
        for index, text in enumerate(getattr(operation, name)):
            if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= 65535):
                to.at(name, index).error("not a port", repr(text), "'1' to '65535'")
    for name in ("paths", "not_paths"):
        for index, path in enumerate(getattr(operation, name)):
            if "{" in path or "}" in path:
                _template(path, to.at(name, index))


def _template(path: str, to: Report) -> None:
    parts = path.split("/")
    if any(("{" in part or "}" in part) and part not in ("{*}", "{**}") for part in parts) or "*" in "".join(
        part for part in parts if part not in ("{*}", "{**}")
    ):
        to.error("not a path template", repr(path), "{*} or {**} as whole segments, without other *")
    elif parts.count("{**}") > 1 or ("{**}" in parts and "{*}" in parts[parts.index("{**}") :]):
        to.error("not a path template", repr(path), "{**} once, as the last operator")
    elif any(_LITERAL.fullmatch(part) is None for part in path.strip("/").split("/") if "{" not in part):
        to.error("not a path template", repr(path), "segments of what may stand in a path")


def _condition(condition: Condition, custom: bool, to: Report) -> None:
    key = condition.key
    if key not in KEYS and _INDEXED.fullmatch(key) is None:
        indexed = "request.headers[name], request.auth.claims[name]"
        to.at("key").error("unknown key", repr(key), ", ".join(KEYS) + ", " + indexed)
    elif custom and (key.startswith("request.auth.") or (key.startswith("source.") and key != "source.ip")):
        to.at("key").error("not with CUSTOM", repr(key), "keys that need no identity")
    if not (condition.values or condition.not_values):
        to.error("no values", "", "values or notValues")
    for name in ("values", "not_values"):
        given = getattr(condition, name)
        for index, value in enumerate(given):
            _value(value, to.at(name, index))
        if key in ("source.ip", "remote.ip", "destination.ip"):
            hosts.subnets(given, to.at(name))
        if key == "source.serviceAccount":
            _accounts(given, to.at(name))
        if key == "source.trustDomain":
            _wildcards(given, to.at(name))
        if key == "destination.port":
            for index, text in enumerate(given):
                if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= 65535):
                    to.at(name, index).error("not a port", repr(text), "'1' to '65535'")


def peer_authentication(spec: PeerAuthentication, to: Report) -> None:
    """The whole spec."""
    hosts.selecting(spec.selector, to.at("selector"))
    if spec.port_level_mtls and not (spec.selector and spec.selector.match_labels):
        to.at("port_level_mtls").error("no selector", "", "a selector with matchLabels")
    if "port_level_mtls" in spec.model_fields_set and not spec.port_level_mtls:
        to.at("port_level_mtls").error("an empty mapping", "", "at least one port, or leave it out")
    for number in spec.port_level_mtls:
        hosts.port(number, to.at("port_level_mtls", str(number)))
