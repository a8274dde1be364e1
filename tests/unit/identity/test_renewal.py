"""When a certificate is renewed: at half of its term, whatever the clock does, and never after its end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pki import HOUR, NOW, ca, leaf

from meshlib.identity.renewal import SLICE_S, Health, Term, health, is_due, pause, renew_at, wait

DAY = Term(0.0, 86400.0)
TERMS = st.builds(
    lambda begin, length: Term(begin, begin + length), st.floats(0, 4e9), st.floats(1, 90 * 86400)
)
JITTER = st.floats(-1, 1)


def test_at_half_of_the_term_give_or_take_a_hundredth() -> None:
    assert renew_at(DAY, 0.0) == 43200.0
    assert renew_at(DAY, 1.0) == pytest.approx(43200 + 864)
    assert renew_at(DAY, -1.0) == pytest.approx(43200 - 864)
    with pytest.raises(ValueError, match="not from -1 to 1"):
        renew_at(DAY, 1.1)


def test_a_term_begins_when_it_was_received() -> None:
    one = leaf(ca("x"), begin=NOW - 120, end=NOW + 60).certificate
    assert Term.of(one, NOW) == Term.of(one) == Term(NOW, NOW + 60)
    assert renew_at(Term.of(one, NOW), 0.0) == NOW + 30
    assert Term.of(one, NOW + HOUR) == Term(NOW + 60, NOW + 60)
    assert Term.of(one, NOW - HOUR) == Term(NOW - 120, NOW + 60)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (-121.0, Health.LATE),
        (-120.0, Health.OK),
        (0.0, Health.OK),
        (51839.0, Health.OK),
        (51840.0, Health.LATE),
        (64799.0, Health.LATE),
        (64800.0, Health.EXPIRING),
        (86399.9, Health.EXPIRING),
        (86400.0, Health.EXPIRED),
        (1e12, Health.EXPIRED),
    ],
)
def test_health(now: float, expected: Health) -> None:
    assert health(DAY, now) is expected
    assert expected.alarm is (expected is not Health.OK)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0.0, 60.0),
        (43100.0, 60.0),
        (43170.0, 30.0),
        (43200.0, 0.0),
        (1e9, 0.0),
        (-100.0, 60.0),
        (-121.0, 0.0),
    ],
)
def test_the_wait_is_cut_in_slices_and_a_jump_is_noticed(now: float, expected: float) -> None:
    assert wait(DAY, now, 0.0) == expected
    assert is_due(DAY, now, 0.0) is (expected == 0.0)


def test_pauses_double_up_to_five_minutes() -> None:
    assert [pause(DAY, 43200.0, n, 0.0) for n in (1, 2, 3, 8, 9, 10, 1000)] == [1, 2, 4, 128, 256, 300, 300]
    assert pause(DAY, 43200.0, 3, 1.0) == pytest.approx(4.8)
    assert pause(DAY, 86400.0, 20, 0.0) == pause(DAY, 90000.0, 20, 0.0) == 300


@given(TERMS, JITTER)
def test_renewal_is_inside_the_term_and_healthy(term: Term, jitter: float) -> None:
    at = renew_at(term, jitter)
    assert term.begin <= at < term.end
    assert health(term, at) is Health.OK


@given(TERMS, JITTER, st.floats(-1e9, 5e9))
def test_a_wait_never_passes_the_moment(term: Term, jitter: float, now: float) -> None:
    waited = wait(term, now, jitter)
    assert 0 <= waited <= SLICE_S
    assert waited == 0 or now + waited <= renew_at(term, jitter) + 1e-3


@given(TERMS, JITTER, st.floats(0, 1), st.integers(1, 10_000))
def test_a_pause_leaves_time_for_more_tries(term: Term, jitter: float, share: float, failures: int) -> None:
    now = term.begin + term.length * share
    waited = pause(term, now, failures, jitter)
    assert 0.5 <= waited <= 360
    if term.end - now > 10:
        assert waited <= (term.end - now) / 10
