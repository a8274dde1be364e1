"""Which limit is the nearest, and whose it is when it passes."""

import pytest

from meshlib.core.request import Failure
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Broken, Limits, OwnTimeouts, TooSlow

NOW = 100.0


def limits(try_deadline: float | None = None, deadline: float | None = None, now: float = NOW) -> Limits:
    return Limits(lambda: now, NO_TIMEOUTS, try_deadline, deadline)


@pytest.mark.parametrize(
    ("try_deadline", "deadline", "own", "left"),
    [
        (None, None, None, None),
        (None, None, 5.0, 5.0),
        (101.0, None, None, 1.0),
        (101.0, 102.0, 5.0, 1.0),
        (103.0, 102.0, 5.0, 2.0),
        (101.0, 102.0, 0.5, 0.5),
    ],
)
def test_the_nearest_counts(
    try_deadline: float | None, deadline: float | None, own: float | None, left: float | None
) -> None:
    assert limits(try_deadline, deadline).left(own) == left


@pytest.mark.parametrize(
    ("try_deadline", "deadline", "how"),
    [
        (99.0, None, Failure.TRY_TIMED_OUT),
        (None, 100.0, Failure.TIMED_OUT),
        (99.0, 101.0, Failure.TRY_TIMED_OUT),
        (99.0, 100.0, Failure.TIMED_OUT),
        (101.0, 100.0, Failure.TIMED_OUT),
    ],
)
def test_one_that_has_passed_is_told(try_deadline: float | None, deadline: float, how: Failure) -> None:
    made = limits(try_deadline, deadline)
    with pytest.raises(Broken) as raised:
        made.left(0.001)
    assert raised.value.failed.how is how
    error = made.passed("read", 0.001)
    assert isinstance(error, Broken)
    assert error.failed.how is how


def test_the_applications_own_is_the_applications() -> None:
    error = limits(101.0, 102.0).passed("read", 0.5)
    assert isinstance(error, TooSlow)
    assert (error.operation, str(error)) == ("read", "read took longer than 0.5 s, the client's own limit")


def test_a_timer_that_fires_early_is_still_the_meshs() -> None:
    for own in (None, 0.5):
        error = limits(None, NOW + 0.001).passed("read", own)
        assert isinstance(error, Broken)
        assert error.failed.how is Failure.TIMED_OUT
    early = limits(101.0).passed("read", None)
    assert isinstance(early, Broken)
    assert early.failed.how is Failure.TRY_TIMED_OUT


def test_a_pause_is_time_that_the_application_waits() -> None:
    for own in (NO_TIMEOUTS, OwnTimeouts(connect=1.0, read=2.0)):
        with own.pausing(2.0) as seconds:
            assert seconds == 2.0
    with (
        pytest.raises(TooSlow, match=r"read took longer than 1\.5 s"),
        OwnTimeouts(read=1.5).pausing(2.0) as seconds,
    ):
        assert seconds == 1.5
