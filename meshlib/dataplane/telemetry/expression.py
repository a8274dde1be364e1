"""CEL about a request that has ended: a tree of `xds.cel` becomes a function, once.

Rules (CEL, and Envoy's attributes):

- What a request does not have makes whatever is made of it unknown; `&&` and `||` are known if one side
  decides. A condition that is unknown is false.
- The values of a header are joined with commas, as Envoy does; whole numbers are divided as in C.
"""

import operator
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from meshlib.dataplane.telemetry.ended import Ended
from meshlib.xds import cel

Value = Callable[[Ended], Any]
Condition = Callable[[Ended], bool]


class Unknown(Exception):
    """There is no such value."""


def condition(text: str) -> Condition:
    """Whether a request meets an expression. ValueError: it is none."""
    asked = value(cel.condition(text))

    def meets(ended: Ended) -> bool:
        try:
            return bool(asked(ended))
        except Unknown:
            return False

    return meets


def value(node: cel.Node) -> Value:
    """The value of a tree; Unknown is raised where there is none."""
    match node:
        case cel.Literal(constant, kind):
            made = timedelta(seconds=float(constant)) if kind is cel.Kind.DURATION else constant
            return lambda _: made
        case cel.Attribute(name):
            return _ATTRIBUTES[name]
        case cel.Header(of, named):
            return _header(of, value(named))
        case cel.Apply(name, to):
            return _applied(name, to)


def _text(of: Callable[[Ended], str]) -> Value:
    def found(ended: Ended) -> str:
        return of(ended) or _unknown()

    return found


def _unknown() -> Any:
    raise Unknown


def _of_head(name: bytes) -> Value:
    def found(ended: Ended) -> str:
        said = ended.head.header(name)
        return said.decode("latin-1") if said is not None else _unknown()

    return found


def _address(of: Callable[[Ended], str]) -> Value:
    return _text(of)


def _port(of: Callable[[Ended], str]) -> Value:
    def found(ended: Ended) -> int:
        port = of(ended).rpartition(":")[2]
        return int(port) if port.isdecimal() else _unknown()

    return found


def _size(ended: Ended) -> int:
    """Of the body, as the caller announced it."""
    said = ended.head.header(b"content-length") or b""
    return int(said) if said.isdigit() and len(said) < 19 else ended.received


_ATTRIBUTES: Mapping[str, Value] = {
    "request.path": lambda ended: ended.head.path,
    "request.url_path": lambda ended: ended.head.path.partition("?")[0],
    "request.query": lambda ended: ended.head.path.partition("?")[2],
    "request.host": lambda ended: ended.head.authority,
    "request.scheme": lambda ended: ended.head.scheme,
    "request.method": lambda ended: ended.head.method,
    "request.protocol": lambda ended: ended.protocol,
    "request.useragent": _of_head(b"user-agent"),
    "request.referer": _of_head(b"referer"),
    "request.id": _of_head(b"x-request-id"),
    "request.size": _size,
    "request.duration": lambda ended: timedelta(seconds=ended.seconds),
    "request.headers": lambda ended: ended.head.index,
    "response.headers": lambda ended: ended.response,
    "response.code": lambda ended: ended.status or _unknown(),
    "response.code_details": _text(lambda ended: ended.details),
    "response.size": lambda ended: ended.sent,
    "connection.mtls": lambda ended: bool(ended.principal),
    "connection.requested_server_name": _text(lambda ended: ended.sni),
    "connection.uri_san_peer_certificate": _text(lambda ended: ended.principal),
    "source.address": _address(lambda ended: ended.remote),
    "source.port": _port(lambda ended: ended.remote),
    "destination.address": _address(lambda ended: ended.local),
    "destination.port": _port(lambda ended: ended.local),
    "upstream.address": _address(lambda ended: ended.upstream),
    "upstream.port": _port(lambda ended: ended.upstream),
    "xds.cluster_name": _text(lambda ended: ended.cluster),
    "xds.route_name": _text(lambda ended: ended.route),
}


def _header(of: str, name: Value) -> Value:
    from_request = of == "request.headers"

    def found(ended: Ended) -> str:
        wanted = str(name(ended)).lower().encode("latin-1", "replace")
        said = ended.head.header(wanted) if from_request else ended.response.get(wanted)
        return said.decode("latin-1") if said is not None else _unknown()

    return found


def _divided(left: Any, right: Any) -> Any:
    if not right:
        return _unknown()
    if isinstance(left, float) or isinstance(right, float):
        return left / right
    return (abs(left) // abs(right)) * (1 if (left < 0) == (right < 0) else -1)


def _rest(left: Any, right: Any) -> Any:
    return left - right * _divided(left, right) if right else _unknown()


def _within(left: Any, right: Any) -> bool:
    key = left.lower().encode("latin-1", "replace") if isinstance(right, Mapping) else left
    return key in right


_TWO: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divided,
    "%": _rest,
    "in": _within,
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": str.__contains__,
}


def _applied(name: str, to: tuple[cel.Node, ...]) -> Value:
    if name == "matches":
        return _matches(to)
    parts = [value(one) for one in to]
    if name == "list":
        return lambda ended: [part(ended) for part in parts]
    first = parts[0]
    match name:
        case "&&" | "||":
            return _decided(first, parts[1], by=name == "||")
        case "!":
            return lambda ended: not first(ended)
        case "neg":
            return lambda ended: -first(ended)
        case "?":
            return lambda ended: parts[1](ended) if first(ended) else parts[2](ended)
        case "size":
            return lambda ended: len(first(ended))
        case "has":
            return lambda ended: _is_there(first, ended)
        case "string":
            return lambda ended: _as_text(first(ended))
    apply, second = _TWO[name], parts[1]
    return lambda ended: apply(first(ended), second(ended))


def _is_there(of: Value, ended: Ended) -> bool:
    try:
        of(ended)
    except Unknown:
        return False
    return True


def _decided(left: Value, right: Value, *, by: bool) -> Value:
    """`||` (decided by true) and `&&` (by false): an unknown side does not matter if the other decides."""

    def found(ended: Ended) -> bool:
        try:
            if bool(left(ended)) is by:
                return by
        except Unknown:
            if bool(right(ended)) is by:
                return by
            raise
        return bool(right(ended))

    return found


def _matches(to: tuple[cel.Node, ...]) -> Value:
    import re2

    text, asked = value(to[0]), to[1]
    assert isinstance(asked, cel.Literal)  # noqa: S101 - `cel` takes no other
    found = re2.compile(str(asked.value))
    return lambda ended: found.search(text(ended)) is not None


def _as_text(of: Any) -> str:
    if isinstance(of, bool):
        return "true" if of else "false"
    return f"{of:g}" if isinstance(of, float) else str(of)
