"""Expressions of CEL about requests, as far as clients in a process evaluate them: text to tree, checked.

Rules:

- What is taken is what a real Envoy answers in the same way: attributes of `ATTRIBUTES`, a header by
  `request.headers['name']`, literals, `! && || == != < <= > >= in + - * / %`, `a ? b : c`, the methods
  startsWith, endsWith, contains and matches (RE2, a literal), size(…), has(…), duration('…').
- Everything has a kind, and kinds that do not fit are refused here: Envoy would find nothing true of them.
- All else is refused, with the place where it stands.
"""

from collections.abc import Mapping
from enum import StrEnum

from meshlib.values import dataclass
from meshlib.xds.cel_tokens import Token, tokens_of

MOST_LETTERS = 4096
MOST_TOKENS = 500
"""So that a long chain of operators is not too deep a tree."""
MOST_DEPTH = 50


class Kind(StrEnum):
    """What a value is."""

    TEXT = "text"
    NUMBER = "number"
    BOOL = "bool"
    DURATION = "duration"
    HEADERS = "headers"
    LIST = "list"


ATTRIBUTES: Mapping[str, Kind] = {
    **dict.fromkeys(
        (
            *("request.path", "request.url_path", "request.query", "request.host", "request.scheme"),
            *("request.method", "request.useragent", "request.referer", "request.id", "request.protocol"),
            *("response.code_details", "source.address", "destination.address", "upstream.address"),
            *("connection.requested_server_name", "connection.uri_san_peer_certificate"),
            *("xds.cluster_name", "xds.route_name"),
        ),
        Kind.TEXT,
    ),
    **dict.fromkeys(
        (
            *("request.size", "response.size", "response.code"),
            *("source.port", "destination.port", "upstream.port"),
        ),
        Kind.NUMBER,
    ),
    "request.duration": Kind.DURATION,
    "request.headers": Kind.HEADERS,
    "response.headers": Kind.HEADERS,
    "connection.mtls": Kind.BOOL,
}
METHODS = ("startsWith", "endsWith", "contains", "matches")
_COMPARED = ("==", "!=", "<", "<=", ">", ">=", "in")
_BINDS = {
    "||": 1,
    "&&": 2,
    **dict.fromkeys(_COMPARED, 3),
    **dict.fromkeys("+-", 4),
    **dict.fromkeys("*/%", 5),
}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant. Of a duration: its seconds."""

    value: str | int | float | bool
    kind: Kind


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something known of a request, by its name in CEL."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Header:
    """The value of a header of `request.headers` or `response.headers`."""

    of: str
    name: "Node"
    kind: Kind = Kind.TEXT


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator (`&&`, `?`, `in`, `neg`, …) or function with what it is applied to."""

    name: str
    to: tuple["Node", ...]
    kind: Kind


Node = Literal | Attribute | Header | Apply


def parse(text: str, *functions: str) -> Node:
    """The tree of an expression; `functions`: further ones, from any kind to text. ValueError: it is none."""
    if len(text) > MOST_LETTERS:
        raise ValueError(f"{len(text)} letters are more than {MOST_LETTERS}")
    tokens = tokens_of(text)
    if len(tokens) > MOST_TOKENS:
        raise ValueError(f"{len(tokens)} words and signs are more than {MOST_TOKENS}")
    reader = _Reader(tokens, functions)
    found = reader.expression(0)
    reader.expect("")
    return found


def condition(text: str) -> Node:
    """The tree of an expression that is true or false. ValueError."""
    found = parse(text)
    if found.kind is not Kind.BOOL:
        raise ValueError(f"it is a {found.kind}, not true or false")
    return found


class _Reader:
    """Reads tokens from left to right, operators by how strongly they bind."""

    def __init__(self, tokens: list[Token], functions: tuple[str, ...]) -> None:
        self._tokens = tokens
        self._place = 0
        self._depth = 0
        self._functions = functions

    @property
    def _now(self) -> Token:
        return self._tokens[self._place]

    def _next(self) -> Token:
        if not self._now[0]:
            raise self._wrong("a name is expected")
        self._place += 1
        return self._tokens[self._place - 1]

    def _wrong(self, what: str) -> ValueError:
        kind, said, place = self._now
        return ValueError(f"{what} at {place + 1}, where {said or kind or 'the end'!r} stands")

    def expect(self, sign: str) -> None:
        """The next token is that sign (the end: empty)."""
        if self._now[0] != sign:
            raise self._wrong(f"{sign!r} is expected" if sign else "nothing more is expected")
        if sign:
            self._place += 1

    def expression(self, least: int) -> Node:
        """One whose operators bind at least so strongly; 0: with `? :`."""
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ValueError(f"it is deeper than {MOST_DEPTH}")
        left = self._unary()
        while (binds := _BINDS.get(sign := self._sign(), 0)) > least:
            self._place += 1
            left = _applied(sign, left, self.expression(binds))
        if least == 0 and self._now[0] == "?":
            self._place += 1
            left = self._choice(left)
        self._depth -= 1
        return left

    def _sign(self) -> str:
        kind, said, _ = self._now
        return "in" if (kind, said) == ("name", "in") else kind

    def _choice(self, condition: Node) -> Node:
        yes = self.expression(0)
        self.expect(":")
        no = self.expression(0)
        if condition.kind is not Kind.BOOL or yes.kind is not no.kind:
            raise ValueError(f"{condition.kind} ? {yes.kind} : {no.kind} does not fit")
        return Apply("?", (condition, yes, no), yes.kind)

    def _unary(self) -> Node:
        sign = self._now[0]
        if sign not in ("!", "-"):
            return self._member()
        self._place += 1
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ValueError(f"it is deeper than {MOST_DEPTH}")
        of = self._unary()
        self._depth -= 1
        wanted = Kind.BOOL if sign == "!" else Kind.NUMBER
        if of.kind is not wanted:
            raise ValueError(f"{sign} of a {of.kind} does not fit")
        return Apply("!" if sign == "!" else "neg", (of,), wanted)

    def _member(self) -> Node:
        found = self._primary()
        while self._now[0] == ".":
            self._place += 1
            kind, method, _ = self._next()
            if kind != "name" or method not in METHODS or self._now[0] != "(":
                self._place -= 1
                raise self._wrong(f"one of the methods {', '.join(METHODS)} is expected")
            self._place += 1
            argument = self.expression(0)
            self.expect(")")
            if (found.kind, argument.kind) != (Kind.TEXT, Kind.TEXT):
                raise ValueError(f"{found.kind}.{method}({argument.kind}) does not fit")
            if method == "matches":
                if not isinstance(argument, Literal):
                    raise ValueError("the pattern of matches(…) is not a literal")
                _check_pattern(str(argument.value))
            found = Apply(method, (found, argument), Kind.BOOL)
        return found

    def _primary(self) -> Node:
        kind, said, _ = self._now
        if kind == "name":
            return self._named()
        if kind in ("text", "number"):
            self._place += 1
            return Literal(said, Kind.TEXT) if kind == "text" else _number(said)
        if kind == "(":
            self._place += 1
            found = self.expression(0)
            self.expect(")")
            return found
        if kind == "[":
            return self._list()
        raise self._wrong("a value is expected")

    def _list(self) -> Node:
        self._place += 1
        found: list[Node] = []
        while self._now[0] != "]":
            found.append(self.expression(0))
            if self._now[0] != "]":
                self.expect(",")
        self._place += 1
        return Apply("list", tuple(found), Kind.LIST)

    def _named(self) -> Node:
        name = self._next()[1]
        if name in ("true", "false"):
            return Literal(name == "true", Kind.BOOL)
        if self._now[0] == "(":
            return self._call(name)
        while name not in ATTRIBUTES and self._now[0] == "." and name.count(".") < 2:
            self._place += 1
            name += f".{self._next()[1]}"
        if name not in ATTRIBUTES:
            self._place -= 1
            raise self._wrong(f"the attribute {name} is not supported")
        found = Attribute(name, ATTRIBUTES[name])
        return self._header(found) if found.kind is Kind.HEADERS else found

    def _header(self, headers: Attribute) -> Node:
        sign = self._now[0]
        if sign == "[":
            self._place += 1
            name = self.expression(0)
            self.expect("]")
            if name.kind is not Kind.TEXT:
                raise ValueError(f"{headers.name}[{name.kind}] does not fit")
            return Header(headers.name, name)
        if sign == "." and self._tokens[self._place + 1][0] == "name":
            self._place += 2
            return Header(headers.name, Literal(self._tokens[self._place - 1][1], Kind.TEXT))
        return headers

    def _call(self, name: str) -> Node:
        self._place += 1
        argument = self.expression(0)
        self.expect(")")
        sized = (Kind.TEXT, Kind.LIST, Kind.HEADERS)
        match name:
            case "size" if argument.kind in sized:
                return Apply("size", (argument,), Kind.NUMBER)
            case "has" if isinstance(argument, Header | Attribute):
                return Apply("has", (argument,), Kind.BOOL)
            case "duration" if isinstance(argument, Literal) and isinstance(argument.value, str):
                return Literal(_seconds(argument.value), Kind.DURATION)
            case _ if name in self._functions:
                return Apply(name, (argument,), Kind.TEXT)
        raise ValueError(f"{name}({argument.kind}) is not supported")


def _applied(sign: str, left: Node, right: Node) -> Node:
    kinds = (left.kind, right.kind)
    same = left.kind is right.kind
    match sign:
        case "&&" | "||":
            fits, kind = kinds == (Kind.BOOL, Kind.BOOL), Kind.BOOL
        case "==" | "!=":
            fits, kind = same and left.kind not in (Kind.LIST, Kind.HEADERS), Kind.BOOL
        case "<" | "<=" | ">" | ">=":
            fits, kind = same and left.kind in (Kind.NUMBER, Kind.TEXT, Kind.DURATION), Kind.BOOL
        case "in":
            fits = right.kind is Kind.LIST or kinds == (Kind.TEXT, Kind.HEADERS)
            kind = Kind.BOOL
        case "+":
            fits, kind = same and left.kind in (Kind.NUMBER, Kind.TEXT), left.kind
        case _:
            fits, kind = kinds == (Kind.NUMBER, Kind.NUMBER), Kind.NUMBER
    if not fits:
        raise ValueError(f"{left.kind} {sign} {right.kind} does not fit")
    return Apply(sign, (left, right), kind)


def _number(said: str) -> Literal:
    text = said.rstrip("uU") if said[-1:] in ("u", "U") else said
    try:
        value = float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        raise ValueError(f"{said!r} is no number") from None
    if isinstance(value, int) and value >= 2**63:
        raise ValueError(f"{said} is too large a number")
    return Literal(value, Kind.NUMBER)


def _seconds(text: str) -> float:
    """Go's spelling of a duration: `1h30m`, `1.5s`, `200ms`."""
    total, rest = 0.0, text
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        unit = rest[digits : digits + 2] if rest[digits : digits + 2] in _UNITS else rest[digits : digits + 1]
        if not digits or unit not in _UNITS or rest[:digits].count(".") > 1:
            break
        total += float(rest[:digits]) * _UNITS[unit]
        rest = rest[digits + len(unit) :]
    if rest or not text:
        raise ValueError(f"{text!r} is no duration, such as '1.5s'")
    return total


def _check_pattern(pattern: str) -> None:
    import re2

    quiet = re2.Options()
    quiet.log_errors = False
    try:
        re2.compile(pattern, quiet)
    except re2.error as error:
        text = error.args[0] if error.args else error
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        raise ValueError(f"{pattern!r} is not an RE2 pattern: {shown}") from None
