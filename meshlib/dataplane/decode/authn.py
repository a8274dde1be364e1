"""Envoy's JwtAuthentication as core's filter. Keys must stand in the configuration (Istio's default).

Refused is what would have to be fetched, or what this library does not look at: a requirement is never
weakened.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from meshlib.core.authn.provider import LEEWAY, HeaderPlace, Provider, allowed_audiences
from meshlib.core.authn.requirement import AllOf, AnyOf, By, JwtAuthn, Requirement, Without
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.match import decode_match
from meshlib.dataplane.jwt import KeySet

MAX_DEPTH = 32
MAX_PROVIDERS = 1000
_UNSUPPORTED = ("remote_jwks", "subjects", "max_lifetime", "failed_status_in_metadata")


def decode_jwt(name: str, message: Any) -> JwtAuthn:
    """An envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication."""
    if message.HasField("filter_state_rules"):
        raise Refused("filter_state_rules", "is not supported")
    if len(message.providers) > MAX_PROVIDERS:
        raise Refused("providers", f"are more than {MAX_PROVIDERS}")
    providers: dict[str, Provider] = {}
    for key in sorted(message.providers):
        try:
            providers[key] = _provider(key, message.providers[key])
        except Refused as refused:
            raise refused.within(f"providers[{key}]") from None
    rules = decode_each(
        message.rules, "rules", lambda rule: (decode_match(rule.match), _required(rule, message, providers))
    )
    return JwtAuthn(
        name,
        tuple(rules),
        tuple(providers.values()),
        bypass_preflight=message.bypass_cors_preflight,
        silent=message.strip_failure_response,
    )


def _provider(name: str, message: Any) -> Provider:
    for field, _ in message.ListFields():
        if field.name in _UNSUPPORTED:
            raise Refused(field.name, "is not supported")
    if message.require_expiration:
        raise Refused("require_expiration", "is not supported")
    if message.local_jwks.WhichOneof("specifier") != "inline_string":
        raise Refused("local_jwks.inline_string", "is not set")
    headers = tuple(HeaderPlace(one.name.lower().encode(), one.value_prefix) for one in message.from_headers)
    params, cookies = tuple(message.from_params), tuple(message.from_cookies)
    if not headers and not params and not cookies:
        headers, params = (HeaderPlace(b"authorization", "Bearer "),), ("access_token",)
    claims = tuple((one.header_name.lower().encode(), one.claim_name) for one in message.claim_to_headers)
    return Provider(
        name,
        KeySet(message.local_jwks.inline_string),
        issuer=message.issuer,
        audiences=allowed_audiences(message.audiences),
        headers=headers,
        params=params,
        cookies=cookies,
        leeway=message.clock_skew_seconds or LEEWAY,
        forward=message.forward,
        payload_header=message.forward_payload_header.lower().encode(),
        pad_payload=message.pad_forward_payload_header,
        payload_key=message.payload_in_metadata,
        header_key=message.header_in_metadata,
        split_claims=tuple(message.normalize_payload_in_metadata.space_delimited_claims),
        claim_headers=claims,
    )


def _required(rule: Any, message: Any, providers: Mapping[str, Provider]) -> Requirement | None:
    which = rule.WhichOneof("requirement_type")
    if which == "requires":
        return _requirement(rule.requires, providers, 0)
    if which is None:
        return None
    if rule.requirement_name not in message.requirement_map:
        raise Refused(which, f"{rule.requirement_name!r} is not in requirement_map")
    return _requirement(message.requirement_map[rule.requirement_name], providers, 0)


def _requirement(message: Any, providers: Mapping[str, Provider], depth: int) -> Requirement:
    if depth > MAX_DEPTH:
        raise Refused("requires", f"is nested more than {MAX_DEPTH} deep")
    match message.WhichOneof("requires_type"):
        case "provider_name":
            return By(_known(message.provider_name, providers))
        case "provider_and_audiences":
            found = message.provider_and_audiences
            return By(_known(found.provider_name, providers), allowed_audiences(found.audiences))
        case "requires_all":
            return AllOf(
                tuple(_requirement(one, providers, depth + 1) for one in message.requires_all.requirements)
            )
        case "requires_any":
            return _any(message.requires_any.requirements, providers, depth)
        case "allow_missing":
            return Without(tuple(providers.values()))
        case "allow_missing_or_failed":
            return Without(tuple(providers.values()), failed=True)
    raise Refused("requires", "is not set")


def _any(messages: Sequence[Any], providers: Mapping[str, Provider], depth: int) -> Requirement:
    """Alternatives; what does without a token comes last and looks where the others beside it do."""
    made = [_requirement(one, providers, depth + 1) for one in messages]
    bypasses = [one for one in made if isinstance(one, Without)]
    needs: list[Requirement] = [one for one in made if not isinstance(one, Without)]
    if bypasses:
        beside = tuple(one.provider for one in made if isinstance(one, By)) or tuple(providers.values())
        needs.append(Without(beside, any(one.failed for one in bypasses)))
    return AnyOf(tuple(needs))


def _known(name: str, providers: Mapping[str, Provider]) -> Provider:
    if name not in providers:
        raise Refused("provider_name", f"{name!r} is no provider")
    return providers[name]
