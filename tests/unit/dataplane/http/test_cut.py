"""An exchange that another thread gives up: what it waits for ends, and nothing is waited for after that."""

import math

import pytest

from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Broken, Limits


def limits_of(deadline: float | None = None) -> Limits:
    return Limits(lambda: 100.0, NO_TIMEOUTS, None, deadline)


@pytest.mark.parametrize("deadline", [None, 200.0])
def test_what_is_waited_for_ends_and_no_time_is_left(deadline: float | None) -> None:
    cut, limits, woken = Cut(), limits_of(deadline), list[str]()
    cut.during(limits, lambda: woken.append("first"))
    cut.during(limits, lambda: woken.append("second"))
    assert limits.left(None) == (None if deadline is None else 100.0)
    cut.now()
    assert woken == ["second"]
    assert limits.deadline == -math.inf
    with pytest.raises(Broken):
        limits.left(5.0)


def test_what_is_over_is_left_alone() -> None:
    cut, woken = Cut(), list[str]()
    cut.during(limits_of(), lambda: woken.append("never"))
    cut.over()
    cut.now()
    assert woken == []


def test_who_comes_too_late_does_not_begin() -> None:
    cut, limits, woken = Cut(), limits_of(), list[str]()
    cut.now()
    with pytest.raises(Broken, match="given up"):
        cut.during(limits, lambda: woken.append("never"))
    with pytest.raises(Broken):
        limits.left(None)
    assert woken == []
