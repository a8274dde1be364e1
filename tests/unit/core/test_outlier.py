"""Ejection: after how many failures, for how long, of how many at most."""

import random

import pytest

from meshlib.core.balance.cluster import Cluster, OutlierPolicy, Policy
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.balance.pick import pick
from meshlib.core.ledger import ClusterState
from meshlib.core.outlier import end_ejections, learn, status_of
from meshlib.core.request import Failed, Failure, Outcome, ResponseHead

TUTORIAL = OutlierPolicy(
    consecutive_5xx=None, consecutive_gateway=5, interval=30, base_ejection=60, max_ejection_percent=50
)


def fail(state: ClusterState, policy: OutlierPolicy, key: str, times: int, now: float = 0.0) -> list[bool]:
    return [learn(policy, state, key, ResponseHead(503), 4, now) for _ in range(times)]


def test_the_tutorials_rule_ejects_after_five_gateway_errors() -> None:
    state = ClusterState()
    assert fail(state, TUTORIAL, "a", 5) == [False, False, False, False, True]
    assert list(state.ejected) == ["a"]


@pytest.mark.parametrize("status", [200, 302, 404, 429])
def test_a_good_answer_sets_the_count_back(status: int) -> None:
    state = ClusterState()
    fail(state, TUTORIAL, "a", 4)
    learn(TUTORIAL, state, "a", ResponseHead(status), 4, 0.0)
    assert fail(state, TUTORIAL, "a", 4) == [False] * 4


def test_a_500_is_no_gateway_error_and_breaks_the_row() -> None:
    state = ClusterState()
    fail(state, TUTORIAL, "a", 4)
    assert not learn(TUTORIAL, state, "a", ResponseHead(500), 4, 0.0)
    assert fail(state, TUTORIAL, "a", 5) == [False, False, False, False, True]
    plain = OutlierPolicy(consecutive_5xx=2)
    assert [learn(plain, ClusterState(), "b", ResponseHead(500), 4, 0.0)] == [False]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Failed(Failure.CONNECT_FAILED), 503),
        (Failed(Failure.RESET), 503),
        (Failed(Failure.CONNECT_TIMED_OUT), 504),
        (Failed(Failure.TIMED_OUT), 504),
        (ResponseHead(200, ((b"grpc-status", b"14"),)), 503),
        (ResponseHead(200, ((b"grpc-status", b"0"),)), 200),
    ],
)
def test_what_an_outcome_counts_as(outcome: Outcome, status: int) -> None:
    assert status_of(outcome) == status


def test_each_ejection_lasts_longer_up_to_the_maximum_and_time_forgives() -> None:
    policy = OutlierPolicy(
        consecutive_5xx=1, interval=10, base_ejection=30, max_ejection=70, max_ejection_percent=100
    )
    state = ClusterState()
    lasted = []
    now = 0.0
    for _ in range(4):
        assert fail(state, policy, "a", 1, now) == [True]
        until = state.ejected["a"].ejected_until
        assert until is not None
        lasted.append(until - now)
        now = until
        end_ejections(state, now)
        assert not state.ejected
    assert lasted == [30, 60, 70, 70]
    now += 1_000
    fail(state, policy, "a", 1, now)
    assert state.ejected["a"].ejected_until == now + 30


def test_no_more_than_the_share_and_one_anyway_only_if_the_policy_says_so() -> None:
    policy = OutlierPolicy(consecutive_5xx=1, max_ejection_percent=50)
    state = ClusterState()
    assert [fail(state, policy, key, 1) for key in "abcd"] == [[True], [True], [False], [False]]
    strict = OutlierPolicy(consecutive_5xx=1, max_ejection_percent=0)
    assert [fail(ClusterState(), strict, key, 1) for key in "ab"] == [[False], [False]]
    anyway = OutlierPolicy(consecutive_5xx=1, max_ejection_percent=0, always_eject_one=True)
    state = ClusterState()
    assert [fail(state, anyway, key, 1) for key in "ab"] == [[True], [False]]


def test_an_ejected_endpoint_is_not_picked_until_its_time_is_over() -> None:
    listed = tuple(Endpoint("10.0.0.1", port) for port in (1, 2, 3, 4))
    whole = EndpointSet((LocalityEndpoints("", 0, 1, listed),))
    cluster, state, dice = Cluster("c", "c", Policy.ROUND_ROBIN), ClusterState(), random.Random(1)
    fail(state, TUTORIAL, listed[0].key, 5, now=100.0)

    def seen(now: float) -> set[int]:
        found = [pick(cluster, whole, state, now, dice) for _ in range(40)]
        return {endpoint.port for endpoint in found if endpoint is not None}

    assert seen(100.0) == {2, 3, 4}
    assert seen(159.9) == {2, 3, 4}
    assert seen(160.0) == {1, 2, 3, 4}
