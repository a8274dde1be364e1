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
  headers itself is removed before anything else (here of a preflight, too). The token is removed from its
  header or parameter, unless the provider forwards it.
"""

from collections.abc import Sequence
from dataclasses import field

from meshlib.core.authn.claims import claim_text, split
from meshlib.core.authn.places import Found, find, without
from meshlib.core.authn.provider import Provider
from meshlib.core.authn.token import Fault, Token, read
from meshlib.core.authz.question import Question
from meshlib.core.request import Header, RequestHead, hyphened
from meshlib.core.route.match import RouteMatch
from meshlib.values import dataclass

SPACE = "envoy.filters.http.jwt_authn"
"""Where in the metadata the claims are."""
PAYLOAD = "payload"
"""Under which key Istio has them put there."""
_VAGUE = (None, Fault.MISSING, Fault.ISSUER)
_MOST_PATH = 256
"""Characters of a path that a challenge says."""


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
    """Those that only this filter may set, `hyphened`."""

    def __post_init__(self) -> None:
        own = {name for p in self.providers for name in (p.payload_header, *(n for n, _ in p.claim_headers))}
        object.__setattr__(self, "own_headers", frozenset(map(hyphened, own - {b""})))

    def judge(self, question: Question, now: float) -> Refusal | None:
        """None: the request passes; what its tokens say is in `question`. `now`: seconds since 1970."""
        head = question.head
        if self.own_headers:
            question.head = without(head, self.own_headers)
        if self.bypass_preflight and _is_preflight(head):
            return None
        required = next((needs for match, needs in self.rules if match.matches(head)), None)
        if required is None:
            return None
        uri = f"{head.scheme}://{head.authority}{head.path[:_MOST_PATH]}"
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
        found = list(find(self.question.head, places))
        if not found:
            return Fault.MISSING
        for one in reversed(found):
            fault = self._take(one, provider, audiences)
            if fault is not None:
                return fault
        return None

    def _take(self, found: Found, provider: Provider | None, audiences: frozenset[str]) -> Fault | None:
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
        if not provider.is_for(token, audiences):
            return Fault.AUDIENCE
        if not known:
            fault = provider.keys.verify(token)
            if fault is not None:
                return fault
            provider.keys.keep(token)
        self._apply(found, token, provider)
        return None

    def _apply(self, found: Found, token: Token, provider: Provider) -> None:
        question = self.question
        if not provider.forward:
            question.head = found.remove(question.head)
        added: list[Header] = []
        if provider.payload_header:
            payload = token.payload + "=" * (-len(token.payload) % 4 if provider.pad_payload else 0)
            added.append((provider.payload_header, payload.encode()))
        for name, claim in provider.claim_headers:
            value = claim_text(token.claims, claim)
            if value is not None:
                added.append((name, value))
        if added:
            head = question.head
            question.head = RequestHead(
                head.method, head.scheme, head.authority, head.path, [*head.headers, *added]
            )
        left = question.metadata.setdefault(SPACE, {})
        if provider.payload_key:
            left[provider.payload_key] = split(token.claims, provider.split_claims)
        if provider.header_key:
            left[provider.header_key] = token.header


def _is_preflight(head: RequestHead) -> bool:
    asks = head.header(b"access-control-request-method")
    return head.method == "OPTIONS" and bool(head.header(b"origin")) and bool(asks)
