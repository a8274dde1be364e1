"""What an external authority says of a request, and what that changes of it and of its response.

Rules:

- Headers are set one after the other: of several values for a name the last one stays. To append is to add to
  a header that is there, and nothing where it is not. What is removed is removed last (Envoy).
- A header that is set or removed is so in every spelling: to WSGI `x_user` is `x-user`.
- `host`, names with a colon, and headers that are of one connection or frame the message are nobody's to say.
- Headers that can't be sent (a name that is none, a line break in a value) are left out of a refusal, which
  stands. An answer that lets pass with one of them is none: what it meant to say of the caller is not known.
- The body of a refusal is plain text, if its headers do not say what it is (Envoy).
- A parameter of the query that is set replaces all of its name (Envoy). Here its value is escaped.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_plus

from meshlib.core.authz.body import Unread
from meshlib.core.headers import Append
from meshlib.core.request import Header, RequestHead, hyphened
from meshlib.core.route.match import bare_path
from meshlib.values import dataclass

SPACE = "envoy.filters.http.ext_authz"
"""Where in the metadata is what an authority says of the request."""
FAILED_OPEN = (b"x-envoy-auth-failure-mode-allowed", b"true")
FRAMING = frozenset(
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
_TEXT = (b"content-type", b"text/plain")


class Told(NamedTuple):
    """A header for the response."""

    name: bytes
    value: bytes
    how: Append = Append.APPEND


@dataclass(frozen=True, slots=True)
class Passed:
    """The request may pass, with these changes. Names are in lower case."""

    set: tuple[Header, ...] = ()
    append: tuple[Header, ...] = ()
    remove: tuple[bytes, ...] = ()
    to_client: tuple[Told, ...] = ()
    """For the response."""
    query: tuple[tuple[str, str | None], ...] = ()
    """Parameters of the query and their values; None: removed."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What filters that follow may ask for, under `SPACE`."""


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


def checked(opinion: Opinion) -> Opinion:
    """An opinion with nothing in it that can't, or must not, be sent on."""
    match opinion:
        case Passed():
            sets, appends = _sane(opinion.set), _sane(opinion.append)
            told = [one for one in opinion.to_client if _sane((one[:2],))]
            for name, value in (*sets, *appends, *((one.name, one.value.strip(b" \t")) for one in told)):
                if not _can_be_sent(name, value):
                    return NoAnswer(f"the authority gave the header {name!r}, which can't be sent")
            gone = tuple(name for name in opinion.remove if name not in FRAMING)
            return replace(opinion, set=sets, append=appends, remove=gone, to_client=tuple(told))
        case Blocked(status, headers, body):
            kept = tuple(header for header in _sane(headers) if _can_be_sent(*header))
            if status in _WITHOUT_BODY or not body:
                return Blocked(status, kept)
            named = any(name == _TEXT[0] for name, _ in kept)
            return Blocked(status, kept if named else (*kept, _TEXT), body)
        case NoAnswer() | Unread():
            return opinion


def _sane(headers: Iterable[Header]) -> tuple[Header, ...]:
    """Without those that are nobody's to say; a value has no space around it."""
    return tuple(
        (name, value.strip(b" \t"))
        for name, value in headers
        if name not in FRAMING and not name.startswith(b":")
    )


def _can_be_sent(name: bytes, value: bytes) -> bool:
    return bool(name) and _TOKEN.issuperset(name) and _CONTROLS.isdisjoint(value)


def changed(head: RequestHead, opinion: Passed) -> RequestHead:
    """The request with the authority's changes, which were `checked`."""
    if not (opinion.set or opinion.append or opinion.remove or opinion.query):
        return head
    sets = dict(opinion.set)
    headers = [*_others(head.headers, sets), *sets.items()]
    there = {name.lower() for name, _ in headers}
    headers += [header for header in opinion.append if header[0] in there]
    headers = _others(headers, opinion.remove)
    path = _with_query(head.path, dict(opinion.query)) if opinion.query else head.path
    return RequestHead(head.method, head.scheme, head.authority, path, headers)


def _others(headers: Iterable[Header], names: Iterable[bytes]) -> list[Header]:
    gone = set(map(hyphened, names))
    return [header for header in headers if hyphened(header[0]) not in gone]


def _with_query(path: str, changes: Mapping[str, str | None]) -> str:
    bare = bare_path(path)
    parts = [part for part in path[len(bare) + 1 :].split("&") if part]
    kept = [part for part in parts if unquote_plus(part.partition("=")[0]) not in changes]
    kept += [f"{quote(name, '')}={quote(value, '')}" for name, value in changes.items() if value is not None]
    return f"{bare}?{'&'.join(kept)}" if kept else bare


def answered(headers: Iterable[Header], told: Iterable[Told]) -> list[Header]:
    """The headers of a response with what an authority adds to them."""
    made = list(headers)
    there = {name.lower() for name, _ in made}
    for name, value, how in told:
        is_there = name in there
        if (how is Append.ADD_IF_ABSENT and is_there) or (how is Append.OVERWRITE_IF_EXISTS and not is_there):
            continue
        if how in (Append.OVERWRITE_OR_ADD, Append.OVERWRITE_IF_EXISTS):
            made = [header for header in made if header[0].lower() != name]
        made.append((name, value))
        there.add(name)
    return made
