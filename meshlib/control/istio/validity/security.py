"""AuthorizationPolicy, PeerAuthentication and RequestAuthentication, as Istio's webhook checks them."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import re2
from pydantic import ValidationError

from meshlib.control.istio.authorizationpolicy import (
    Action,
    AuthorizationPolicy,
    Condition,
    Operation,
    Source,
)
from meshlib.control.istio.extensionprovider import ExtAuthzHttp, ext_authz
from meshlib.control.istio.peerauthentication import PeerAuthentication
from meshlib.control.istio.requestauthentication import JWTRule, RequestAuthentication
from meshlib.control.istio.telemetry import Telemetry
from meshlib.control.istio.validity import hosts
from meshlib.control.istio.validity.report import Report
from meshlib.control.keysets import has_usable_key

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
STATUSES = frozenset(str(status.value) for status in HTTPStatus if status.value >= 200) - {
    "418",
    "425",
    "451",
}
"""Those that Envoy knows."""
_INDEXED = re2.compile(
    r"(request\.headers\[[^\[\]]+\]|request\.auth\.claims(\[[^\[\]]+\])+|experimental\.envoy\.filters\.[^\[\]]+\[.+\])"
)
_IDENTITY = ("principals", "request_principals", "namespaces", "service_accounts", "trust_domains")


def target(spec: AuthorizationPolicy | RequestAuthentication | Telemetry, to: Report) -> None:
    """Which workloads a policy is for."""
    if sum(map(bool, (spec.selector, spec.target_ref, spec.target_refs))) > 1:
        to.error("more than one of a choice is set", "", "one of selector, targetRef, targetRefs")
    if spec.selector:
        hosts.selector(spec.selector.match_labels, to.at("selector", "match_labels"))
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
        accounts = getattr(source, name)
        if len(accounts) > 16:
            to.at(name).error("too many", len(accounts), "at most 16")
        for index, account in enumerate(accounts):
            if "*" in account or account.count("/") > 1:
                to.at(name, index).error("not a service account", repr(account), "name or namespace/name")
    if source.service_accounts and (source.principals or source.namespaces):
        to.at("service_accounts").error("stands with principals or namespaces", "", "one of them")
    for name in _IDENTITY if custom else ():
        for spelling in (name, f"not_{name}"):
            if getattr(source, spelling):
                to.at(spelling).error("not with CUSTOM", "", "ipBlocks, remoteIpBlocks, to, or when")


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
            if len(value) > MAX_VALUE:
                _value(value, to.at(name, index))
        if key in ("source.ip", "remote.ip", "destination.ip"):
            hosts.subnets(given, to.at(name))
        if key == "destination.port":
            for index, text in enumerate(given):
                if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= 65535):
                    to.at(name, index).error("not a port", repr(text), "'1' to '65535'")


def peer_authentication(spec: PeerAuthentication, to: Report) -> None:
    """The whole spec."""
    if spec.selector:
        hosts.selector(spec.selector.match_labels, to.at("selector", "match_labels"))
    if spec.port_level_mtls and not (spec.selector and spec.selector.match_labels):
        to.at("port_level_mtls").error("no selector", "", "a selector with matchLabels")
    if "port_level_mtls" in spec.model_fields_set and not spec.port_level_mtls:
        to.at("port_level_mtls").error("an empty mapping", "", "at least one port, or leave it out")
    for number in spec.port_level_mtls:
        hosts.port(number, to.at("port_level_mtls", str(number)))


def request_authentication(spec: RequestAuthentication, to: Report) -> None:
    """The whole spec."""
    target(spec, to)
    for index, rule in enumerate(spec.jwt_rules):
        _jwt(rule, to.at("jwt_rules", index))


def _jwt(rule: JWTRule, to: Report) -> None:
    if not rule.issuer:
        to.at("issuer").error("no issuer", "", "the iss of the tokens")
    for index, audience in enumerate(rule.audiences):
        if not audience:
            to.at("audiences", index).error("an empty audience", "''", "the aud of the tokens")
    if rule.jwks and rule.jwks_uri:
        to.at("jwks").error("stands with jwksUri", "", "jwks or jwksUri")
    if rule.jwks_uri and not rule.jwks_uri.startswith(("http://", "https://")):
        to.at("jwks_uri").error("not a URI", repr(rule.jwks_uri), "http://… or https://…")
    if rule.jwks:
        try:
            keys = json.loads(rule.jwks)
        except (ValueError, RecursionError):
            keys = None
        if not isinstance(keys, dict) or not isinstance(keys.get("keys"), list):
            to.at("jwks").error("not a key set", "", 'JSON with "keys"')
        elif not has_usable_key(rule.jwks):
            to.at("jwks").warn("no key that can be used: every token is refused", "", "a key of RSA, EC, …")
    for index, header in enumerate(rule.from_headers):
        hosts.header_name(header.name, to.at("from_headers", index, "name"))
    for name in ("from_params", "from_cookies"):
        for index, text in enumerate(getattr(rule, name)):
            if not text:
                to.at(name, index).error("an empty name", "''", "a name")
    hosts.duration(rule.timeout, to.at("timeout"))
    _claims(rule, to)


def _claims(rule: JWTRule, to: Report) -> None:
    for index, claim in enumerate(rule.output_claim_to_headers):
        at = to.at("output_claim_to_headers", index)
        if not claim.claim:
            at.at("claim").error("no claim", "", "the name of a claim")
        hosts.header_name(claim.header, at.at("header"))


def provider(given: Mapping[str, Any], to: Report) -> None:
    """One of MeshConfig.extensionProviders, as far as it decides on requests."""
    try:
        found = ext_authz(given)
    except ValidationError as error:
        first = error.errors()[0]
        to.error(f"not an authorizer: {first['msg']}", ".".join(map(str, first["loc"])), "see Istio's fields")
        return
    if found is None:
        return
    if not found.service or found.service.count("/") > 1:
        to.error("not a service", repr(found.service), "host, or namespace/host")
    if not 1 <= found.port <= 65535:
        to.error("not a port", found.port, "1 to 65535")
    hosts.duration(found.timeout, to)
    if found.status_on_error and found.status_on_error not in STATUSES:
        to.error("not a status", repr(found.status_on_error), "'403', '500', '503', …")
    body = found.include_request_body_in_check
    if body is not None and not body.max_request_bytes:
        to.error("no size of the body", body.max_request_bytes, "maxRequestBytes of at least 1")
    if isinstance(found, ExtAuthzHttp):
        _asked_over_http(found, to)


def _asked_over_http(found: ExtAuthzHttp, to: Report) -> None:
    if found.path_prefix and not found.path_prefix.startswith("/"):
        to.error("not the beginning of a path", repr(found.path_prefix), "/…")
    for name in (
        "include_headers_in_check",
        "include_request_headers_in_check",
        "headers_to_upstream_on_allow",
        "headers_to_downstream_on_deny",
        "headers_to_downstream_on_allow",
    ):
        for value in getattr(found, name):
            if value in ("", "*"):
                to.error("not the name of a header", repr(value), "a name, or one that begins or ends with *")
