"""Retries by a budget."""

import pytest

from meshlib.core.balance.cluster import Limits
from meshlib.core.breaker import Slots
from meshlib.core.budget import RetryBudget, count_try, most_retries, tries_of
from meshlib.core.ledger import ClusterState


@pytest.mark.parametrize(
    ("percent", "minimum", "requests", "retries"),
    [
        (20, 3, 0, 3),
        (20, 3, 19, 3),
        (20, 3, 20, 4),
        (20, 0, 4, 0),
        (20, 0, 5, 1),
        (100, 0, 7, 7),
    ],
)
def test_a_share_of_the_requests_but_at_least_some(
    percent: float, minimum: int, requests: int, retries: int
) -> None:
    assert most_retries(RetryBudget(percent, minimum), requests) == retries


def test_an_interval_has_ten_parts_and_its_oldest_goes_with_the_tenth() -> None:
    budget: RetryBudget = RetryBudget(100, 0, 10.0)
    tries: dict[int, int] = {}
    for now, before in ((0.0, 0), (0.9, 1), (5.0, 2), (9.9, 3), (10.0, 2), (14.9, 3), (15.0, 3), (99.0, 0)):
        assert tries_of(budget, tries, now) == before
        count_try(budget, tries, now)
        assert tries_of(budget, tries, now) == before + 1
        assert len(tries) <= 10


def test_an_interval_that_grows_or_shrinks_forgets() -> None:
    tries: dict[int, int] = {}
    for seconds in (10.0, 1000.0, 1.0):
        budget = RetryBudget(100, 0, seconds)
        assert tries_of(budget, tries, 5000.0) == 0
        count_try(budget, tries, 5000.0)
        assert len(tries) == 1


def test_with_an_interval_tries_count_from_their_connection_on_also_when_they_are_over() -> None:
    now = [100.0]
    state, limits = ClusterState(), Limits(max_requests=3, budget=RetryBudget(50, 0, 10.0))
    for _ in range(3):
        with Slots(state, lambda: now[0]) as over:
            over.begin(state.host("a"))
            assert over.goes_on(limits)
    with Slots(state, lambda: now[0]) as held, Slots(state, lambda: now[0]) as other:
        held.begin(state.host("a"))
        assert held.take_retry(limits)  # 3 tries; the one that has no connection yet is none
        other.begin(state.host("a"))
        assert not other.take_retry(limits)
        assert other.goes_on(limits)
        assert other.take_retry(limits)
        now[0] += 11.0
        assert not other.take_retry(limits)


def test_what_is_turned_away_is_no_try() -> None:
    state, limits = ClusterState(), Limits(max_requests=0, budget=RetryBudget(50, 0, 10.0))
    with Slots(state, lambda: 0.0) as slots:
        slots.begin(state.host("a"))
        assert not slots.goes_on(limits)
    assert state.tries == {}


def test_with_a_budget_the_number_of_retries_is_not_looked_at() -> None:
    state, limits = ClusterState(), Limits(max_retries=0, budget=RetryBudget(50, 0))
    with Slots(state, lambda: 0.0) as one, Slots(state, lambda: 0.0) as other:
        one.begin(state.host("a"))
        assert not one.take_retry(limits)
        other.begin(state.host("a"))
        assert one.take_retry(limits)
        assert not other.take_retry(limits)
    assert (state.active, state.retries) == (0, 0)
