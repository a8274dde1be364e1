"""CUSTOM: somebody else is asked whether a request may pass (Envoy's ext_authz filter).

Rules (Envoy):

- Asked is only of requests that `enabled` takes (Istio: those that a CUSTOM policy's shadow rule matched).
- An HTTP authority is asked by a request of the same method and path, with a prefix before the path,
  without a body: its host, authorization, and the headers that are allowed. 200 lets it pass, 5xx is no
  answer, everything else is the client's answer.
- Without an answer the request is refused with `status_on_error`, or passes if the configuration says so.
- Headers that come back are taken only where the configuration allows them. `host`, those with a colon,
  and those that are of one connection or frame the message never are.
- Headers that can't be sent (a name that is none, a line break in a value) are left out of a refusal, which
  stands. An answer that lets pass with one of them is none: what it meant to say of the caller is not known.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

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

    def wanted(self, question: Question) -> bool:
        """Whether this request is asked about."""
        return self.enabled is None or self.enabled(question)

    def shown(self, head: RequestHead) -> list[Header]:
        """The request's headers that the authority is shown, names in lower case."""
        http = isinstance(self.authority, HttpAuthority)
        found = []
        for name, value in head.headers:
            lower = name.lower()
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


Opinion = Passed | Blocked | NoAnswer


@dataclass(frozen=True, slots=True)
class Check:
    """Ask the filter's authority about the request."""

    filter: ExtAuthz
    question: Question


def http_request(filter_: ExtAuthz, authority: HttpAuthority, head: RequestHead) -> RequestHead:
    """What an HTTP authority is asked."""
    given = {name for name, _ in authority.added}
    headers = [header for header in filter_.shown(head) if header[0] not in (_FRAMING | given)]
    path = authority.path_prefix + head.path
    return RequestHead(head.method, "http", head.authority, path, [*headers, *authority.added])


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
        case NoAnswer():
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
