"""What the errors of sockets and of the codec mean for an attempt."""

import ssl

from meshlib.core.request import Failed, Failure, RequestHead
from meshlib.dataplane.http.limits import Broken, Limits
from meshlib.dataplane.http.syntax import Malformed
from meshlib.dataplane.tls import BadFile, NotTrusted, words

_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))
"""RFC 9110, 9.2.2."""
MOST_UNSEEN = 3
"""How often a stream is made once more, unseen, whose connection its peer leaves: who restarts leaves all."""


def not_connected(error: Exception, limits: Limits, seconds: float) -> Failed:
    """A connection was not made; `seconds` was the time for it."""
    if isinstance(error, TimeoutError):
        passed = limits.passed("connect", seconds)
        if isinstance(passed, Broken):
            return passed.failed
        return Failed(Failure.CONNECT_TIMED_OUT, f"no connection within {seconds:g} s")
    if isinstance(error, ssl.SSLError | NotTrusted | BadFile):
        return Failed(Failure.CONNECT_FAILED, f"TLS: {words(error)}")
    return Failed(Failure.CONNECT_FAILED, str(error))


def without_head(error: Exception, written: bool, ended: bool, fresh: bool) -> Failed:
    """An exchange came to no response head: lost before the request left, lost after, or not HTTP.

    Bytes that end in the middle of a head are a lost connection, as for Envoy.
    """
    if not written:
        return Failed(Failure.RESET_BEFORE_REQUEST, str(error))
    if isinstance(error, Malformed) and not ended:
        return Failed(Failure.PROTOCOL, str(error))
    old = "" if fresh else ", which had been kept open"
    return Failed(Failure.RESET, f"the peer closed the connection{old} before a response")


def stale(head: RequestHead, body: object, silent: bool, written: bool, fresh: bool) -> bool:
    """Whether a lost exchange may be made once more on a new connection, unseen: the old one was closed in
    the moment in which it was used again, and what was sent does no harm twice.

    RFC 9110, 9.2.2: "A client SHOULD NOT automatically retry a request with a non-idempotent method unless it
    has some means to know that the request semantics are actually idempotent […] or some means to detect that
    the original request was never applied."
    """
    return not fresh and silent and isinstance(body, bytes) and (not written or head.method in _IDEMPOTENT)


def unseen(
    failed: Failed, head: RequestHead, body: object, *, fresh: bool, left: bool, silent: bool, before: int
) -> bool:
    """Whether a lost stream is made once more, unseen: its peer has not processed it, or what was sent does
    no harm twice. `fresh`: it was the first of its connection, `left`: that takes no more; `before`: how
    often it was made once more already.

    RFC 9113, 8.7: "Requests that have not been processed have not failed; clients MAY automatically retry
    them, even those with non-idempotent methods."
    """
    if fresh or not isinstance(body, bytes):
        return False
    match failed.how:
        case Failure.RESET_BEFORE_REQUEST:
            return before < MOST_UNSEEN
        case Failure.REFUSED_STREAM:
            # A connection that stays has a peer that has enough for now.
            return before < (MOST_UNSEEN if left else 1)
        case Failure.RESET:
            return silent and before < 1 and head.method in _IDEMPOTENT
        case _:
            return False


def broken_off(error: Exception, ended: bool) -> Failed:
    """A body did not come to its end: lost on the way (`ended`: the peer closed), or not HTTP."""
    if isinstance(error, Malformed) and not ended:
        return Failed(Failure.PROTOCOL, f"the body is not HTTP: {error}")
    return Failed(Failure.BROKEN_OFF, f"the body broke off: {error}")


def overflowing() -> Failed:
    """There is no connection, and too many requests wait for one or are in flight."""
    return Failed(Failure.OVERFLOW, Failure.OVERFLOW.value)


def closed() -> Failed:
    """The client is closed."""
    return Failed(Failure.CONNECT_FAILED, "the client is closed")
