"""When a certificate is renewed, and when that is late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.identity.renewal import Health, health, renew_at


@pytest.mark.parametrize(("roll", "at"), [(0.0, 1450.0), (0.5, 1500.0), (0.999, 1549.9)])
def test_at_half_its_life_give_or_take_a_twentieth(roll: float, at: float) -> None:
    assert renew_at(1000.0, 2000.0, roll) == pytest.approx(at)


@given(st.floats(0, 1e10), st.floats(0, 1e8), st.floats(0, 1, exclude_max=True))
def test_always_within_its_life(begins: float, life: float, roll: float) -> None:
    assert begins <= renew_at(begins, begins + life, roll) <= begins + life


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (0, Health.OK),
        (1599, Health.OK),
        (1600, Health.LATE),
        (1799, Health.LATE),
        (1800, Health.EXPIRING),
        (2000, Health.EXPIRED),
        (9999, Health.EXPIRED),
    ],
)
def test_stages(now: float, found: Health) -> None:
    assert health(1000.0, 2000.0, now) is found


def test_a_certificate_that_ends_before_it_begins_has_ended() -> None:
    assert health(2000.0, 1000.0, 1500.0) is Health.EXPIRED
