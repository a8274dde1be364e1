"""RequestAuthentication to Envoy's jwt_authn: which tokens are checked, and what becomes of them.

Rules (Istio):

- A request without a token passes, one with a token that is not valid is refused. With several rules one
  valid token is enough if they look for it at the same place.
- Rules of all documents add up, ordered by issuer.
- Keys stand in the configuration. Without any that can be used, as long as they could not be fetched, every
  token is refused: the key set is then a key that nobody has.
- gRPC's servers check no tokens: what carries one where a rule looks for it is refused.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meshlib.control.compile import matchers
from meshlib.control.compile.authz import RBAC, rules
from meshlib.control.compile.clauses import PERMISSION, PRINCIPAL
from meshlib.control.compile.principals import JWT, PAYLOAD
from meshlib.control.graph.policies import KeySource
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.requestauthentication import JWTRule
from meshlib.control.keysets import has_usable_key
from meshlib.xds import pb

NOBODYS_KEY = (
    '{"keys":[{"alg":"ES256","crv":"P-256","kid":"nobody","kty":"EC",'
    '"x":"PY0RLjOenEMU-1HidMbYymdGRH6bLvS5hq9mBQ7kC9A","y":"ACZWpj3iqPbaUzPyxPU0flA4z49_DNWR18XmL-1i_kc"}]}'
)
"""The point of P-256 whose x is SHA-256 of `meshlib: nobody has this key 0`: its private key is unknown."""
SPACED = ("permission", "scope")
"""Claims that are lists, divided by spaces."""
_PROVIDER = "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider"
_REQUIREMENT = "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement"


def rules_by_issuer(documents: Iterable[AnyDocument]) -> list[tuple[AnyDocument, int, JWTRule]]:
    """Every rule with its document and its place in it; the first is `origins-0`."""
    found = [
        (document, number, rule)
        for document in documents
        for number, rule in enumerate(document.spec.jwt_rules)
    ]
    return sorted(found, key=lambda entry: entry[2].issuer)


def jwt_filter(
    documents: Iterable[AnyDocument], keys: Mapping[KeySource, str], *, edge: bool = False
) -> tuple[str, Any] | None:
    """Name and configuration of the filter that checks tokens; None: no rule holds.

    `edge`: routes look at claims, so the route is sought again when they are known.
    """
    found = [rule for _, _, rule in rules_by_issuer(documents)]
    if not found:
        return None
    made = pb.JwtAuthentication(bypass_cors_preflight=True)
    requirement = pb.message(_REQUIREMENT)
    names = [f"origins-{number}" for number in range(len(found))]
    for name, rule in zip(names, found, strict=True):
        made.providers[name].CopyFrom(_provider(rule, keys))
        made.providers[name].clear_route_cache = edge
    alone = [requirement(provider_name=name) for name in names]
    or_none = []
    for one in alone:
        either = requirement()
        either.requires_any.requirements.extend((one, requirement(allow_missing={})))
        or_none.append(either)
    whole = made.rules.add()
    whole.match.prefix = "/"
    if len(found) == 1:
        whole.requires.CopyFrom(or_none[0])
        return JWT, made
    each = requirement()
    each.requires_all.requirements.extend(or_none)
    whole.requires.requires_any.requirements.extend((*alone, each))
    return JWT, made


def _provider(rule: JWTRule, keys: Mapping[KeySource, str]) -> Any:
    made = pb.message(_PROVIDER)(
        issuer=rule.issuer,
        audiences=rule.audiences,
        forward=rule.forward_original_token,
        forward_payload_header=rule.output_payload_to_header,
        payload_in_metadata=PAYLOAD,
        from_params=rule.from_params,
        from_cookies=rule.from_cookies,
    )
    claims = sorted({*SPACED, *rule.space_delimited_claims})
    made.normalize_payload_in_metadata.space_delimited_claims.extend(claims)
    for place in rule.from_headers:
        made.from_headers.add(name=place.name, value_prefix=place.prefix)
    for claim in rule.output_claim_to_headers:
        made.claim_to_headers.add(header_name=claim.header, claim_name=claim.claim)
    source = KeySource.of(rule)
    found = rule.jwks if source is None else keys.get(source, "")
    made.local_jwks.inline_string = found if has_usable_key(found) else NOBODYS_KEY
    return made


def refuse_tokens(documents: Iterable[AnyDocument]) -> tuple[str, Any] | None:
    """For gRPC's servers: name and configuration of a filter that denies what carries a token."""
    policies: dict[str, Any] = {}
    for document, number, rule in rules_by_issuer(documents):
        policy = pb.message("envoy.config.rbac.v3.Policy")()
        policy.permissions.append(PERMISSION.always())
        policy.principals.extend(_carrying(rule))
        name = f"ns[{document.namespace}]-policy[{document.name}]-rule[{number}]-gRPC-cannot-check-tokens"
        policies[name] = policy
    if not policies:
        return None
    return f"{RBAC}.jwt", pb.RBAC(rules=rules("DENY", policies))


def _carrying(rule: JWTRule) -> list[Any]:
    """What carries a token at one of a rule's places; parameters of the path too."""
    headers = [(place.name, place.prefix) for place in rule.from_headers]
    headers += [("cookie", f"{name}=") for name in rule.from_cookies]
    parameters = list(rule.from_params)
    if not headers and not parameters:
        headers, parameters = [("authorization", "Bearer ")], ["access_token"]
    found = [_header(name, part) for name, part in headers]
    for name in parameters:
        query = matchers.pattern(rf".*[?&]{matchers.literal(name)}=.*")
        found.append(pb.HeaderMatcher(name=":path", string_match=query))
    return [pb.message(PRINCIPAL.name)(header=header) for header in found]


def _header(name: str, part: str) -> Any:
    if not part:
        return pb.HeaderMatcher(name=name, present_match=True)
    return pb.HeaderMatcher(name=name, string_match=pb.StringMatcher(contains=part))
