"""Who is the end user: which tokens a request carries, which of them are asked for, and what they change.

Rules (Envoy's jwt_authn filter):

- The first rule whose match takes the request says what is required; without one nothing is.
- A provider says where its tokens may stand. All tokens found there must be good, the last place first:
  one bad token is enough to refuse, whatever the others are.
- `AnyOf`: the first alternative that is met is enough. What does without a token comes last, and looks at the
  places of the providers beside it; a token that is there must still be good, and one of theirs. Of several
  faults the last that says more than "missing" or "not configured" is told.
- A token is looked at in this order: form, issuer, times, audience, keys.
- What a good token says goes to the metadata and, if asked for, to headers; what a client put into those
  headers itself is removed before anything else. The token is removed from its header or parameter, unless
  the provider forwards it.
"""

import base64
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote_plus

from meshlib.core.authz.question import Question
from meshlib.core.request import Header, RequestHead
from meshlib.core.route.match import RouteMatch
from meshlib.core.token import Fault, Token, read

T = TypeVar("T")
SPACE = "envoy.filters.http.jwt_authn"
"""Where in the metadata the claims are."""
PAYLOAD = "payload"
"""Under which key Istio has them put there."""
_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_VAGUE = (None, Fault.MISSING, Fault.ISSUER)
_MOST_PATH = 256
"""Characters of a path that a challenge says."""
LEEWAY = 60
"""Seconds that clocks may differ by."""


class Keys(Protocol):
    """What verifies tokens of one provider."""

    def kept(self, text: str) -> Token | None:
        """A token that was verified before."""
        ...

    def verify(self, token: Token) -> Fault | None:
        """Whether a key of the provider signed the token; None: one did."""
        ...

    def keep(self, token: Token) -> None:
        """Remembers a token that is good."""
        ...


@dataclass(frozen=True, slots=True)
class HeaderPlace:
    """A header, in lower case, and what stands before the token in it."""

    name: bytes
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """One issuer of tokens."""

    name: str
    keys: Keys = field(compare=False, repr=False)
    issuer: str = ""
    """Empty: any."""
    audiences: frozenset[str] = frozenset()
    """Empty: any."""
    headers: tuple[HeaderPlace, ...] = (HeaderPlace(b"authorization", "Bearer "),)
    params: tuple[str, ...] = ("access_token",)
    cookies: tuple[str, ...] = ()
    leeway: int = LEEWAY
    forward: bool = False
    payload_header: bytes = b""
    pad_payload: bool = False
    payload_key: str = ""
    """Where in the metadata the claims go; empty: nowhere."""
    header_key: str = ""
    split_claims: tuple[str, ...] = ()
    """Claims whose text is a list, with spaces between."""
    claim_headers: tuple[tuple[bytes, str], ...] = ()
    """Header in lower case, and the claim (`a.b` for one inside of another) that it gets."""


@dataclass(frozen=True, slots=True)
class By:
    """A token of that provider; `audiences` empty: the provider's own."""

    provider: Provider
    audiences: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Without:
    """No token is needed; one that is there must be good, unless `failed` is let through, too."""

    providers: tuple[Provider, ...]
    """In whose places is looked."""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of them."""

    of: "tuple[Requirement, ...]"


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of them."""

    of: "tuple[Requirement, ...]"


Requirement = By | Without | AnyOf | AllOf


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request without the token that it needs."""

    fault: Fault
    headers: tuple[Header, ...]
    body: bytes

    @property
    def detail(self) -> str:
        """Envoy's words for it."""
        return f"jwt_authn_access_denied{{{'_'.join(self.fault.value.split())}}}"


@dataclass(frozen=True, slots=True)
class JwtAuthn:
    """One filter."""

    name: str
    rules: tuple[tuple[RouteMatch, Requirement | None], ...]
    providers: tuple[Provider, ...] = ()
    bypass_preflight: bool = False
    silent: bool = False
    """Whether answers say nothing of what was wrong."""
    own_headers: frozenset[bytes] = field(init=False)
    """Those that only this filter may set."""

    def __post_init__(self) -> None:
        own = {name for p in self.providers for name in (p.payload_header, *(n for n, _ in p.claim_headers))}
        object.__setattr__(self, "own_headers", frozenset(own - {b""}))

    def judge(self, question: Question, now: float) -> Refusal | None:
        """None: the request passes; what its tokens say is in `question`. `now`: seconds since 1970."""
        head = question.head
        if self.bypass_preflight and _is_preflight(head):
            return None
        required = next((needs for match, needs in self.rules if match.matches(head)), None)
        if required is None:
            return None
        uri = f"{head.scheme}://{head.authority}{head.path[:_MOST_PATH]}"
        if self.own_headers:
            question.head = without(head, self.own_headers)
        fault = _Check(self, question, now).met(required)
        if fault is None:
            return None
        said = f'Bearer realm="{uri}"'
        if fault is not Fault.MISSING:
            said += ', error="invalid_token"'
        if self.silent:
            return Refusal(fault, (), b"")
        challenge = (b"www-authenticate", said.encode("latin-1", "replace"))
        return Refusal(fault, (challenge, (b"content-type", b"text/plain")), fault.value.encode())

    def by_issuer(self, issuer: str) -> Provider | None:
        """The first provider of that issuer, or the one of any."""
        anybody = None
        for provider in self.providers:
            if provider.issuer == issuer and issuer:
                return provider
            anybody = anybody or (None if provider.issuer else provider)
        return anybody


@dataclass(frozen=True, slots=True)
class _Found:
    """A token's text, whose it may be, and how it is taken out of the request."""

    text: str
    issuers: frozenset[str]
    remove: Callable[[RequestHead], RequestHead]

    def may_be_of(self, issuer: str) -> bool:
        return "" in self.issuers or issuer in self.issuers


class _Check:
    """One request and its requirement."""

    __slots__ = ("filter", "now", "question")

    def __init__(self, filter_: JwtAuthn, question: Question, now: float) -> None:
        self.filter, self.question, self.now = filter_, question, now

    def met(self, needs: Requirement) -> Fault | None:
        """None: the requirement is met."""
        match needs:
            case By(provider, audiences):
                return self._good((provider,), provider, audiences)
            case Without(providers, failed):
                fault = self._good(providers, None, frozenset())
                return None if failed or fault is Fault.MISSING else fault
            case AllOf(of):
                return next((fault for one in of if (fault := self.met(one)) is not None), None)
            case AnyOf(of):
                told: Fault | None = None
                for one in of:
                    fault = self.met(one)
                    if fault is None:
                        return None
                    if told in _VAGUE or fault not in _VAGUE:
                        told = fault
                return told

    def _good(
        self, places: Sequence[Provider], provider: Provider | None, audiences: frozenset[str]
    ) -> Fault | None:
        """Whether all tokens in these places are good; `provider` None: that of the token's issuer."""
        found = list(_find(self.question.head, places))
        if not found:
            return Fault.MISSING
        for one in reversed(found):
            fault = self._take(one, provider, audiences)
            if fault is not None:
                return fault
        return None

    def _take(self, found: _Found, provider: Provider | None, audiences: frozenset[str]) -> Fault | None:
        token = provider.keys.kept(found.text) if provider else None
        known = token is not None
        if token is None:
            read_ = read(found.text)
            if isinstance(read_, Fault):
                return read_
            token = read_
        if not found.may_be_of(token.issuer):
            return Fault.ISSUER
        provider = provider or self.filter.by_issuer(token.issuer)
        if provider is None:
            return Fault.ISSUER
        fault = token.untimely(self.now, provider.leeway)
        if fault is not None:
            return fault
        allowed = audiences or provider.audiences
        if allowed and allowed.isdisjoint(map(_trimmed, token.audiences)):
            return Fault.AUDIENCE
        if not known:
            fault = provider.keys.verify(token)
            if fault is not None:
                return fault
            provider.keys.keep(token)
        self._apply(found, token, provider)
        return None

    def _apply(self, found: _Found, token: Token, provider: Provider) -> None:
        question = self.question
        if not provider.forward:
            question.head = found.remove(question.head)
        added: list[Header] = []
        if provider.payload_header:
            payload = token.payload + "=" * (-len(token.payload) % 4 if provider.pad_payload else 0)
            added.append((provider.payload_header, payload.encode()))
        for name, claim in provider.claim_headers:
            value = _claim_text(token.claims, claim)
            if value is not None:
                added.append((name, value))
        if added:
            head = question.head
            question.head = RequestHead(
                head.method, head.scheme, head.authority, head.path, [*head.headers, *added]
            )
        left = question.metadata.setdefault(SPACE, {})
        if provider.payload_key:
            left[provider.payload_key] = _split(token.claims, provider.split_claims)
        if provider.header_key:
            left[provider.header_key] = token.header


def without(head: RequestHead, names: frozenset[bytes]) -> RequestHead:
    """The request without headers of these names, nor of names that some servers take for them.

    WSGI and CGI make no difference between `x-user` and `x_user`.
    """
    kept = [header for header in head.headers if header[0].lower().replace(b"_", b"-") not in names]
    if len(kept) == len(head.headers):
        return head
    return RequestHead(head.method, head.scheme, head.authority, head.path, kept)


# Where tokens are


def _find(head: RequestHead, providers: Sequence[Provider]) -> Iterator[_Found]:
    """Every token of the providers' places: headers, parameters, cookies, each kind ordered by its names."""
    places = [(f"{at.name.decode()}{at.prefix}", at, one) for one in providers for at in one.headers]
    for (_, place), issuers in _grouped((name, at, one.issuer) for name, at, one in places):
        value = head.header(place.name)
        text = None if value is None else _after(value.decode("latin-1"), place.prefix)
        if text is not None:
            yield _Found(text, issuers, functools.partial(_without_header, place.name))
    if "?" in head.path:
        given = _parameters(head.path)
        for (name, _), issuers in _grouped((n, n, one.issuer) for one in providers for n in one.params):
            if name in given:
                yield _Found(given[name], issuers, functools.partial(_without_param, name))
    if b"cookie" in head.index:
        baked = _cookies(head)
        for (name, _), issuers in _grouped((n, n, one.issuer) for one in providers for n in one.cookies):
            if name in baked:
                yield _Found(baked[name], issuers, _untouched)


def _grouped(places: Iterable[tuple[str, T, str]]) -> list[tuple[tuple[str, T], frozenset[str]]]:
    """Each place once, in the order of its name, with the issuers whose tokens may stand there."""
    found: dict[tuple[str, T], set[str]] = {}
    for name, place, issuer in places:
        found.setdefault((name, place), set()).add(issuer)
    return [(key, frozenset(found[key])) for key in sorted(found, key=lambda key: key[0])]


def _after(value: str, prefix: str) -> str | None:
    """The token in a header: all that follows the prefix, wherever that is; None: it is not there.

    What can't begin a token is skipped (Envoy); what can't stand in one makes it a bad one.
    """
    if not prefix:
        return value
    at = value.find(prefix)
    if at < 0:
        return None
    begin = at + len(prefix)
    while begin < len(value) and value[begin] not in _TOKEN:
        begin += 1
    return value[begin:] or value


def _parameters(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in path.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        found.setdefault(unquote_plus(name), unquote_plus(value))
    return found


def _untouched(head: RequestHead) -> RequestHead:
    return head  # Envoy leaves cookies as they are


def _without_header(name: bytes, head: RequestHead) -> RequestHead:
    return without(head, frozenset((name,)))


def _without_param(name: str, head: RequestHead) -> RequestHead:
    bare, _, query = head.path.partition("?")
    kept = [part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != name]
    path = f"{bare}?{'&'.join(kept)}" if kept else bare
    return RequestHead(head.method, head.scheme, head.authority, path, head.headers)


def _cookies(head: RequestHead) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in head.headers:
        if name.lower() == b"cookie":
            for part in value.decode("latin-1").split(";"):
                key, equals, text = part.strip().partition("=")
                if equals:
                    found.setdefault(key, text.strip('"') if text[:1] == text[-1:] == '"' else text)
    return found


# What tokens say


def _trimmed(audience: str) -> str:
    """An audience without its scheme and its last slash: Envoy compares them so."""
    for scheme in ("https://", "http://"):
        audience = audience.removeprefix(scheme)
    return audience.removesuffix("/")


def allowed_audiences(audiences: Sequence[str]) -> frozenset[str]:
    """Audiences as they are compared."""
    return frozenset(map(_trimmed, audiences))


def _claim_text(claims: Mapping[str, Any], name: str) -> bytes | None:
    """A claim as a header's value; None: it is not there, or can't be one."""
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    match found:
        case bool():
            return b"true" if found else b"false"
        case str():
            text = found
        case int() | float():
            text = str(int(found)) if found >= 0 and found == int(found) else f"{found:.6f}"
        case dict() | list():
            return base64.b64encode(json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode())
        case _:
            return None
    data = text.encode("utf-8", "replace")
    return None if set(data) & {0, 10, 13} else data


def _split(claims: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    texts = {name: claims[name].split(" ") for name in names if isinstance(claims.get(name), str)}
    return {**claims, **texts} if texts else claims


def _is_preflight(head: RequestHead) -> bool:
    asks = head.header(b"access-control-request-method")
    return head.method == "OPTIONS" and bool(head.header(b"origin")) and bool(asks)
