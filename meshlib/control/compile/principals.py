"""Who may ask, as clauses: identities of workloads, claims of tokens, addresses, and headers.

Rules (Istio):

- A principal of the mesh's trust domain, of one of its aliases, or of `cluster.local`, is one of each of
  them; one of any other domain, and `*`, stands as it is.
- A request principal is `<issuer>/<subject>`, divided at the last slash.
- A service account without a namespace is of the policy's.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from meshlib.control.compile import matchers
from meshlib.control.compile.clauses import PRINCIPAL, Clause, Needs
from meshlib.control.compile.mtls import trust_domains
from meshlib.control.istio.authorizationpolicy import Rule, Source
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.identity.spiffe import SCHEME
from meshlib.xds import pb

JWT = "envoy.filters.http.jwt_authn"
PAYLOAD = "payload"
"""Where in its metadata the filter of tokens puts their claims."""
_ANY_DOMAIN = "cluster.local"
"""Stands for the mesh's own trust domain, whatever it is."""


def sources(rule: Rule, document: AnyDocument, mesh: MeshConfig) -> list[list[Clause]]:
    """One list of clauses for each `from`; who asks matches one list whole."""
    when: list[Clause] = []
    for condition in rule.when:
        key = condition.key
        match, needs = _principal(key, document.namespace)
        if match is not None:
            expand = _EXPANDED.get(key, _as_it_is)
            values, but = expand(condition.values, mesh), expand(condition.not_values, mesh)
            when.append(Clause(key, values, but, match, needs))
    listed = [origin.source for origin in rule.from_]
    return [[*_source(one, document, mesh), *when] for one in listed] or [when]


_FIELDS = (
    ("principals", "not_principals", "source.principal"),
    ("request_principals", "not_request_principals", "request.auth.principal"),
    ("service_accounts", "not_service_accounts", "source.serviceAccount"),
    ("namespaces", "not_namespaces", "source.namespace"),
    ("trust_domains", "not_trust_domains", "source.trustDomain"),
    ("remote_ip_blocks", "not_remote_ip_blocks", "remote.ip"),
    ("ip_blocks", "not_ip_blocks", "source.ip"),
)
"""A source's fields, and the keys of conditions that say the same."""


def _source(one: Source | None, document: AnyDocument, mesh: MeshConfig) -> Iterator[Clause]:
    for field, negated, key in _FIELDS if one is not None else ():
        match, needs = _principal(key, document.namespace)
        expand = _EXPANDED.get(key, _as_it_is)
        values, but = expand(getattr(one, field), mesh), expand(getattr(one, negated), mesh)
        if match is not None:
            yield Clause(field.replace("_", ""), values, but, match, needs)


def _principal(key: str, namespace: str) -> tuple[Callable[[tuple[str, ...]], Any] | None, Needs]:
    """What matches the values of a key of conditions on who asks, and what it needs."""
    plain: Mapping[str, Callable[[str], dict[str, Any]]] = {
        "source.ip": lambda v: {"direct_remote_ip": matchers.network(v)},
        "remote.ip": lambda v: {"remote_ip": matchers.network(v)},
        "source.namespace": lambda v: _authenticated(matchers.pattern(_in_namespace(v))),
        "source.serviceAccount": lambda v: _authenticated(matchers.pattern(_account(v, namespace))),
        "source.principal": lambda v: _authenticated(matchers.text(v, SCHEME)),
        "source.trustDomain": lambda v: _authenticated(_of_domain(v)),
    }
    if key in plain:
        return PRINCIPAL.each(plain[key]), Needs.CONNECTION
    if key.startswith("request.headers["):
        name = key.removeprefix("request.headers[").removesuffix("]")
        unknown = name.lower() == ":scheme" or name.lower().startswith("grpc-")
        match = PRINCIPAL.each(lambda v: {"header": matchers.header(name, v)})
        return match, Needs.ENVOY_REQUEST if unknown else Needs.REQUEST
    if key == "request.auth.principal":
        return _request_principals, Needs.TOKEN
    claims: tuple[str, ...] | None = {
        "request.auth.audiences": ("aud",),
        "request.auth.presenter": ("azp",),
    }.get(key)
    if key.startswith("request.auth.claims["):
        claims = tuple(key.removeprefix("request.auth.claims[").removesuffix("]").split("]["))
    if claims is None:
        return None, Needs.CONNECTION
    found = claims
    return lambda values: _claim(found, _values(values)), Needs.TOKEN


def _authenticated(name: Any) -> dict[str, Any]:
    return {"authenticated": {"principal_name": name}}


def _in_namespace(value: str) -> str:
    """Every * stands for anything, wherever it is."""
    return f".*/ns/{'.*'.join(map(matchers.literal, value.split('*')))}/.*"


def _account(value: str, namespace: str) -> str:
    place, slash, name = value.rpartition("/")
    return (
        f"{SCHEME}.+/ns/{matchers.literal(place if slash else namespace)}/(.+/|)"
        f"sa/{matchers.literal(name)}(/.+)?"
    )


def _of_domain(value: str) -> Any:
    if "*" not in value:
        return pb.StringMatcher(prefix=f"{SCHEME}{value}/")
    if value == "*":
        return matchers.pattern(f"{SCHEME}[^/]+/.*")
    start, end = ("[^/]*", value[1:]) if value.startswith("*") else ("", value)
    tail = "[^/]*" if not start and end.endswith("*") else ""
    return matchers.pattern(f"{SCHEME}{start}{matchers.literal(end[:-1] if tail else end)}{tail}/.*")


def _values(values: tuple[str, ...]) -> Any:
    return matchers.any_of([matchers.value_of(matchers.text(value)) for value in values])


def _claim(path: tuple[str, ...], value: Any) -> Any:
    """A Principal of a claim, which may be a list."""
    matcher = matchers.metadata(JWT, (PAYLOAD, *path), matchers.alone_or_in(value))
    return pb.message(PRINCIPAL.name)(metadata=matcher)


def _request_principals(values: tuple[str, ...]) -> Any:
    """Issuer and subject, joined by the last slash of a value."""
    found = []
    for value in values:
        both = (
            pb.message(PRINCIPAL.name)(
                metadata=matchers.metadata(JWT, (PAYLOAD, claim), matchers.value_of(matcher))
            )
            for claim, matcher in zip(("iss", "sub"), _issuer_and_subject(value), strict=True)
        )
        found.append(PRINCIPAL.all(both))
    return found[0] if len(found) == 1 else PRINCIPAL.any(found)


def _issuer_and_subject(value: str) -> tuple[Any, Any]:
    anything = matchers.pattern(matchers.ANYTHING)
    issuer, slash, subject = value.rpartition("/")
    if value == "*":
        return anything, anything
    if value.startswith("*"):
        return (matchers.text(issuer), _exactly(subject)) if slash else (anything, matchers.text(value))
    if value.endswith("*"):
        if not slash:
            return matchers.text(value), anything
        return _exactly(issuer), anything if subject == "*" else pb.StringMatcher(prefix=subject[:-1])
    return (_exactly(issuer), _exactly(subject)) if slash else (_exactly(value), _exactly(""))


def _exactly(value: str) -> Any:
    return pb.StringMatcher(exact=value)


# Trust domains


def _as_it_is(values: tuple[str, ...], mesh: MeshConfig) -> tuple[str, ...]:
    return values


def _principals(values: tuple[str, ...], mesh: MeshConfig) -> tuple[str, ...]:
    """A principal of one of the mesh's trust domains is one of each of them."""
    domains = trust_domains(mesh)
    found: dict[str, None] = {}
    for value in values:
        domain, _, rest = value.partition("/")
        known = domain == _ANY_DOMAIN or any(_covers(domain, one) for one in domains)
        if value.count("/") != 4 or domain == "*" or not known:
            found[value] = None
            continue
        for one in domains:
            found[value if _covers(domain, one) else f"{one}/{rest}"] = None
    return tuple(found)


def _covers(pattern: str, domain: str) -> bool:
    return domain.endswith(pattern[1:]) if pattern.startswith("*") else domain == pattern


def _domains(values: tuple[str, ...], mesh: MeshConfig) -> tuple[str, ...]:
    domains = trust_domains(mesh)
    return tuple(
        dict.fromkeys(one for value in values for one in (domains if value in domains else (value,)))
    )


_EXPANDED: Mapping[str, Callable[[tuple[str, ...], MeshConfig], tuple[str, ...]]] = {
    "source.principal": _principals,
    "source.trustDomain": _domains,
}
