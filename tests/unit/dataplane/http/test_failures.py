"""What errors of sockets mean for an attempt."""

import errno

import pytest

from meshlib.core.request import Failed, Failure, RequestHead
from meshlib.dataplane.http.failures import broken_off, not_connected, stale, unseen, without_head
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Limits
from meshlib.dataplane.http.syntax import Malformed


def limits(now: float, deadline: float | None = None) -> Limits:
    return Limits(lambda: now, NO_TIMEOUTS, None, deadline)


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Failure.CONNECT_FAILED),
        (OSError(errno.EHOSTUNREACH, "unreachable"), Failure.CONNECT_FAILED),
        (UnicodeError("label too long"), Failure.CONNECT_FAILED),
        (TimeoutError("timed out"), Failure.CONNECT_TIMED_OUT),
        (TimeoutError(errno.ETIMEDOUT, "the system's"), Failure.CONNECT_TIMED_OUT),
    ],
)
def test_no_connection(error: Exception, how: Failure) -> None:
    assert not_connected(error, limits(1.0, 9.0), 0.5).how is how


def test_no_connection_within_the_time_of_the_route() -> None:
    assert not_connected(TimeoutError(), limits(9.0, 9.0), 0.5).how is Failure.TIMED_OUT
    assert not_connected(TimeoutError(), limits(1.0), 0.5) == Failed(
        Failure.CONNECT_TIMED_OUT, "no connection within 0.5 s"
    )


@pytest.mark.parametrize(
    ("error", "written", "ended", "how"),
    [
        (BrokenPipeError(), False, False, Failure.RESET_BEFORE_REQUEST),
        (ConnectionResetError(), True, False, Failure.RESET),
        (Malformed("no response head"), True, True, Failure.RESET),
        (Malformed("illegal status line"), True, False, Failure.PROTOCOL),
    ],
)
def test_no_head(error: Exception, written: bool, ended: bool, how: Failure) -> None:
    assert without_head(error, written, ended, fresh=True).how is how


def test_a_body_that_breaks_off_had_its_head() -> None:
    failed = broken_off(Malformed("peer closed connection"), ended=True)
    assert (failed.how, failed.detail) == (Failure.BROKEN_OFF, "the body broke off: peer closed connection")


def test_a_body_may_break_the_protocol() -> None:
    assert broken_off(ConnectionResetError(), ended=False).how is Failure.BROKEN_OFF
    failed = broken_off(Malformed("illegal chunk size"), ended=False)
    assert (failed.how, failed.detail) == (Failure.PROTOCOL, "the body is not HTTP: illegal chunk size")


def test_a_kept_connection_is_named() -> None:
    told = without_head(ConnectionResetError(), True, False, fresh=False).detail
    assert told == "the peer closed the connection, which had been kept open before a response"


@pytest.mark.parametrize(
    ("how", "method", "body", "facts", "times"),
    [
        # How often in a row at most.
        (Failure.RESET_BEFORE_REQUEST, "POST", b"x", {}, 3),
        (Failure.REFUSED_STREAM, "POST", b"x", {"left": True}, 3),
        (Failure.REFUSED_STREAM, "POST", b"x", {"left": False}, 1),
        (Failure.RESET, "GET", b"", {"left": True}, 1),
        (Failure.RESET, "PUT", b"x", {"left": True}, 1),
        # Never.
        (Failure.RESET, "POST", b"x", {"left": True}, 0),
        (Failure.RESET, "GET", b"", {"left": True, "silent": False}, 0),
        (Failure.REFUSED_STREAM, "GET", b"", {"left": True, "fresh": True}, 0),
        (Failure.RESET, "GET", b"", {"fresh": True}, 0),
        (Failure.REFUSED_STREAM, "PUT", iter([b"x"]), {"left": True}, 0),
        *((how, "GET", b"", {"left": True}, 0) for how in (Failure.REMOTE_RESET, Failure.PROTOCOL)),
        *((how, "GET", b"", {"left": True}, 0) for how in (Failure.BROKEN_OFF, Failure.TIMED_OUT)),
    ],
)
def test_how_often_a_lost_stream_is_made_once_more(
    how: Failure, method: str, body: object, facts: dict[str, bool], times: int
) -> None:
    head, said = (
        RequestHead(method, "http", "a", "/"),
        {"fresh": False, "left": False, "silent": True, **facts},
    )
    found = [unseen(Failed(how), head, body, **said, before=before) for before in range(5)]  # type: ignore[arg-type]
    assert found == [True] * times + [False] * (5 - times)


@pytest.mark.parametrize(
    ("method", "body", "silent", "written", "fresh", "expected"),
    [
        ("GET", b"", True, True, False, True),
        ("GET", b"", True, True, True, False),
        ("GET", b"", False, True, False, False),
        ("PUT", b"x", True, True, False, True),
        ("DELETE", b"", True, True, False, True),
        ("POST", b"x", True, True, False, False),
        ("PATCH", b"x", True, True, False, False),
        ("get", b"", True, True, False, False),
        ("POST", b"x", True, False, False, True),
        ("POST", b"x", True, False, True, False),
        ("PUT", iter([b"x"]), True, True, False, False),
        ("PUT", iter([b"x"]), True, False, False, False),
    ],
)
def test_what_is_sent_anew(
    method: str, body: object, silent: bool, written: bool, fresh: bool, expected: bool
) -> None:
    head = RequestHead(method, "http", "a", "/")
    assert stale(head, body, silent, written, fresh) is expected
