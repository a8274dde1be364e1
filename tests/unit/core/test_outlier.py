"""Ejection: after how many failures, for how long, of how many at most."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.core.balance.cluster import Cluster, Policy
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.balance.pick import pick
from meshlib.core.ledger import NEVER, ClusterState, Ledger
from meshlib.core.outlier import learn, status_of, sweep, watch
from meshlib.core.outlier_policy import FailurePercentage, InARow, OutlierPolicy, SuccessRate
from meshlib.core.request import Failed, Failure, Outcome, ResponseHead
from meshlib.core.view import View

TUTORIAL = OutlierPolicy(
    consecutive_5xx=None,
    consecutive_gateway=InARow(5),
    interval=30,
    base_ejection=60,
    max_ejection_percent=50,
)
ONE = OutlierPolicy(InARow(1), interval=10, base_ejection=25, max_ejection=60, max_ejection_percent=100)
REFUSED = Failed(Failure.CONNECT_FAILED, connected=False)
RESET = Failed(Failure.RESET)


class Detection:
    """One cluster of four endpoints under a policy, and a clock."""

    def __init__(self, policy: OutlierPolicy, seed: int = 1) -> None:
        self.policy = policy
        self.state = ClusterState()
        self.dice = random.Random(seed)
        self.now = 0.0
        watch(policy, self.state, self.now)

    def tell(self, key: str, *outcomes: Outcome | int, grpc: bool = False, late: bool = False) -> list[str]:
        """Tells of outcomes (a number is a response's status); who is ejected now."""
        for each in outcomes:
            outcome = ResponseHead(each) if isinstance(each, int) else each
            host = self.state.host(key)
            learn(
                self.policy,
                self.state,
                key,
                host,
                outcome,
                lambda: 4,
                lambda: self.now,
                self.dice,
                grpc=grpc,
                late=late,
            )
        return sorted(self.state.ejected)

    def look(self, now: float) -> list[str]:
        """Somebody looks, as a pick does; who is ejected now."""
        self.now = now
        if now >= self.state.wake:
            sweep(self.state, 4, now, self.dice)
        return sorted(self.state.ejected)

    def returns(self, key: str, *, after: float) -> float:
        """When it is back, by looking at the end of each interval."""
        now = after
        while key in self.look(now):
            now = (now // self.policy.interval + 1) * self.policy.interval
        return now


def test_the_tutorials_rule_ejects_after_five_gateway_errors() -> None:
    detection = Detection(TUTORIAL)
    assert [detection.tell("a", 503) for _ in range(5)] == [[], [], [], [], ["a"]]


@pytest.mark.parametrize("status", [200, 302, 404, 429, 600])
def test_a_good_answer_sets_the_count_back(status: int) -> None:
    detection = Detection(TUTORIAL)
    assert not detection.tell("a", 503, 503, 503, 503, status, 503, 503, 503, 503)
    assert detection.tell("a", 503) == ["a"]


def test_a_500_is_no_gateway_error_and_breaks_the_row() -> None:
    detection = Detection(TUTORIAL)
    assert not detection.tell("a", 503, 503, 503, 503, 500, 503, 503, 503, 503)
    assert Detection(OutlierPolicy(InARow(2), max_ejection_percent=100)).tell("a", 500, 503) == ["a"]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (REFUSED, 503),
        (RESET, 503),
        (Failed(Failure.PROTOCOL), 503),
        (Failed(Failure.CONNECT_TIMED_OUT), 503),
        (Failed(Failure.TIMED_OUT), 504),
        (Failed(Failure.TRY_TIMED_OUT), 504),
        (Failed(Failure.TIMED_OUT, connected=False), None),
        (Failed(Failure.OVERFLOW, connected=False), None),
        (ResponseHead(200, ((b"grpc-status", b"14"),)), 200),
    ],
)
def test_what_an_outcome_counts_as(outcome: Outcome, status: int | None) -> None:
    assert status_of(ONE, outcome) == status


@pytest.mark.parametrize(
    ("value", "status"), [(b"14", 503), (b"0", 200), (b"5", 404), (b"99", 500), (b"x", 500), (b"", 200)]
)
def test_a_grpc_status_counts_of_grpc_requests(value: bytes, status: int) -> None:
    response = ResponseHead(200, ((b"grpc-status", value),))
    assert status_of(ONE, response, grpc=True) == status
    assert status_of(ONE, ResponseHead(503), grpc=True) == 503


def test_after_the_head_a_lost_connection_counts_and_time_that_ran_out_does_not() -> None:
    assert Detection(ONE).tell("a", Failed(Failure.BROKEN_OFF), late=True) == ["a"]
    assert Detection(ONE).tell("a", Failed(Failure.TIMED_OUT), late=True) == []


def test_statuses_that_are_failures_can_be_named() -> None:
    policy = OutlierPolicy(InARow(1), errors=lambda r: r.status == 429, max_ejection_percent=100)
    assert [status_of(policy, ResponseHead(status)) for status in (200, 429, 503)] == [200, 500, 200]
    named = OutlierPolicy(errors=lambda r: r.status == 503)
    assert status_of(named, ResponseHead(503)) == 503
    assert status_of(policy, RESET) == 503


def test_split_failures_are_counted_apart() -> None:
    policy = OutlierPolicy(InARow(2), consecutive_local=InARow(2), split=True, max_ejection_percent=100)
    assert Detection(policy).tell("a", REFUSED, REFUSED) == ["a"]
    # What was connected is a success first.
    assert Detection(policy).tell("a", REFUSED, RESET, REFUSED) == ["a"]
    assert Detection(policy).tell("a", RESET, RESET, RESET) == []
    assert Detection(policy).tell("a", REFUSED, 503, REFUSED, REFUSED) == ["a"]
    assert Detection(policy).tell("a", Failed(Failure.TIMED_OUT, connected=False)) == []
    apart = OutlierPolicy(InARow(1), consecutive_local=None, split=True, max_ejection_percent=100)
    assert Detection(apart).tell("a", REFUSED, RESET) == []


def test_each_ejection_lasts_longer_up_to_the_maximum_and_ends_with_an_interval() -> None:
    detection = Detection(ONE)
    lasted = []
    now = 3.0
    for _ in range(4):
        detection.look(now)
        assert detection.tell("a", 503) == ["a"]
        back = detection.returns("a", after=now)
        lasted.append(back - now)
        now = back + 3
    # 25, 50, 60, 60, each to the end of the interval in which it runs out.
    assert lasted == [27, 57, 67, 67]


def test_each_interval_without_ejection_takes_one_off() -> None:
    detection = Detection(ONE)
    now = 5.0
    for _ in range(3):
        detection.look(now)
        detection.tell("a", 503)
        now = detection.returns("a", after=now) + 5
    host = detection.state.host("a")
    assert host.ejections == 3
    assert [(detection.look(now + after), host.ejections)[1] for after in (0, 10, 20, 30, 40)] == [
        3,
        2,
        1,
        0,
        0,
    ]
    assert not detection.state.marked


def test_what_was_counted_while_ejected_is_forgotten() -> None:
    detection = Detection(OutlierPolicy(InARow(3), interval=10, base_ejection=5, max_ejection_percent=100))
    assert detection.tell("a", 500, 500, 500, 500, 500) == ["a"]
    assert detection.look(10) == []
    assert detection.tell("a", 500, 500) == []
    assert detection.tell("a", 500) == ["a"]


def test_no_more_than_the_share_and_one_anyway_only_if_the_policy_says_so() -> None:
    def ejected(percent: int, always: bool = False) -> list[str]:
        policy = OutlierPolicy(InARow(1), max_ejection_percent=percent, always_eject_one=always)
        detection = Detection(policy)
        return [key for key in "abcd" if key in detection.tell(key, 503)]

    assert ejected(50) == ["a", "b"]
    assert ejected(24) == []
    assert ejected(24, always=True) == ["a"]
    assert ejected(50, always=True) == ["a", "b"]


def test_a_detector_may_eject_only_some_of_the_time_and_begins_anew_each_time() -> None:
    row = InARow(2, enforced=30)
    policy = OutlierPolicy(row, max_ejection_percent=100, base_ejection=0.5, max_ejection=0.5, interval=1)
    detection = Detection(policy)
    ejected = 0
    for turn in range(1_000):
        detection.look(float(turn))
        assert detection.tell("a", 500) == []
        ejected += detection.tell("a", 500) == ["a"]
    assert 250 < ejected < 350


def test_jitter_makes_an_ejection_longer() -> None:
    policy = OutlierPolicy(InARow(1), interval=0.1, base_ejection=10, jitter=10, max_ejection_percent=100)
    lasted = []
    for seed in range(50):
        detection = Detection(policy, seed)
        detection.tell("a", 500)
        lasted.append(detection.state.ejected["a"].ejected_until)
    assert min(lasted) >= 10
    assert max(lasted) <= 20
    assert len(set(lasted)) > 40


def _interval(policy: OutlierPolicy, told: dict[str, Iterable[Outcome | int]]) -> list[str]:
    """Who is ejected at the end of an interval in which that was told."""
    detection = Detection(policy)
    for key, outcomes in told.items():
        assert detection.tell(key, *outcomes) == []
    return detection.look(10)


def test_the_success_rate_is_compared_with_the_others() -> None:
    rate = SuccessRate(1.0, hosts=3, requests=4)
    policy = OutlierPolicy(None, success_rate=rate, max_ejection_percent=100)
    good, bad = [200] * 4, [200, 200, 500, 500]
    assert _interval(policy, {"a": bad, "b": good, "c": good}) == ["a"]
    assert _interval(policy, {"a": bad, "b": bad, "c": bad}) == []
    assert _interval(policy, {"a": bad, "b": good}) == []
    assert _interval(policy, {"a": bad[1:], "b": good, "c": good}) == []
    # 50, 100, 100, 100, 100: mean 90, deviation 20; Envoy's own example.
    wide = OutlierPolicy(None, success_rate=SuccessRate(1.9, 5, 4), max_ejection_percent=100)
    assert _interval(wide, {"a": bad, **dict.fromkeys("bcde", good)}) == ["a"]
    wider = OutlierPolicy(None, success_rate=SuccessRate(2.0, 5, 4), max_ejection_percent=100)
    assert _interval(wider, {"a": bad, **dict.fromkeys("bcde", good)}) == []


def test_a_share_of_failures_is_enough() -> None:
    share = FailurePercentage(50, hosts=2, requests=4)
    policy = OutlierPolicy(None, failure_percentage=share, max_ejection_percent=100)
    half, less = [200, 200, 500, 500], [200, 200, 200, 500]
    assert _interval(policy, {"a": half, "b": less}) == ["a"]
    assert _interval(policy, {"a": half}) == []
    assert _interval(policy, {"a": half[1:], "b": less}) == []
    both = OutlierPolicy(
        None, success_rate=SuccessRate(0.5, 2, 4), failure_percentage=share, max_ejection_percent=100
    )
    detection = Detection(both)
    detection.tell("a", *half)
    detection.tell("b", 200, 200, 200, 200)
    assert detection.look(10) == ["a"]
    assert detection.state.host("a").ejections == 1


def test_local_rates_count_what_the_process_saw() -> None:
    share = FailurePercentage(50, hosts=1, requests=2)
    local = OutlierPolicy(None, local_failure_percentage=share, split=True, max_ejection_percent=100)
    assert _interval(local, {"a": [REFUSED, REFUSED], "b": [500, 500]}) == ["a"]
    # A reset is a connection that was made, and a failure.
    assert _interval(local, {"a": [RESET, RESET], "b": [REFUSED, 200, 200]}) == ["a"]
    outside = OutlierPolicy(None, failure_percentage=share, split=True, max_ejection_percent=100)
    assert _interval(outside, {"a": [REFUSED, REFUSED], "b": [500, 500]}) == ["b"]


def test_rates_are_of_one_interval() -> None:
    policy = OutlierPolicy(None, failure_percentage=FailurePercentage(50, 1, 2), max_ejection_percent=100)
    detection = Detection(policy)
    assert detection.tell("a", 500) == []
    assert detection.look(10) == []
    assert detection.tell("a", 500) == []
    assert detection.look(35) == []
    detection.tell("a", 500, 500)
    # Nobody looked for long: it was ejected at 40 and has returned at 70.
    assert detection.look(65) == ["a"]
    assert detection.look(1_000) == []
    detection.tell("a", 500, 500)
    assert detection.look(2_000) == []


WORDS: tuple[Outcome | int, ...] = (200, 500, 503, REFUSED, RESET)
POLICIES = (
    ONE,
    OutlierPolicy(
        InARow(2), consecutive_gateway=InARow(1), interval=10, base_ejection=7, max_ejection_percent=50
    ),
    OutlierPolicy(None, consecutive_local=InARow(1), split=True, base_ejection=12, max_ejection_percent=75),
    OutlierPolicy(
        InARow(3), failure_percentage=FailurePercentage(50, 1, 1), base_ejection=15, max_ejection_percent=75
    ),
)


@given(
    policy=st.sampled_from(POLICIES),
    script=st.lists(
        st.tuples(st.integers(0, 800), st.sampled_from("abcd"), st.sampled_from(WORDS)),
        min_size=1,
        max_size=30,
    ),
)
def test_who_looks_seldom_finds_what_was_due_at_every_interval(
    policy: OutlierPolicy, script: list[tuple[int, str, Outcome | int]]
) -> None:
    seldom, often = Detection(policy), Detection(policy)
    tenths = 0
    for pause, key, word in script:
        for tick in range(tenths // 100 + 1, (tenths + pause) // 100 + 1):
            often.look(tick * 10.0)
        tenths += pause
        now = tenths / 10
        assert seldom.look(now) == often.look(now)
        assert seldom.tell(key, word) == often.tell(key, word)
        for host in "abcd":
            assert seldom.state.host(host).ejections == often.state.host(host).ejections


def test_a_long_silence_costs_nothing() -> None:
    detection = Detection(OutlierPolicy(InARow(1), interval=0.001, max_ejection_percent=100))
    detection.tell("a", 500)
    assert detection.look(1e9) == []
    assert detection.state.wake > 1e9


def test_another_policy_begins_anew_and_an_equal_one_does_not() -> None:
    detection = Detection(ONE)
    detection.tell("a", 500)
    state = detection.state
    equal = OutlierPolicy(InARow(1), interval=10, base_ejection=25, max_ejection=60, max_ejection_percent=100)
    watch(equal, state, 5.0)
    assert (list(state.ejected), state.wake, state.outlier is equal) == (["a"], 10, True)
    watch(TUTORIAL, state, 7.0)
    assert (list(state.ejected), state.wake, state.host("a").ejections) == ([], 37, 0)
    # What a request of before comes to is no news.
    assert detection.tell("a", 500) == []
    watch(None, state, 8.0)
    assert state.wake == NEVER


def test_an_endpoint_that_is_gone_is_not_ejected() -> None:
    detection = Detection(ONE)
    host = detection.state.host("a")
    detection.state.hosts.clear()
    learn(ONE, detection.state, "a", host, RESET, lambda: 4, lambda: 1.0, detection.dice)
    assert not detection.state.ejected


def listed(*ports: int) -> EndpointSet:
    return EndpointSet((LocalityEndpoints("", 0, 1, tuple(Endpoint("10.0.0.1", port) for port in ports)),))


def test_an_ejected_endpoint_is_not_picked_until_its_time_is_over() -> None:
    whole = listed(1, 2, 3, 4)
    cluster = Cluster("c", "c", Policy.ROUND_ROBIN, outlier=TUTORIAL)
    detection = Detection(TUTORIAL)

    def seen(now: float) -> set[int]:
        found = [pick(cluster, whole, detection.state, now, detection.dice) for _ in range(40)]
        return {endpoint.port for endpoint in found if endpoint is not None}

    assert seen(10.0) == {1, 2, 3, 4}
    detection.now = 20.0
    detection.tell("10.0.0.1:1", 503, 503, 503, 503, 503)
    assert seen(20.0) == {2, 3, 4}
    assert seen(89.9) == {2, 3, 4}
    assert seen(90.0) == {1, 2, 3, 4}


def test_who_leaves_the_cluster_is_no_longer_ejected() -> None:
    ledger = Ledger()
    state = ledger.cluster("c")
    watch(ONE, state, 0.0)
    host = state.host("10.0.0.1:1")
    learn(ONE, state, "10.0.0.1:1", host, RESET, lambda: 2, lambda: 1.0, random.Random(1))
    cluster = Cluster("c", "c", outlier=ONE)
    ledger.prune(View("1", clusters={"c": cluster}, endpoints={"c": listed(2)}), ["c"])
    assert (state.ejected, state.marked, state.hosts) == ({}, {}, {})
