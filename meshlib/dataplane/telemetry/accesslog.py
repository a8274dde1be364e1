"""The lines of an access log: a format of Envoy, as text or JSON, becomes a function from a request to bytes.

Rules (Envoy):

- What a request does not have is `-`, in JSON null; or nothing, where the format leaves out what is empty.
- `%REQ(A?B)%` is the header A, or B if it is absent; `:METHOD`, `:PATH`, `:AUTHORITY`, `:SCHEME` are headers.
- As JSON a text that is one operator is its value: numbers are numbers. Texts with more are put together.
- An operator that only a real Envoy knows writes what is absent.

A format is taken apart once; nothing of it is looked at again for a request.
"""

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from meshlib.dataplane.telemetry.ended import Ended
from meshlib.xds.accesslog import JSON, TEXT, Operator, pieces

Value = str | int | None
Writes = Callable[[Ended], Value]
Line = Callable[[Ended], bytes]
_EMPTY_TEXT, _EMPTY_JSON = "-", "null"


def _start_time(ended: Ended) -> str:
    moment = datetime.fromtimestamp(ended.started, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _host_only(address: str) -> str:
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


_OPERATORS: dict[str, Writes] = {
    "START_TIME": _start_time,
    "PROTOCOL": lambda ended: ended.protocol or None,
    "RESPONSE_CODE": lambda ended: ended.status,
    "RESPONSE_FLAGS": lambda ended: ended.flags,
    "RESPONSE_CODE_DETAILS": lambda ended: ended.details or None,
    "CONNECTION_TERMINATION_DETAILS": lambda ended: None,
    "UPSTREAM_TRANSPORT_FAILURE_REASON": lambda ended: ended.failure or None,
    "BYTES_RECEIVED": lambda ended: ended.received,
    "BYTES_SENT": lambda ended: ended.sent,
    "DURATION": lambda ended: int(ended.seconds * 1000),
    "UPSTREAM_HOST": lambda ended: ended.upstream or None,
    "UPSTREAM_CLUSTER": lambda ended: ended.cluster or None,
    "UPSTREAM_CLUSTER_RAW": lambda ended: ended.cluster or None,
    "UPSTREAM_LOCAL_ADDRESS": lambda ended: ended.upstream_local or None,
    "DOWNSTREAM_LOCAL_ADDRESS": lambda ended: ended.local or None,
    "DOWNSTREAM_REMOTE_ADDRESS": lambda ended: ended.remote or None,
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": lambda ended: _host_only(ended.remote) or None,
    "DOWNSTREAM_PEER_URI_SAN": lambda ended: ended.principal or None,
    "REQUESTED_SERVER_NAME": lambda ended: ended.sni or None,
    "ROUTE_NAME": lambda ended: ended.route or None,
    "HOSTNAME": lambda ended: os.uname().nodename,
}


def text(form: str = TEXT, *, omit_empty: bool = False) -> Line:
    """Lines of a format. ValueError: it is none."""
    parts = _parts(form)
    breaks = sum(part.count("\n") for part in parts if isinstance(part, str))
    empty = "" if omit_empty else _EMPTY_TEXT

    def line(ended: Ended) -> bytes:
        made = "".join(part if isinstance(part, str) else _shown(part(ended), empty) for part in parts)
        if made.count("\n") != breaks or "\r" in made:
            # No parser of ours lets such a header through; another server's may.
            shown = (p if isinstance(p, str) else " ".join(_shown(p(ended), empty).split()) for p in parts)
            made = "".join(shown)
        return made.encode("latin-1", "replace")

    return line


def as_json(form: Mapping[str, Any] = JSON, *, omit_empty: bool = False) -> Line:
    """Lines of a JSON object whose texts are formats. ValueError: one is none."""
    written = _object(form, omit_empty=omit_empty)
    return lambda ended: (written(ended) + "\n").encode("ascii")


def _shown(value: Value, empty: str) -> str:
    return empty if value is None else str(value)


Json = Callable[[Ended], str]


def _object(form: Mapping[str, Any], *, omit_empty: bool) -> Json:
    members = [(json.dumps(name), _json(value, omit_empty=omit_empty)) for name, value in form.items()]

    def written(ended: Ended) -> str:
        found = ((name, value(ended)) for name, value in members)
        kept = (f"{name}:{value}" for name, value in found if not omit_empty or value != _EMPTY_JSON)
        return "{" + ",".join(kept) + "}"

    return written


def _json(form: Any, *, omit_empty: bool) -> Json:
    if isinstance(form, Mapping):
        return _object(form, omit_empty=omit_empty)
    if isinstance(form, list | tuple):
        listed = [_json(one, omit_empty=omit_empty) for one in form]
        return lambda ended: "[" + ",".join(one(ended) for one in listed) + "]"
    if not isinstance(form, str):
        constant = json.dumps(form)
        return lambda _: constant
    parts = _parts(form, as_bytes=False)
    if len(parts) == 1 and not isinstance(parts[0], str):
        value = parts[0]
        return lambda ended: json.dumps(value(ended))
    empty = "" if omit_empty else _EMPTY_TEXT
    return lambda ended: json.dumps(
        "".join(part if isinstance(part, str) else _shown(part(ended), empty) for part in parts)
    )


def _parts(form: str, *, as_bytes: bool = True) -> tuple[str | Writes, ...]:
    """Texts and what writes the operators. Of `as_bytes` a letter stands for each byte of UTF-8."""
    return tuple(
        _writes(piece)
        if isinstance(piece, Operator)
        else piece.encode("utf-8", "replace").decode("latin-1")
        if as_bytes
        else piece
        for piece in pieces(form)
    )


def _writes(operator: Operator) -> Writes:
    name, argument, length = operator
    if name in ("REQ", "RESP", "REQ_WITHOUT_QUERY") and argument:
        found = _header(argument, of_request=name != "RESP", query=name != "REQ_WITHOUT_QUERY")
    elif name == "START_TIME" and argument:
        found = _moment(argument)
    elif argument is None and name in _OPERATORS:
        found = _OPERATORS[name]
    else:
        return lambda _: None
    return found if length is None else _cut(found, length)


def _cut(of: Writes, length: int) -> Writes:
    def value(ended: Ended) -> Value:
        found = of(ended)
        return found[:length] if isinstance(found, str) else found

    return value


def _header(argument: str, *, of_request: bool, query: bool) -> Writes:
    names = tuple(name.strip().lower().encode("latin-1", "replace") for name in argument.split("?"))

    def value(ended: Ended) -> Value:
        for name in names:
            found = ended.head.header(name) if of_request else ended.response.get(name)
            if found is not None:
                shown = found.decode("latin-1")
                return shown if query else shown.partition("?")[0]
        return None

    return value


def _moment(form: str) -> Writes:
    """START_TIME in a form of its own: strftime's, with %s, and %3f, %6f, … for fractions of a second."""
    parts: list[str | int] = []
    place = 0
    while place < len(form):
        step = 2 if form[place] == "%" else 1
        piece = form[place : place + step]
        if piece[1:].isdecimal() and form[place + 2 : place + 3] == "f":
            parts.append(int(piece[1:]))
            step = 3
        elif piece in ("%f", "%s"):
            parts.append(9 if piece == "%f" else 0)
        else:
            parts.append(piece)
        place += step

    def value(ended: Ended) -> Value:
        moment = datetime.fromtimestamp(ended.started, UTC)
        fraction = f"{moment.microsecond:06d}000"
        found = (
            moment.strftime(one)
            if isinstance(one, str)
            else fraction[:one]
            if one
            else str(int(ended.started))
            for one in parts
        )
        return "".join(found)

    return value
