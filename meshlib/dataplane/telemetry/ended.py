"""One request, when it has ended: everything that a span or a line of the access log may tell of it.

Both sides make one, if somebody wants to be told. Texts are as they were on the wire, decoded as Latin-1.
"""

from collections.abc import Collection, Mapping
from dataclasses import field
from itertools import chain

from meshlib.core.request import Failure, Header, RequestHead
from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a request. Empty text: there is none, or it is not known."""

    head: RequestHead
    """As the caller sent it."""
    status: int
    """0: there was no response."""
    started: float
    """Seconds since 1970."""
    seconds: float
    """From the request's beginning to the response's end."""
    flags: str = "-"
    details: str = ""
    """Envoy's RESPONSE_CODE_DETAILS: `via_upstream`, `no_healthy_upstream`, …"""
    protocol: str = "HTTP/1.1"
    response: Mapping[bytes, bytes] = field(default_factory=dict)
    """Headers by lower-case name."""
    received: int = 0
    """Bytes of the request's body."""
    sent: int = 0
    """Bytes of the response's body."""
    route: str = ""
    cluster: str = ""
    upstream: str = ""
    """`address:port` of the server."""
    upstream_local: str = ""
    failure: str = ""
    """Why the connection to the server failed."""
    local: str = ""
    """`address:port` at which the caller's connection arrived."""
    remote: str = ""
    """`address:port` of the caller."""
    sni: str = ""
    principal: str = ""
    """The caller's `spiffe://…`."""


_AROUND = len("  HTTP/1.1\r\nHost: \r\n\r\n")
"""What is written around method, path and host."""
VIA_UPSTREAM = "via_upstream"
_OF_FAILURE = {
    Failure.CONNECT_FAILED: "upstream_reset_before_response_started{remote_connection_failure}",
    Failure.CONNECT_TIMED_OUT: "upstream_reset_before_response_started{connection_timeout}",
    Failure.RESET_BEFORE_REQUEST: "upstream_reset_before_response_started{connection_termination}",
    Failure.RESET: "upstream_reset_before_response_started{connection_termination}",
    Failure.BROKEN_OFF: "upstream_reset_after_response_started{connection_termination}",
    Failure.REFUSED_STREAM: "upstream_reset_before_response_started{remote_refused_stream_reset}",
    Failure.REMOTE_RESET: "upstream_reset_before_response_started{remote_reset}",
    Failure.TRY_TIMED_OUT: "upstream_per_try_timeout",
    Failure.TIMED_OUT: "response_timeout",
    Failure.PROTOCOL: "upstream_reset_before_response_started{protocol_error}",
    Failure.OVERFLOW: "upstream_reset_before_response_started{overflow}",
}
_OF_FLAG = {
    "NR": "route_not_found",
    "NC": "cluster_not_found",
    "UH": "no_healthy_upstream",
    "UO": "upstream_reset_before_response_started{overflow}",
    "FI": "fault_filter_abort",
}


def details_of_failure(how: Failure) -> str:
    """Envoy's words for an attempt without a response."""
    return _OF_FAILURE[how]


def broken_off(how: Failure) -> tuple[str, str]:
    """Envoy's flag and words for a response whose body broke off."""
    if how in (Failure.TIMED_OUT, Failure.TRY_TIMED_OUT):
        return "UT", "response_timeout"
    if how is Failure.PROTOCOL:
        return "UPE", "upstream_reset_after_response_started{protocol_error}"
    return "UC", "upstream_reset_after_response_started{connection_termination}"


def details_of_reply(flag: str) -> str:
    """Envoy's words for an answer that the mesh made itself; the last of several flags says why."""
    return _OF_FLAG.get(flag.rpartition(",")[2], "direct_response")


def size(head: RequestHead) -> int:
    """Bytes of a request's head in HTTP/1.1."""
    return _AROUND + len(head.method) + len(head.path) + len(head.authority) + size_of_headers(head.headers)


def size_of_headers(headers: Collection[Header]) -> int:
    """Bytes of headers in HTTP/1.1."""
    return 4 * len(headers) + sum(map(len, chain.from_iterable(headers)))
