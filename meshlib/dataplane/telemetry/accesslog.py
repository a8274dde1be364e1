"""The access log: one line a request, by Envoy's format operators, in Istio's default format or another.

Rules (Envoy):

- A format is text with `%OPERATOR%`, `%OPERATOR(argument)%` or `%OPERATOR(argument):length%`; `%%` is a
  percent sign. What a request does not have is `-`.
- `%REQ(A?B)%` is the header A, or B if it is absent; `:METHOD`, `:PATH`, `:AUTHORITY`, `:SCHEME` are headers.
- As JSON the same operators are values: numbers are numbers, what is absent is null.

A format is taken apart once. A line is written with one call, so that those of several processes do not mix.
"""

import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from meshlib.dataplane.telemetry.ended import Ended
from meshlib.errors import ConfigError

log = logging.getLogger(__name__)

TEXT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% '
    "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "
    '"%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% '
    '%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% '
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% "
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
"""Istio's default."""
JSON = {
    "start_time": "%START_TIME%",
    "route_name": "%ROUTE_NAME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}
"""Istio's default as JSON."""

Value = str | int | None
Operator = Callable[[Ended], Value]
Line = Callable[[Ended], bytes]


def _start_time(ended: Ended) -> str:
    moment = datetime.fromtimestamp(ended.started, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _host_only(address: str) -> str:
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


_OPERATORS: dict[str, Operator] = {
    "START_TIME": _start_time,
    "PROTOCOL": lambda ended: ended.protocol,
    "RESPONSE_CODE": lambda ended: ended.status,
    "RESPONSE_FLAGS": lambda ended: ended.flags,
    "RESPONSE_CODE_DETAILS": lambda ended: ended.details,
    "CONNECTION_TERMINATION_DETAILS": lambda ended: None,
    "UPSTREAM_TRANSPORT_FAILURE_REASON": lambda ended: ended.failure,
    "BYTES_RECEIVED": lambda ended: ended.received,
    "BYTES_SENT": lambda ended: ended.sent,
    "DURATION": lambda ended: int(ended.seconds * 1000),
    "UPSTREAM_HOST": lambda ended: ended.upstream,
    "UPSTREAM_CLUSTER": lambda ended: ended.cluster,
    "UPSTREAM_CLUSTER_RAW": lambda ended: ended.cluster,
    "UPSTREAM_LOCAL_ADDRESS": lambda ended: ended.upstream_local,
    "DOWNSTREAM_LOCAL_ADDRESS": lambda ended: ended.local,
    "DOWNSTREAM_REMOTE_ADDRESS": lambda ended: ended.remote,
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": lambda ended: _host_only(ended.remote),
    "DOWNSTREAM_PEER_URI_SAN": lambda ended: ended.principal,
    "REQUESTED_SERVER_NAME": lambda ended: ended.sni,
    "ROUTE_NAME": lambda ended: ended.route,
}


def text(form: str = TEXT) -> Line:
    """Lines of a format. ConfigError: it has an operator that is not known."""
    parts = _parts(form)
    breaks = sum(part.count("\n") for part in parts if isinstance(part, str))

    def line(ended: Ended) -> bytes:
        made = "".join(part if isinstance(part, str) else _shown(part(ended)) for part in parts)
        if made.count("\n") != breaks or "\r" in made:
            # No parser of ours lets such a header through; another server's may.
            made = "".join(p if isinstance(p, str) else " ".join(_shown(p(ended)).split()) for p in parts)
        return made.encode("latin-1", "replace")

    return line


def as_json(form: Mapping[str, str] = JSON) -> Line:
    """Lines of JSON, a member for each format. ConfigError: one has an operator that is not known."""
    members = [(json.dumps(name), _parts(value)) for name, value in form.items()]

    def line(ended: Ended) -> bytes:
        found = (f"{name}:{_json(parts, ended)}" for name, parts in members)
        return ("{" + ",".join(found) + "}\n").encode("ascii")

    return line


def _shown(value: Value) -> str:
    return "-" if value is None or value == "" else str(value)


def _json(parts: tuple[str | Operator, ...], ended: Ended) -> str:
    if len(parts) == 1 and not isinstance(parts[0], str):
        value = parts[0](ended)
        return json.dumps(None if value == "" else value)
    return json.dumps("".join(p if isinstance(p, str) else _shown(p(ended)) for p in parts))


def _parts(form: str) -> tuple[str | Operator, ...]:
    found: list[str | Operator] = []
    for number, piece in enumerate(form.split("%")):
        if number % 2 == 0:
            if piece:
                found.append(piece)
        else:
            found.append(_operator(piece, form) if piece else "%")
    if form.count("%") % 2:
        raise ConfigError(f"access log: {form!r} has a percent sign that nothing closes; `%%` is one")
    return tuple(found)


def _operator(said: str, form: str) -> Operator:
    name, parenthesis, rest = said.partition("(")
    if not parenthesis:
        if name in _OPERATORS:
            return _OPERATORS[name]
    else:
        argument, closed, length = rest.rpartition(")")
        limit = int(length[1:]) if length[:1] == ":" and length[1:].isdecimal() else None
        if closed and (not length or limit is not None) and name in ("REQ", "RESP"):
            return _header(argument, limit, of_request=name == "REQ")
    known = ", ".join((*_OPERATORS, "REQ(NAME)", "RESP(NAME)"))
    raise ConfigError(f"access log: found the operator {said!r} in {form!r}; allowed is {known}")


def _header(argument: str, limit: int | None, *, of_request: bool) -> Operator:
    names = tuple(name.strip().lower().encode("latin-1", "replace") for name in argument.split("?"))

    def value(ended: Ended) -> Value:
        for name in names:
            found = ended.head.header(name) if of_request else ended.response.get(name)
            if found is not None:
                return found.decode("latin-1")[:limit]
        return None

    return value


class Log:
    """Where lines go. Thread-safe; what can't be written is lost, with one warning."""

    def __init__(self, path: str, line: Line) -> None:
        """`path`: /dev/stdout, /dev/stderr, or a file that is appended to. ConfigError: it can't be."""
        self.path = path
        self._line = line
        self._guard = threading.Lock()
        self._failed = False
        try:
            self._to = os.dup(_STANDARD[path]) if path in _STANDARD else _open(path)
        except OSError as error:
            raise ConfigError(f"access_log: {path} can't be written: {error.strerror or error}") from None

    def __repr__(self) -> str:
        return f"<Log to {self.path}>"

    def write(self, ended: Ended) -> None:
        """One line."""
        try:
            os.write(self._to, self._line(ended))
        except OSError as error:
            with self._guard:
                failed, self._failed = self._failed, True
            if not failed:
                log.warning("the access log %s can't be written: %s", self.path, error.strerror or error)

    def __del__(self) -> None:
        # Not before: a request that ends late must not write into whatever has the number by then.
        if hasattr(self, "_to"):
            os.close(self._to)


_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}


def _open(path: str) -> int:
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    if stat.S_ISDIR(os.fstat(opened).st_mode):
        os.close(opened)
        raise IsADirectoryError(0, "it is a folder")
    return opened
