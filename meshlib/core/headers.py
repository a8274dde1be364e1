"""Header edits: what a route configuration sets, appends and removes, and in which order.

Rules (Envoy, HeaderParser and RouteEntry::finalizeRequestHeaders):
* The weighted cluster's level comes first, then route, virtual host, route configuration (these
  three the other way round if the configuration says most_specific_header_mutations_wins).
* In one level: removals first; then every value is worked out against the headers as they are now;
  then all that overwrite; then all that append.
* Each level sees the request as the levels before it left it.
* An empty value adds nothing unless the edit keeps empty values.

Values are templates. `%REQ(name?other):length%`, `%UPSTREAM_CLUSTER%`, `%ROUTE_NAME%`, `%PROTOCOL%`
and `%RESPONSE_CODE%` are known inside a process; every other operator, such as
`%DOWNSTREAM_REMOTE_ADDRESS%`, has no value here and gives nothing, never its own text: a header that
says `%…%` to the next service would be a lie. `%%` is `%`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, replace
from enum import Enum

from meshlib.core.request import Header, RequestHead
from meshlib.values import dataclass

MAX_OPERATORS = 100
"""Of one value; more is no header but an attack."""


ONE_PLACE = frozenset(
    {
        *(b"accept", b"accept-encoding", b"authorization", b"cache-control", b"content-type"),
        *(b"user-agent", b"via", b"x-forwarded-host", b"x-request-id"),
    }
)
"""Headers that are one value even when repeated, joined with commas: Envoy has one place for each."""


class Append(Enum):
    """Envoy's HeaderAppendAction."""

    APPEND = 0
    """Add another value, or the first."""
    ADD_IF_ABSENT = 1
    OVERWRITE_OR_ADD = 2
    OVERWRITE_IF_EXISTS = 3


@dataclass(frozen=True, slots=True)
class EditContext:
    """What a template may speak of."""

    request: RequestHead
    cluster: str = ""
    route: str = ""
    status: int = 0
    """Of the response from the cluster; 0 before there is one, and in replies that a rule gives itself."""


Piece = Callable[[EditContext], bytes | None]


@dataclass(frozen=True, slots=True)
class Template:
    """A header value: either plain `text`, or pieces to be put together for each request."""

    source: str
    text: bytes | None
    pieces: tuple[bytes | Piece, ...] = field(default=(), compare=False, repr=False)

    def render(self, context: EditContext) -> bytes:
        """The value for this request; an operator without a value gives nothing."""
        if self.text is not None:
            return self.text
        return b"".join(piece if isinstance(piece, bytes) else piece(context) or b"" for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """One addition. `name` is lower case."""

    name: bytes
    value: Template
    action: Append = Append.APPEND
    keep_empty: bool = False


@dataclass(frozen=True, slots=True)
class EditLevel:
    """The edits of one level of a route configuration. Names in `remove` are lower case."""

    edits: tuple[HeaderEdit, ...] = ()
    remove: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class HeaderEdits:
    """Edits of one or more levels, in the order in which they are applied."""

    levels: tuple[EditLevel, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.levels)

    def then(self, other: "HeaderEdits") -> "HeaderEdits":
        """These edits, and `other` after them."""
        if not other.levels:
            return self
        return HeaderEdits(self.levels + other.levels) if self.levels else other

    def apply(self, headers: Iterable[Header], context: EditContext) -> list[Header]:
        """Edited response headers, as a new list. Names that were not touched keep order and spelling."""
        made = list(headers)
        for level in self.levels:
            made = _add(level, _remove(level, made), context)
        return made

    def apply_to_request(self, context: EditContext) -> RequestHead:
        """The context's request with edited headers."""
        head = context.request
        for level in self.levels:
            if level.remove:
                head = _with_headers(head, _remove(level, head.headers))
            if level.edits:
                head = _with_headers(head, _add(level, head.headers, replace(context, request=head)))
        return head

    def words(self) -> tuple[str, ...]:
        """Each edit in words, for people: `set x-a: 1`, `remove x-b`."""
        return tuple(
            text
            for level in self.levels
            for text in (
                *(f"remove {name.decode('latin-1')}" for name in sorted(level.remove)),
                *(f"{_VERBS[e.action]} {e.name.decode('latin-1')}: {e.value.source}" for e in level.edits),
            )
        )


EMPTY = HeaderEdits()

_VERBS = {
    Append.APPEND: "add",
    Append.ADD_IF_ABSENT: "add if absent",
    Append.OVERWRITE_OR_ADD: "set",
    Append.OVERWRITE_IF_EXISTS: "set if present",
}


def _with_headers(head: RequestHead, headers: list[Header]) -> RequestHead:
    return RequestHead(head.method, head.scheme, head.authority, head.path, headers)


def _remove(level: EditLevel, headers: list[Header]) -> list[Header]:
    return (
        [header for header in headers if header[0].lower() not in level.remove] if level.remove else headers
    )


def _add(level: EditLevel, headers: list[Header], context: EditContext) -> list[Header]:
    present = {name.lower() for name, _ in headers}
    overwrite: dict[bytes, bytes] = {}
    append: list[Header] = []
    for edit in level.edits:
        value = edit.value.render(context)
        if not value and not edit.keep_empty:
            continue
        match edit.action:
            case Append.APPEND:
                append.append((edit.name, value))
            case Append.ADD_IF_ABSENT:
                if edit.name not in present:
                    append.append((edit.name, value))
            case Append.OVERWRITE_OR_ADD:
                overwrite[edit.name] = value
            case Append.OVERWRITE_IF_EXISTS:
                if edit.name in present:
                    overwrite[edit.name] = value
    if overwrite:
        headers = [header for header in headers if header[0].lower() not in overwrite]
        headers += overwrite.items()
    return [*headers, *append]


def parse_template(source: str) -> Template:
    """A template from a header value as configured. ValueError: a `%` that begins no operator."""
    pieces: list[bytes | Piece] = []
    rest = source
    while rest:
        plain, percent, rest = rest.partition("%")
        if plain:
            pieces.append(plain.encode())
        if not percent:
            break
        if rest.startswith("%"):
            pieces.append(b"%")
            rest = rest[1:]
            continue
        piece, rest = _parse_operator(rest)
        pieces.append(piece)
        if len(pieces) > MAX_OPERATORS:
            raise ValueError(f"more than {MAX_OPERATORS} parts")
    if all(isinstance(piece, bytes) for piece in pieces):
        return Template(source, b"".join(piece for piece in pieces if isinstance(piece, bytes)))
    return Template(source, None, tuple(pieces))


def _parse_operator(text: str) -> tuple[Piece, str]:
    """The operator after a `%`, and what follows it: NAME, NAME(argument), NAME(argument):length."""
    end = 0
    while end < len(text) and (text[end].isupper() or text[end].isdigit() or text[end] == "_"):
        end += 1
    name, rest = text[:end], text[end:]
    argument: str | None = None
    if rest.startswith("("):
        argument, closed, rest = rest[1:].partition(")")
        if not closed:
            raise ValueError(f"%{name}( is not closed")
    length: int | None = None
    if rest.startswith(":"):
        digits, _, _ = rest[1:].partition("%")
        if not digits.isascii() or not digits.isdigit():
            raise ValueError(f"%{name}: the length is {digits!r}, no number")
        length, rest = int(digits), rest[1 + len(digits) :]
    if not name or not rest.startswith("%"):
        raise ValueError("a % that begins no operator; a percent sign is written %%")
    return _operator(name, argument, length), rest[1:]


def _operator(name: str, argument: str | None, length: int | None) -> Piece:
    if name == "REQ":
        if not argument:
            raise ValueError("%REQ% needs the name of a header: %REQ(x-name)%")
        names = tuple(part.lower().encode() for part in argument.split("?"))
        if len(names) > 2:
            raise ValueError(f"%REQ({argument})% has more than one alternative")
        return lambda context: _request_header(context.request, names, length)
    known = _KNOWN.get(name)
    return known if known is not None else _nothing


def _request_header(request: RequestHead, names: Sequence[bytes], length: int | None) -> bytes | None:
    for name in names:
        value = _first(request, name)
        if value is not None:
            return value if length is None else value[:length]
    return None


def _first(request: RequestHead, name: bytes) -> bytes | None:
    if name.startswith(b":") or name == b"host":
        return request.header(name)
    if name in ONE_PLACE:
        return one_value(request, name)
    return next((value for key, value in request.headers if key.lower() == name), None)


def one_value(request: RequestHead, name: bytes) -> bytes | None:
    """The value of a header of `ONE_PLACE`: the parts that are not empty, joined with commas; or None."""
    values = [value for key, value in request.headers if key.lower() == name]
    return b",".join(filter(None, values)) if values else None


def _nothing(context: EditContext) -> bytes | None:
    return None


_KNOWN: dict[str, Piece] = {
    "UPSTREAM_CLUSTER": lambda context: context.cluster.encode(),
    "ROUTE_NAME": lambda context: context.route.encode(),
    "PROTOCOL": lambda context: b"HTTP/1.1",
    "RESPONSE_CODE": lambda context: str(context.status).encode(),
}
