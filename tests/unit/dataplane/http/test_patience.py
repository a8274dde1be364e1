"""The kernel waits as long as the nearest limit says, and is seldom told."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from meshlib.core.request import Failure
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Broken, Limits, TooSlow
from meshlib.dataplane.http.patience import Patience


class Counted:
    """A socket that counts how often it is told."""

    def __init__(self, made: socket.socket) -> None:
        self.made = made
        self.times = 0

    def setsockopt(self, *told: Any) -> None:
        self.times += 1
        self.made.setsockopt(*told)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def until(deadline: float | None, now: float = 100.0) -> Limits:
    return Limits(lambda: now, NO_TIMEOUTS, None, deadline)


def test_a_call_in_vain_ends_when_the_time_is_over(ends: tuple[socket.socket, socket.socket]) -> None:
    patience = Patience(ends[0], socket.SO_RCVTIMEO, "read")
    patience.allow(0.005, 0.005)
    with pytest.raises(BlockingIOError):
        ends[0].recv(1)
    patience.allow(None, None)
    ends[1].send(b"x")
    assert ends[0].recv(1) == b"x"


def test_what_is_about_right_stays(ends: tuple[socket.socket, socket.socket]) -> None:
    counted: Any = Counted(ends[0])
    patience = Patience(counted, socket.SO_RCVTIMEO, "read")
    for left in (5.0, 5.0, 9.9, 5.1):
        patience.allow(left, 5.0)
    assert counted.times == 1
    for left in (4.9, 4.8, 3.8, 7.3):
        patience.allow(left, None)
    assert counted.times == 2
    for left in (0.5, 1e-9, None):
        patience.allow(left, None)
    assert counted.times == 5


def test_after_a_call_in_vain_it_is_said_whose_time_is_over(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    patience = Patience(ends[0], socket.SO_RCVTIMEO, "read")
    patience.allow(2.0, 2.0)
    assert patience.rest(until(None), 5.0, 5.0) == 3.0
    assert patience.rest(until(200.0), None, None) is None
    with pytest.raises(TooSlow, match="read took longer than 2 s"):
        patience.rest(until(None), 2.0, 2.0)
    with pytest.raises(TooSlow):
        patience.rest(until(200.0), 2.0, 2.0)
    for own in (None, 5.0):
        with pytest.raises(Broken) as broken:
            patience.rest(until(100.0), own, own)
        assert broken.value.failed.how is Failure.TIMED_OUT
