"""Formats of access logs, as they stand in resources: Istio's defaults, and what a format is made of.

Rules (Envoy):

- A format is text with `%OPERATOR%`, `%OPERATOR(argument)%` or `%OPERATOR(argument):length%`; `%%` is a
  percent sign. An argument ends at the first `)` after which the operator can end.
- Envoy refuses a listener whose format has an operator that it does not know.
- A format of JSON is an object; every text in it, at any depth, is a format.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

FILE_LOG = "envoy.access_loggers.file"
CEL_FILTER = "envoy.access_loggers.extension_filters.cel"
STDOUT, STDERR = "/dev/stdout", "/dev/stderr"
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
JSON: Mapping[str, Any] = {
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

PLAIN = frozenset(
    (
        *("START_TIME", "PROTOCOL", "RESPONSE_CODE", "RESPONSE_FLAGS", "RESPONSE_CODE_DETAILS"),
        *("CONNECTION_TERMINATION_DETAILS", "UPSTREAM_TRANSPORT_FAILURE_REASON", "BYTES_RECEIVED"),
        *("BYTES_SENT", "DURATION", "UPSTREAM_HOST", "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW"),
        *("UPSTREAM_LOCAL_ADDRESS", "DOWNSTREAM_LOCAL_ADDRESS"),
        *("DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT"),
        *("DOWNSTREAM_PEER_URI_SAN", "REQUESTED_SERVER_NAME", "ROUTE_NAME", "HOSTNAME"),
    )
)
"""Operators without an argument that every client writes."""
OF_HEADERS = frozenset(("REQ", "RESP", "REQ_WITHOUT_QUERY"))
"""Operators with names of headers that every client writes."""
ONLY_OF_ENVOY = frozenset(
    (
        *("GRPC_STATUS", "GRPC_STATUS_NUMBER", "REQUEST_DURATION", "RESPONSE_DURATION"),
        *("RESPONSE_TX_DURATION", "RESPONSE_FLAGS_LONG", "CONNECTION_ID", "UNIQUE_ID", "PATH"),
        *("UPSTREAM_WIRE_BYTES_SENT", "UPSTREAM_WIRE_BYTES_RECEIVED", "UPSTREAM_HEADER_BYTES_SENT"),
        *("UPSTREAM_HEADER_BYTES_RECEIVED", "DOWNSTREAM_WIRE_BYTES_SENT", "DOWNSTREAM_WIRE_BYTES_RECEIVED"),
        *("DOWNSTREAM_HEADER_BYTES_SENT", "DOWNSTREAM_HEADER_BYTES_RECEIVED", "UPSTREAM_PROTOCOL"),
        *("UPSTREAM_HOST_NAME", "UPSTREAM_REMOTE_ADDRESS", "UPSTREAM_REMOTE_PORT"),
        *("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "UPSTREAM_LOCAL_PORT", "UPSTREAM_CONNECTION_ID"),
        *("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "UPSTREAM_PEER_URI_SAN", "UPSTREAM_PEER_SUBJECT"),
        *("UPSTREAM_TLS_VERSION", "UPSTREAM_TLS_CIPHER", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS"),
        *("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_REMOTE_PORT"),
        *("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_LOCAL_PORT", "DOWNSTREAM_LOCAL_URI_SAN"),
        *("DOWNSTREAM_PEER_SUBJECT", "DOWNSTREAM_PEER_ISSUER", "DOWNSTREAM_PEER_SERIAL"),
        *("DOWNSTREAM_PEER_FINGERPRINT_256", "DOWNSTREAM_LOCAL_SUBJECT", "DOWNSTREAM_TLS_VERSION"),
        *("DOWNSTREAM_TLS_CIPHER", "DOWNSTREAM_TLS_SESSION_ID", "DOWNSTREAM_TRANSPORT_FAILURE_REASON"),
        *("FILTER_CHAIN_NAME", "VIRTUAL_CLUSTER_NAME", "STREAM_ID", "TRACE_ID", "ACCESS_LOG_TYPE"),
        *("LOCAL_REPLY_BODY", "UPSTREAM_REQUEST_ATTEMPT_COUNT"),
    )
)
"""Further operators without an argument that Envoy knows; a client in a process writes `-` for them."""
ONLY_OF_ENVOY_WITH_ARGUMENT = frozenset(
    (
        *("TRAILER", "DYNAMIC_METADATA", "CLUSTER_METADATA", "UPSTREAM_METADATA", "FILTER_STATE"),
        *("UPSTREAM_FILTER_STATE", "METADATA", "ENVIRONMENT", "PATH"),
    )
)
"""Likewise, with an argument."""
MOST_OPERATORS = 500
"""In one format: each costs every request."""


class Operator(NamedTuple):
    """One operator of a format."""

    name: str
    argument: str | None = None
    length: int | None = None
    """How much of the value is written at most."""

    def __str__(self) -> str:
        said = self.name if self.argument is None else f"{self.name}({self.argument})"
        return f"%{said}%" if self.length is None else f"%{said}:{self.length}%"


def pieces(form: str) -> tuple[str | Operator, ...]:
    """A format as texts and operators. ValueError: it is none."""
    found: list[str | Operator] = []
    plain, place = "", 0
    while (at := form.find("%", place)) >= 0:
        plain += form[place:at]
        if form.startswith("%%", at):
            plain, place = plain + "%", at + 2
            continue
        operator, place = _operator(form, at)
        if plain:
            found.append(plain)
        found.append(operator)
        plain = ""
    plain += form[place:]
    return (*found, plain) if plain else tuple(found)


def _operator(form: str, at: int) -> tuple[Operator, int]:
    """The operator that begins at a percent sign, and the place after it."""
    place = at + 1
    while form[place : place + 1].isalnum() or form[place : place + 1] == "_":
        place += 1
    name = form[at + 1 : place]
    argument = None
    if form[place : place + 1] == "(":
        begin = place + 1
        while (close := form.find(")", place + 1)) >= 0:
            argument, place = form[begin:close], close
            if (ended := _end(form, close + 1)) is not None:
                break
        else:
            ended = None
    else:
        ended = _end(form, place)
    if ended is None or not name or not name.isascii() or name != name.upper():
        raise ValueError(f"no operator begins at {form[at : at + 40]!r}; `%%` is a percent sign")
    length, after = ended
    return Operator(name, argument, length), after


def _end(form: str, place: int) -> tuple[int | None, int] | None:
    """The length and the place after the operator that ends here; None: it does not."""
    if form.startswith("%", place):
        return None, place + 1
    if not form.startswith(":", place):
        return None
    close = form.find("%", place)
    digits = form[place + 1 : close] if close > 0 else ""
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 6):
        return None
    return int(digits), close + 1


def operators(form: str | Mapping[str, Any]) -> Iterator[Operator]:
    """All operators of a format of text or JSON. ValueError: it is no format."""
    for text in [form] if isinstance(form, str) else texts(form):
        yield from (piece for piece in pieces(text) if isinstance(piece, Operator))


def texts(value: Any) -> Iterator[str]:
    """Every text within JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one)


def is_written(operator: Operator) -> bool:
    """Whether a client in a process knows what to write for it."""
    if operator.name in OF_HEADERS:
        return bool(operator.argument)
    return operator.name in PLAIN and (operator.argument is None or operator.name == "START_TIME")


def wrong(form: str | Mapping[str, Any]) -> str:
    """Why a format is not taken, by Envoy or by us; empty: it is."""
    try:
        listed = list(operators(form))
    except ValueError as error:
        return str(error)
    if len(listed) > MOST_OPERATORS:
        return f"{len(listed)} operators are more than {MOST_OPERATORS}"
    return next(filter(None, map(_unknown, listed)), "")


def _unknown(one: Operator) -> str:
    if one.name in OF_HEADERS:
        named = (one.argument or "").split("?")
        return "" if len(named) <= 2 and all(named) else f"{one} does not say one header, or A?B"
    with_argument = one.name == "START_TIME" or one.name in ONLY_OF_ENVOY_WITH_ARGUMENT
    if with_argument if one.argument else one.name in PLAIN | ONLY_OF_ENVOY:
        return ""
    return f"{one} is no operator of Envoy"
