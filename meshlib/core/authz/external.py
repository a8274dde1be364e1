"""CUSTOM: somebody else is asked whether a request may pass (Envoy's ext_authz filter).

Rules (Envoy):

- Asked is only of requests that `enabled` takes (Istio: those that a CUSTOM policy's shadow rule matched).
- An HTTP authority is asked by a request of the same method and path, with a prefix before the path: its
  host, authorization, and the headers that are allowed. 200 lets it pass, 5xx is no answer, everything else
  is the client's answer.
- Of the body it is shown what the configuration wants (see `body`), always as it came, and nothing else of
  it. Whether that is a part only, is said in `x-envoy-auth-partial-body`, which nobody else can say.
- Without an answer the request is refused with `status_on_error`, or passes if the configuration says so.
- Headers that come back are taken only where the configuration allows them. `host`, those with a colon,
  and those that are of one connection or frame the message never are.
- Headers that can't be sent (a name that is none, a line break in a value) are left out of a refusal, which
  stands. An answer that lets pass with one of them is none: what it meant to say of the caller is not known.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from meshlib.core.authz.body import BodyWanted, Shown, Unread
from meshlib.core.authz.conditions import Condition
from meshlib.core.authz.question import Question
from meshlib.core.request import Header, RequestHead, ResponseHead

Names = Callable[[bytes], bool]
"""Whether a header's name, in lower case, is one of a set."""
_ALWAYS_ASKED = frozenset((b"authorization",))
_ALWAYS_TOLD = frozenset((b"www-authenticate", b"location"))
_FRAMING = frozenset(
    (
        *(b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"te"),
        *(b"keep-alive", b"proxy-connection", b"trailer"),
    )
)
PARTIAL = b"x-envoy-auth-partial-body"
_NEVER_SHOWN = frozenset(
    (PARTIAL, b"connection", b"expect", b"keep-alive", b"proxy-connection", b"transfer-encoding")
)
"""What is of the connection, not of the request; Envoy has taken it away by then."""
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""What a header's name is made of (RFC 9110, 5.6.2)."""
_CONTROLS = frozenset((*range(9), *range(10, 32), 127))
"""What a header's value never holds (RFC 9110, 5.5)."""
_WITHOUT_BODY = (204, 304)
FAILED_OPEN = (b"x-envoy-auth-failure-mode-allowed", b"true")
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
class Passed:
    """The request may pass, with these changes."""

    set: tuple[Header, ...] = ()
    append: tuple[Header, ...] = ()
    remove: tuple[bytes, ...] = ()
    to_client: tuple[Header, ...] = ()
    """For the response."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """The request is answered so."""

    status: int
    headers: tuple[Header, ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Nobody said anything that counts; why, in words."""

    detail: str


Opinion = Passed | Blocked | NoAnswer | Unread


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
    headers = [header for header in check.filter.shown(head) if header[0] not in (_FRAMING | given)]
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
        to_client=tuple(h for h in headers if authority.to_client_on_success(h[0])),
    )


def checked(opinion: Opinion) -> Opinion:
    """An opinion with nothing in it that can't, or must not, be sent on."""
    match opinion:
        case Passed(sets, appends, remove, to_client):
            kept = [_sane(headers) for headers in (sets, appends, to_client)]
            for name, value in (header for headers in kept for header in headers):
                if not _can_be_sent(name, value):
                    return NoAnswer(f"the authority gave the header {name!r}, which can't be sent")
            return Passed(kept[0], kept[1], tuple(name for name in remove if name not in _FRAMING), kept[2])
        case Blocked(status, headers, body):
            told = tuple(header for header in _sane(headers) if _can_be_sent(*header))
            return Blocked(status, told, b"" if status in _WITHOUT_BODY else body)
        case NoAnswer() | Unread():
            return opinion


def _sane(headers: Iterable[Header]) -> tuple[Header, ...]:
    """Without those that are nobody's to say; a value has no space around it."""
    return tuple(
        (name, value.strip(b" \t"))
        for name, value in headers
        if name not in _FRAMING and not name.startswith(b":")
    )


def _can_be_sent(name: bytes, value: bytes) -> bool:
    return bool(name) and _TOKEN.issuperset(name) and _CONTROLS.isdisjoint(value)


def changed(head: RequestHead, opinion: Passed) -> RequestHead:
    """The request with the authority's changes, which were `checked`."""
    if not (opinion.set or opinion.append or opinion.remove):
        return head
    gone = {name for name, _ in opinion.set} | set(opinion.remove)
    headers = [header for header in head.headers if header[0].lower() not in gone]
    headers += [*opinion.set, *opinion.append]
    return RequestHead(head.method, head.scheme, head.authority, head.path, headers)
