"""What became of a call of gRPC's: a response, as far as Envoy would see one, or a failure of the way there.

gRPC's library makes statuses of its own for what happens to a connection or a stream, and only words tell
them from those of a server. Rules:

- They are gRPC's words, from the first on, with the code that gRPC gives them, and with no metadata: a status
  of a server may have some, gRPC's own has none.
- What they say of the connection counts if that confirms it (see `place`).
- That a stream was reset nothing can confirm. A server that hands on such words alone, from the first to the
  last, is taken at its word.
- A call whose time ran out here is a time-out of the try or of the route, whatever status it has.
- A status counts as Envoy counts one in the head of a response ("trailers only"), unless it is known that a
  head of its own came before: with metadata, or with a message. Then it is not tried again, as by Envoy.
  A head alone that says nothing shows nowhere.
- A peer that breaks the rules of HTTP/2 gave no answer. Where the connection breaks by that, it confirms it.
- A response that is not gRPC's is its HTTP status.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import grpc

from meshlib.core.actions import Attempt
from meshlib.core.local_reply import grpc_status_of
from meshlib.core.request import Failed, Failure, ResponseHead
from meshlib.dataplane.http.limits import EARLY
from meshlib_grpc.metadata import status_headers, to_headers

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
OK, UNKNOWN, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED
INTERNAL, RESOURCE_EXHAUSTED = grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED
DEADLINE_EXCEEDED, UNAVAILABLE = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE
_NOT_CONNECTED = ("failed to connect to all addresses", "empty address list", "DNS resolution failed")
_NOT_HTTP2 = ("http1.x server", "Failed parsing HTTP/2", "Connection preface")
_UNREADABLE = re.compile(r"(Stream removed \()?Failed parsing HTTP/2")
_TOO_LONG = re.compile(r"(Stream removed \()?received metadata size exceeds (hard|soft) limit")
"""What gRPC says of a peer that it does not understand, and of a head that is too long for it."""
_LOST = re.compile(
    r"(Stream removed( \(|$)|Socket closed|recvmsg:|sendmsg:|Connection (reset|dropped|closed|aborted)"
    r"|Broken pipe|GOAWAY|Goaway received|Transport closed|keepalive watchdog timeout|ping timeout"
    r"|Endpoint closing|End of TCP stream)"
)
_RESET = re.compile(
    r"(?:Stream removed \()?(?:RST_STREAM \()?Received RST_STREAM with error code (\d+)\)*", re.ASCII
)
_HTTP = re.compile(r"Received http2 header with status: (\d{3})", re.ASCII)
_REFUSED_STREAM = "7"
_RESETS = {"7": 14, "8": 1, "11": 8, "12": 7}
"""The code that gRPC gives to a reset of a stream (PROTOCOL-HTTP2, "Errors"); any other is INTERNAL."""
NOTHING = ResponseHead(200, status_headers(0))
"""The head of a whole response that went well and says nothing."""


class Ended(NamedTuple):
    """How a call of gRPC's ended."""

    code: grpc.StatusCode
    details: str = ""
    trailing: Any = ()


class Begun(NamedTuple):
    """A response whose head came, and then no message that could be told of, but the end."""

    head: ResponseHead
    failed: Failed | None
    """What broke it off; None: its status did come."""


class Doubt(Enum):
    """What a status may say of the connection, which the connection has to confirm."""

    NOT_CONNECTED = "none could be made"
    LOST = "it broke"
    BROKEN = "the peer broke it by what it said"


LEFT = Ended(CANCELLED, "Locally cancelled by application!")
"""As gRPC says of a call that the application ends."""
CLOSED = Ended(CANCELLED, "Channel closed!")
"""As gRPC says of a call whose channel the application closes."""


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


def doubt_of(ended: Ended) -> Doubt | None:
    """What the words of a status say of the connection; None: nothing."""
    if ended.trailing:
        return None
    if ended.code in (UNKNOWN, INTERNAL) and _UNREADABLE.match(ended.details):
        return Doubt.BROKEN
    if ended.code is not UNAVAILABLE:
        return None
    if ended.details.startswith(_NOT_CONNECTED):
        return Doubt.NOT_CONNECTED
    if _LOST.match(ended.details) and not _RESET.fullmatch(ended.details):
        return Doubt.LOST
    return None


def of_status(
    ended: Ended,
    initial: Any,
    attempt: Attempt,
    clock: Callable[[], float],
    connection: Doubt | None = None,
    *,
    message: bool = False,
) -> ResponseHead | Begun | Failed:
    """Of a call that came to a bad status before a message of it was handed out. `initial`: metadata that
    came before; `message`: whether a message did; `connection`: what became of it.
    """
    too_long = ended.code is RESOURCE_EXHAUSTED and _TOO_LONG.match(ended.details)
    if message or (initial and not too_long):  # which leaves some of it
        return Begun(begun(initial), failure(ended, attempt, clock, connection, head=True))
    failed = failure(ended, attempt, clock, connection)
    if failed is not None:
        return failed
    found = None if ended.trailing else _HTTP.fullmatch(ended.details)
    if found is not None and ended.code.value[0] == grpc_status_of(int(found[1])):
        return ResponseHead(int(found[1]))
    return ResponseHead(200, (*to_headers(ended.trailing), *status_headers(ended.code.value[0])))


def failure(
    ended: Ended,
    attempt: Attempt,
    clock: Callable[[], float],
    connection: Doubt | None = None,
    *,
    head: bool = False,
) -> Failed | None:
    """What happened to the connection, the stream, or the time; None: the status is the server's. `head`: the
    response had begun.
    """
    code, words = ended.code, ended.details
    if code is DEADLINE_EXCEEDED:
        now = clock()
        left = timeout_of(attempt, now)
        return too_late(attempt, now, head=head) if left is not None and left <= EARLY else None
    if connection is Doubt.NOT_CONNECTED:
        if any(one in words for one in _NOT_HTTP2):
            return Failed(Failure.PROTOCOL, words)
        return Failed(Failure.CONNECT_FAILED, _last(words), connected=False)
    if connection is Doubt.LOST:
        return Failed(Failure.BROKEN_OFF if head else Failure.RESET, words)
    if connection is Doubt.BROKEN or (
        code is RESOURCE_EXHAUSTED and not ended.trailing and _TOO_LONG.match(words)
    ):
        return Failed(Failure.BROKEN_OFF if head else Failure.PROTOCOL, words)
    reset = _RESET.fullmatch(words)
    if reset is None or ended.trailing:
        return None
    if code.value[0] != _RESETS.get(reset[1], INTERNAL.value[0]):
        return None
    if head:
        return Failed(Failure.BROKEN_OFF, words)
    return Failed(Failure.REFUSED_STREAM if reset[1] == _REFUSED_STREAM else Failure.REMOTE_RESET, words)


def _last(words: str) -> str:
    """What a person wants to know of "failed to connect to all addresses; last error: …"."""
    return words.partition("last error: ")[2].removeprefix("UNKNOWN: ") or words
