"""What became of a call of gRPC's: a response, as far as Envoy would see one, or a failure of the way there.

gRPC's library makes statuses of its own for what happens to a connection, and tells them apart from those of
a server by its words only. Rules:

- A call whose time ran out here is a time-out of the try or of the route, whatever status it has.
- A status without a message before it counts as Envoy counts one in the head of a response ("trailers only").
- A response that is not gRPC's is its HTTP status.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, Failure, ResponseHead
from meshlib.dataplane.http.limits import EARLY
from meshlib_grpc.metadata import status_headers, to_headers

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
OK, UNKNOWN, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED
DEADLINE_EXCEEDED, UNAVAILABLE = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE
_NOT_CONNECTED = ("failed to connect to all addresses", "empty address list", "DNS resolution failed")
_NOT_HTTP2 = ("http1.x server", "Failed parsing HTTP/2", "Connection preface")
_LOST = re.compile(
    r"Socket closed|recvmsg:|sendmsg:|Connection reset|Broken pipe|GOAWAY|Stream removed|Transport closed"
    r"|keepalive watchdog timeout|ping timeout|Endpoint closing|End of TCP stream|Goaway received"
    r"|Connection dropped|Connection closed|Connection aborted"
)
_RESET = re.compile(r"Received RST_STREAM with error code (\d+)")
_HTTP = re.compile(r"Received http2 header with status: (\d{3})$")
_REFUSED_STREAM = "7"
NOTHING = ResponseHead(200, status_headers(0))
"""The head of a whole response that went well and says nothing."""


class Ended(NamedTuple):
    """How a call of gRPC's ended."""

    code: grpc.StatusCode
    details: str = ""
    trailing: Any = ()


LEFT = Ended(CANCELLED, "Locally cancelled by application!")
"""As gRPC says of a call that the application ends."""


def timeout_of(attempt: Attempt, now: float) -> float | None:
    """Seconds that a call may take; None: for ever."""
    one, whole = attempt.try_deadline, attempt.deadline
    if whole is None:
        return None if one is None else one - now
    return (whole if one is None or whole <= one else one) - now


def too_late(attempt: Attempt, now: float, *, head: bool = False) -> Failed:
    """The time is up. `head`: the response has begun, so that the try's own time counts no more."""
    one, whole = attempt.try_deadline, attempt.deadline
    how = Failure.TRY_TIMED_OUT
    if head or one is None or (whole is not None and (whole <= one or now >= whole - EARLY)):
        how = Failure.TIMED_OUT
    return Failed(how, how.value)


def ok(initial: Any) -> ResponseHead:
    """The head of a whole response that went well."""
    return ResponseHead(200, (*to_headers(initial), *NOTHING.headers)) if initial else NOTHING


def begun(initial: Any) -> ResponseHead:
    """The head of a response that goes on."""
    return ResponseHead(200, tuple(to_headers(initial)))


def of_status(
    ended: Ended, initial: Any, attempt: Attempt, clock: Callable[[], float]
) -> ResponseHead | Failed:
    """Of a call that came to a bad status before it came to a message."""
    failed = failure(ended, attempt, clock)
    if failed is not None:
        return failed
    found = _HTTP.search(ended.details)
    if found is not None:
        return ResponseHead(int(found[1]))
    headers = (*to_headers(initial), *to_headers(ended.trailing), *status_headers(ended.code.value[0]))
    return ResponseHead(200, headers)


def failure(
    ended: Ended, attempt: Attempt, clock: Callable[[], float], *, head: bool = False
) -> Failed | None:
    """What happened to the connection, or to the time; None: the status is the server's. `head`: the response
    had begun.
    """
    code, words = ended.code, ended.details
    if code is DEADLINE_EXCEEDED:
        now = clock()
        left = timeout_of(attempt, now)
        return too_late(attempt, now, head=head) if left is not None and left <= EARLY else None
    if reset := _RESET.search(words):
        if head:
            return Failed(Failure.BROKEN_OFF, words)
        return Failed(Failure.REFUSED_STREAM if reset[1] == _REFUSED_STREAM else Failure.REMOTE_RESET, words)
    if code is not UNAVAILABLE:
        return None
    if words.startswith(_NOT_CONNECTED):
        if any(one in words for one in _NOT_HTTP2):
            return Failed(Failure.PROTOCOL, words)
        return Failed(Failure.CONNECT_FAILED, _last(words), connected=False)
    if _LOST.search(words):
        return Failed(Failure.BROKEN_OFF if head else Failure.RESET, words)
    return None


def _last(words: str) -> str:
    """What a person wants to know of "failed to connect to all addresses; last error: …"."""
    return words.partition("last error: ")[2].removeprefix("UNKNOWN: ") or words
