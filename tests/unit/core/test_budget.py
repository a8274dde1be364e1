"""Retries by a budget."""

import pytest

from meshlib.core.balance.cluster import Limits
from meshlib.core.breaker import Slots
from meshlib.core.budget import RetryBudget, most_retries
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


def test_with_a_budget_the_number_of_retries_is_not_looked_at() -> None:
    state, limits = ClusterState(), Limits(max_retries=0, budget=RetryBudget(50, 0))
    with Slots(state) as one, Slots(state) as other:
        one.begin(state.host("a"))
        assert not one.take_retry(limits)
        other.begin(state.host("a"))
        assert one.take_retry(limits)
        assert not other.take_retry(limits)
    assert (state.active, state.retries) == (0, 0)
