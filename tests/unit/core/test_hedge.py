"""Hedged tries, action by action, with loaded dice and a clock that the test sets."""

import dataclasses

import pytest

from meshlib.core.actions import (
    Action,
    Attempt,
    Await,
    Begin,
    BodyEnded,
    Deliver,
    Discard,
    Ended,
    Event,
    Mirror,
    Raise,
    Reply,
    Sleep,
)
from meshlib.core.balance.cluster import Cluster, Limits, Policy, Upstream
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.headers import EMPTY
from meshlib.core.hedge import HEADER, wanted
from meshlib.core.ledger import Ledger
from meshlib.core.outbound import flow
from meshlib.core.outlier_policy import InARow, OutlierPolicy
from meshlib.core.request import Failed, Failure, RequestHead, ResponseHead
from meshlib.core.retry import RetryOn, RetryPolicy
from meshlib.core.route.match import RouteMatch
from meshlib.core.route.rule import Forward, MirrorPolicy, Route, WeightedCluster
from meshlib.core.route.table import RouteTable, VirtualHost
from meshlib.core.view import View

HALF = type("Half", (), {"random": lambda self: 0.5})()
RETRY = RetryPolicy(frozenset((RetryOn.FIVE_XX,)), retries=2, per_try_timeout=1.0, base_interval=0.2)
FORWARD = Forward((WeightedCluster("c", 1, 1, EMPTY, EMPTY),), 1, timeout=10.0, retry=RETRY, hedged=True)
LOST = Failed(Failure.RESET, "lost")


class Body:
    known = True

    def replayable(self) -> bool:
        return True

    def whole(self) -> bool:
        return self.known

    def once(self) -> None:
        pass


class Played:
    """A flow, its clock and its ledger."""

    def __init__(
        self,
        forward: Forward = FORWARD,
        limits: Limits | None = None,
        outlier: OutlierPolicy | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        healthy: bool = True,
    ) -> None:
        route = Route("r", RouteMatch(), forward, EMPTY, EMPTY)
        table = RouteTable("a:80", [VirtualHost("v", ("a:80",), (route,), attempt_count=True)])
        ends = tuple(Endpoint("10.0.0.1", port, healthy=healthy) for port in (1, 2, 3))
        upstream = Upstream(limits=limits or Limits())
        cluster = Cluster("c", "c", Policy.ROUND_ROBIN, upstream=upstream, panic_threshold=0, outlier=outlier)
        listed = EndpointSet((LocalityEndpoints("", 0, 1, ends),))
        view = View("7", {"a:80": table}, {"c": cluster}, {"c": listed})
        self.body, self.now, self.ledger = Body(), 100.0, Ledger()
        head = RequestHead("GET", "http", "a:80", "/", list(headers))
        self.flow = flow(head, self.body, view, "a:80", self.ledger, lambda: self.now, HALF, ("9.9.9.9", 80))
        self.action: Action = next(self.flow)

    def send(self, event: Event = None, later: float = 0.0) -> Action:
        self.now += later
        self.action = self.flow.send(event)
        return self.action

    def begun(self) -> Attempt:
        """The try that begins now; the flow goes on."""
        assert isinstance(self.action, Begin)
        attempt = self.action.attempt
        self.send()
        return attempt

    def waits(self) -> float | None:
        assert isinstance(self.action, Await)
        return None if self.action.seconds is None else round(self.action.seconds, 6)

    def in_flight(self) -> tuple[int, int, int]:
        state = self.ledger.cluster("c")
        return state.active, state.retries, sum(host.active for host in state.hosts.values())


def hedged(played: Played) -> tuple[Attempt, Attempt]:
    """Two tries in flight."""
    first = played.begun()
    assert played.waits() == 1.0
    played.send(None, 1.0)
    assert played.waits() == 0.1  # its back-off
    played.send(None, 0.1)
    second = played.begun()
    assert played.in_flight() == (2, 1, 2)
    return first, second


def test_a_try_that_takes_its_time_goes_on_beside_the_next() -> None:
    played = Played()
    first, second = hedged(played)
    assert (first.number, second.number) == (1, 2)
    assert first.address != second.address
    assert (first.try_deadline, first.deadline, second.deadline) == (None, 110.0, 110.0)
    assert first.head.header(b"x-envoy-expected-rq-timeout-ms") == b"10000"
    assert second.head.header(b"x-envoy-expected-rq-timeout-ms") == b"8900"
    assert second.head.header(b"x-envoy-attempt-count") == b"2"
    assert played.waits() == 1.0
    won = played.send(Ended(1, ResponseHead(200)), 0.5)
    assert isinstance(won, Deliver)
    assert (won.facts.attempts, won.facts.endpoint, won.facts.flag) == (
        2,
        f"10.0.0.1:{first.address[1]}",
        "-",
    )
    assert played.in_flight() == (1, 1, 1)
    with pytest.raises(StopIteration):
        played.send(BodyEnded())
    assert played.in_flight() == (0, 0, 0)


def test_what_is_bad_waits_for_the_others_and_the_last_one_is_delivered() -> None:
    played = Played()
    hedged(played)
    assert isinstance(played.send(Ended(1, ResponseHead(503))), Discard)
    played.send()
    assert played.waits() == 1.0
    assert played.in_flight() == (1, 1, 1)
    # The second was not hedged yet: a third follows.
    assert isinstance(played.send(Ended(2, ResponseHead(502))), Discard)
    assert played.send() == Sleep(pytest.approx(0.125))  # type: ignore[arg-type]
    assert played.in_flight() == (0, 1, 0)
    played.send(None, 0.125)
    assert played.begun().number == 3
    last = played.send(Ended(3, ResponseHead(503)))
    assert isinstance(last, Deliver)
    assert last.facts.flag == "URX"


def test_a_failure_waits_for_the_others_even_if_nobody_would_try_it_again() -> None:
    retry = dataclasses.replace(RETRY, retry_on=frozenset((RetryOn.RETRIABLE_4XX,)))
    played = Played(dataclasses.replace(FORWARD, retry=retry))
    hedged(played)
    assert isinstance(played.send(Ended(2, LOST)), Await)
    assert played.waits() is None
    last = played.send(Ended(1, LOST))
    assert isinstance(last, Raise)
    assert (last.failed, last.facts.flag) == (LOST, "UC")
    with pytest.raises(StopIteration):
        played.send()
    assert played.in_flight() == (0, 0, 0)


def test_what_nobody_would_try_again_wins() -> None:
    played = Played()
    hedged(played)
    won = played.send(Ended(2, ResponseHead(404)))
    assert isinstance(won, Deliver)
    assert won.headers == ()


def test_a_response_during_the_back_off_of_the_next_try_wins() -> None:
    played = Played()
    played.begun()
    played.send(None, 1.0)
    assert isinstance(played.send(Ended(1, ResponseHead(200)), 0.05), Deliver)
    assert played.in_flight() == (1, 1, 1)


def test_when_no_retry_is_left_the_last_try_has_the_time_of_the_route() -> None:
    played = Played(dataclasses.replace(FORWARD, retry=dataclasses.replace(RETRY, retries=1)))
    hedged(played)
    played.send(None, 1.0)
    assert played.waits() is None
    late = Failed(Failure.TIMED_OUT)
    last = played.send(Ended(1, late), 8.0)
    assert isinstance(last, Raise)
    assert (last.failed, last.facts.flag) == (late, "UT,URX")
    played.flow.close()
    assert played.in_flight() == (0, 0, 0)


def test_a_breaker_without_a_slot_leaves_the_first_try_alone() -> None:
    played = Played(limits=Limits(max_retries=0))
    played.begun()
    played.send(None, 1.0)
    assert played.waits() is None
    won = played.send(Ended(1, ResponseHead(200)))
    assert isinstance(won, Deliver)
    assert won.facts.flag == "UO"


def test_a_body_that_is_still_read_is_not_sent_twice() -> None:
    played = Played()
    played.body.known = False
    played.begun()
    played.send(None, 1.0)
    assert played.waits() == 1.0
    played.body.known = True
    played.send(None, 1.0)
    assert played.waits() == 0.1


@pytest.mark.parametrize("retry", [None, dataclasses.replace(RETRY, retry_on=frozenset())])
def test_without_conditions_nothing_follows(retry: RetryPolicy | None) -> None:
    played = Played(dataclasses.replace(FORWARD, retry=retry))
    if retry is None:
        assert isinstance(played.action, Attempt)
        return
    played.begun()
    played.send(None, 1.0)
    assert played.waits() is None
    assert isinstance(played.send(Ended(1, LOST)), Raise)


def test_outlier_detection_hears_of_each_time_out_once() -> None:
    policy = OutlierPolicy(consecutive_5xx=InARow(5, 0), consecutive_gateway=None)
    played = Played(outlier=policy)
    first, second = hedged(played)
    state = played.ledger.cluster("c")

    def failures() -> list[int]:
        return [state.host(f"10.0.0.1:{each.address[1]}").failures_5xx for each in (first, second)]

    for each in (first, second):
        assert each.queue is not None
    assert failures() == [1, 0]
    played.send(Ended(1, Failed(Failure.TIMED_OUT)), 8.9)
    assert failures() == [1, 1]


def test_without_an_endpoint_there_is_no_try() -> None:
    played = Played(healthy=False)
    assert isinstance(played.action, Reply)
    assert (played.action.status, played.action.facts.flag) == (503, "UH")


def test_between_two_tries_the_time_of_the_route_may_run_out() -> None:
    retry = dataclasses.replace(RETRY, base_interval=30.0, max_interval=30.0)
    played = Played(dataclasses.replace(FORWARD, retry=retry))
    played.begun()
    assert isinstance(played.send(Ended(1, ResponseHead(503)), 0.5), Discard)
    assert played.send() == Sleep(9.5)
    last = played.send(None, 9.5)
    assert isinstance(last, Raise)
    assert (last.failed.how, last.facts.flag) == (Failure.TIMED_OUT, "UT")


def test_a_mirror_goes_out_once() -> None:
    played = Played(dataclasses.replace(FORWARD, mirrors=(MirrorPolicy("c"),)))
    assert isinstance(played.action, Mirror)
    played.send()
    hedged(played)
    assert isinstance(played.send(Ended(1, ResponseHead(200))), Deliver)


def test_a_flow_that_is_closed_gives_everything_back() -> None:
    played = Played()
    hedged(played)
    played.flow.close()
    assert played.in_flight() == (0, 0, 0)


@pytest.mark.parametrize(
    ("route", "said", "expected"),
    [
        *((False, None, False), (True, None, True), (False, b"true", True), (True, b"false", False)),
        *((True, b"no", True), (False, b"TRUE", False), (False, b"", False)),
    ],
)
def test_the_requests_own_word_counts(route: bool, said: bytes | None, expected: bool) -> None:
    headers = [] if said is None else [(HEADER, said)]
    assert wanted(route, RequestHead("GET", "http", "a", "/", headers)) is expected
    played = Played(dataclasses.replace(FORWARD, hedged=route), headers=tuple(headers))
    assert isinstance(played.action, Begin if expected else Attempt)
    attempt = played.action.attempt if isinstance(played.action, Begin) else played.action
    assert isinstance(attempt, Attempt)
    assert attempt.head.header(HEADER) is None
    told = attempt.head.header(b"x-envoy-expected-rq-timeout-ms")
    assert told == (b"10000" if expected else b"1000")
