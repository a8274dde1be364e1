"""CUSTOM: somebody else is asked whether a request may pass (Envoy's ext_authz filter).

Rules (Envoy):

- Asked is only of requests that `enabled` takes (Istio: those that a CUSTOM policy's shadow rule matched).
- An HTTP authority is asked by a request of the same method and path, with a prefix before the path: its
  host, authorization, and the headers that are allowed. 200 lets it pass, 5xx is no answer, everything else
  is the client's answer.
- Of the body it is shown what the configuration wants (see `body`), always as it came, and nothing else of
  it. Whether that is a part only, is said in `x-envoy-auth-partial-body`, which nobody else can say.
- Without an answer the request is refused with `status_on_error`, or passes if the configuration says so.
- Headers that come back are taken only where the configuration allows them, and `opinion` says which never.
"""

from collections.abc import Callable
from dataclasses import field

from meshlib.core.authz.body import BodyWanted, Shown
from meshlib.core.authz.conditions import Condition
from meshlib.core.authz.opinion import FRAMING, Blocked, NoAnswer, Opinion, Passed, Told
from meshlib.core.authz.question import Question
from meshlib.core.request import Header, RequestHead, ResponseHead
from meshlib.values import dataclass

Names = Callable[[bytes], bool]
"""Whether a header's name, in lower case, is one of a set."""
_ALWAYS_ASKED = frozenset((b"authorization",))
_ALWAYS_TOLD = frozenset((b"www-authenticate", b"location"))
PARTIAL = b"x-envoy-auth-partial-body"
_NEVER_SHOWN = frozenset(
    (PARTIAL, b"connection", b"expect", b"keep-alive", b"proxy-connection", b"transfer-encoding")
)
"""What is of the connection, not of the request; Envoy has taken it away by then."""
MOST_BODY = 64 * 1024
"""Bytes of a refusal's body that are handed on."""


def nothing(_: bytes) -> bool:
    """No name."""
    return False


@dataclass(frozen=True, slots=True)
class HttpAuthority:
    """An authority that is asked over HTTP."""

    cluster: str
    timeout: float = 0.2
    """Seconds."""
    path_prefix: str = ""
    host: str = ""
    added: tuple[Header, ...] = ()
    to_request: Names = field(default=nothing, compare=False, repr=False)
    """Of the answer's headers: which replace those of the request."""
    to_request_appended: Names = field(default=nothing, compare=False, repr=False)
    to_client: Names | None = field(default=None, compare=False, repr=False)
    """Which the client gets with a refusal; None: all."""
    to_client_on_success: Names = field(default=nothing, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class GrpcAuthority:
    """An authority that is asked by envoy.service.auth.v3.Authorization/Check."""

    cluster: str
    timeout: float = 0.2
    authority: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ExtAuthz:
    """One filter."""

    name: str
    authority: HttpAuthority | GrpcAuthority
    enabled: Condition | None = field(default=None, compare=False, repr=False)
    """None: every request is asked about."""
    fail_open: bool = False
    mark_failed_open: bool = False
    status_on_error: int = 403
    asks: Names | None = field(default=None, compare=False, repr=False)
    """Which headers the authority is shown; None: the kind's own rule, gRPC's is all."""
    hides: Names = field(default=nothing, compare=False, repr=False)
    body: BodyWanted | None = None
    """None: the authority is shown no body."""

    def wanted(self, question: Question) -> bool:
        """Whether this request is asked about."""
        return self.enabled is None or self.enabled(question)

    def shown(self, head: RequestHead) -> list[Header]:
        """The request's headers that the authority is shown, names in lower case."""
        http = isinstance(self.authority, HttpAuthority)
        found = []
        for name, value in head.headers:
            lower = name.lower()
            if lower in _NEVER_SHOWN:
                continue
            asked = self.asks(lower) if self.asks else not http
            if (asked or (http and lower in _ALWAYS_ASKED)) and not self.hides(lower):
                found.append((lower, value))
        return found


@dataclass(frozen=True, slots=True)
class Check:
    """Ask the filter's authority about the request."""

    filter: ExtAuthz
    question: Question
    body: Shown | None = None
    """As far as the filter wants it."""


def http_request(check: Check, authority: HttpAuthority) -> RequestHead:
    """The head of what an HTTP authority is asked; its body is that of the check."""
    head = check.question.head
    given = {name for name, _ in authority.added}
    headers = [header for header in check.filter.shown(head) if header[0] not in (FRAMING | given)]
    length = 0
    if check.body is not None:
        length = len(check.body.data)
        headers.append(partial(check.body))
    headers.append((b"content-length", str(length).encode()))
    path = authority.path_prefix + head.path
    return RequestHead(head.method, "http", head.authority, path, [*headers, *authority.added])


def partial(body: Shown) -> Header:
    """The header that says whether a body is shown in part only."""
    return PARTIAL, b"false" if body.whole else b"true"


def http_opinion(authority: HttpAuthority, head: ResponseHead, body: bytes) -> Opinion:
    """What an HTTP authority's answer means."""
    if not 200 <= head.status < 500:
        return NoAnswer(f"the authority answered {head.status}")
    headers = [(name.lower(), value) for name, value in head.headers]
    if head.status != 200:
        told = authority.to_client
        kept = [h for h in headers if told is None or told(h[0]) or h[0] in _ALWAYS_TOLD]
        return Blocked(head.status, tuple(kept), body)
    return Passed(
        set=tuple(h for h in headers if authority.to_request(h[0])),
        append=tuple(h for h in headers if authority.to_request_appended(h[0])),
        to_client=tuple(Told(*h) for h in headers if authority.to_client_on_success(h[0])),
    )
