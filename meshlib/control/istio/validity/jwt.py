"""RequestAuthentication, as Istio's webhook checks it."""

import json
from urllib.parse import urlsplit

import re2

from meshlib.control.istio.requestauthentication import JWTRule, RequestAuthentication
from meshlib.control.istio.validity import hosts, security
from meshlib.control.istio.validity.report import Report
from meshlib.control.keysets import has_usable_key

_STRICT = re2.compile(r"[-_A-Za-z0-9]+")


def request_authentication(spec: RequestAuthentication, to: Report) -> None:
    """The whole spec."""
    security.target(spec, to)
    for index, rule in enumerate(spec.jwt_rules):
        _jwt(rule, to.at("jwt_rules", index))


def _jwt(rule: JWTRule, to: Report) -> None:
    if not rule.issuer and not rule.jwks_uri:
        to.at("issuer").error("no issuer", "", "the iss of the tokens; or jwksUri, for those of any issuer")
    for index, audience in enumerate(rule.audiences):
        if not audience:
            to.at("audiences", index).error("an empty audience", "''", "the aud of the tokens")
    if rule.jwks and rule.jwks_uri:
        to.at("jwks").error("stands with jwksUri", "", "jwks or jwksUri")
    if rule.jwks_uri and not _is_uri(rule.jwks_uri):
        to.at("jwks_uri").error("not a URI", repr(rule.jwks_uri), "http://… or https://…")
    if rule.jwks:
        _keys(rule.jwks, to.at("jwks"))
    for index, header in enumerate(rule.from_headers):
        hosts.header_name(header.name, to.at("from_headers", index, "name"))
    for name in ("from_params", "from_cookies"):
        for index, text in enumerate(getattr(rule, name)):
            if not text:
                to.at(name, index).error("an empty name", "''", "a name")
    hosts.duration(rule.timeout, to.at("timeout"))
    _claims(rule, to)


def _keys(text: str, to: Report) -> None:
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError):
        keys = None
    if not isinstance(keys, dict) or not isinstance(keys.get("keys"), list):
        to.error("not a key set", "", 'JSON with "keys"')
    elif not has_usable_key(text):
        to.warn("no key that can be used: every token is refused", "", "a key of RSA, EC, …")
    elif any(isinstance(key, dict) and ("d" in key or key.get("kty") == "oct") for key in keys["keys"]):
        to.warn("holds a secret key: only public keys are needed", "", "public keys")


def _claims(rule: JWTRule, to: Report) -> None:
    for index, claim in enumerate(rule.output_claim_to_headers):
        at = to.at("output_claim_to_headers", index)
        if not claim.claim:
            at.at("claim").error("no claim", "", "the name of a claim")
        if _STRICT.fullmatch(claim.header) is None:
            at.at("header").error("not the name of a header", repr(claim.header), "letters, digits, - and _")


def _is_uri(text: str) -> bool:
    try:
        found = urlsplit(text)
        return found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:
        return False
