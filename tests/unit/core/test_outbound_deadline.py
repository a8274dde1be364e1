"""A request made for a caller who waits for less than its route allows, or not any more."""

import pytest

from meshlib.core.actions import Attempt, BodyEnded, Deliver, Flow, Raise
from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.headers import EMPTY
from meshlib.core.ledger import ClusterState, HostState, Ledger
from meshlib.core.outbound import flow
from meshlib.core.outlier_policy import FailurePercentage, InARow, OutlierPolicy, SuccessRate
from meshlib.core.request import Failed, Failure, RequestHead, ResponseHead
from meshlib.core.retry import RetryOn, RetryPolicy
from meshlib.core.route.match import RouteMatch
from meshlib.core.route.rule import Forward, MirrorPolicy, Route, WeightedCluster
from meshlib.core.route.table import RouteTable, VirtualHost
from meshlib.core.view import View

HALF = type("Half", (), {"random": lambda self: 0.5})()
JUMPY = OutlierPolicy(
    InARow(1),
    InARow(1),
    InARow(1),
    SuccessRate(),
    FailurePercentage(),
    split=True,
    max_ejection_percent=100,
    always_eject_one=True,
)
TIMED_OUT, TRY_TIMED_OUT = Failed(Failure.TIMED_OUT), Failed(Failure.TRY_TIMED_OUT)


class Body:
    def replayable(self) -> bool:
        return True

    def whole(self) -> bool:
        return True

    def once(self) -> None:
        pass


class Case:
    """One endpoint, whose outliers are looked for, under a route of two seconds."""

    def __init__(self, **route: object) -> None:
        action = Forward((WeightedCluster("c", 1, 1, EMPTY, EMPTY),), 1, **{"timeout": 2.0, **route})  # type: ignore[arg-type]
        table = RouteTable(
            "a:80", [VirtualHost("v", ("*",), (Route("r", RouteMatch(), action, EMPTY, EMPTY),))]
        )
        listed = EndpointSet((LocalityEndpoints("", 0, 1, (Endpoint("10.0.0.1", 80),)),))
        self.view = View("7", {"a:80": table}, {"c": Cluster("c", "c", outlier=JUMPY)}, {"c": listed})
        self.ledger = Ledger()

    def begin(self, caller: float | None) -> Flow:
        head = RequestHead("GET", "http", "a", "/", [])
        nowhere = ("", 0)
        return flow(head, Body(), self.view, "a:80", self.ledger, lambda: 100.0, HALF, nowhere, caller)

    @property
    def state(self) -> ClusterState:
        return self.ledger.cluster("c")

    @property
    def host(self) -> HostState:
        return self.state.host("10.0.0.1:80")


def test_a_try_that_the_callers_time_cut_short_is_no_outcome_of_the_endpoint() -> None:
    case = Case()
    for _ in range(10):
        steps = case.begin(0.02)
        attempt = next(steps)
        assert isinstance(attempt, Attempt)
        assert (attempt.deadline, attempt.try_deadline) == (100.02, None)
        end = steps.send(TIMED_OUT)
        assert isinstance(end, Raise)
        assert (end.facts.flag, end.facts.attempts, end.failed.how) == ("UT", 1, Failure.TIMED_OUT)
        assert end.failed.detail == "the caller waited for less than the route allows"
    assert not case.state.ejected
    assert (case.host.requests, case.host.local_requests, case.state.retries) == (0, 0, 0)


@pytest.mark.parametrize("caller", [None, 2.5])
def test_the_time_of_the_route_is_the_endpoints_to_keep(caller: float | None) -> None:
    case = Case()
    steps = case.begin(caller)
    next(steps)
    end = steps.send(TIMED_OUT)
    assert isinstance(end, Raise)
    assert end.failed is TIMED_OUT
    assert list(case.state.ejected) == ["10.0.0.1:80"]


def test_the_time_of_a_try_counts_whoever_waits() -> None:
    case = Case(retry=RetryPolicy(frozenset((RetryOn.GATEWAY_ERROR,)), 0, per_try_timeout=0.25))
    steps = case.begin(1.0)
    attempt = next(steps)
    assert isinstance(attempt, Attempt)
    assert (attempt.deadline, attempt.try_deadline) == (101.0, 100.25)
    assert isinstance(steps.send(TRY_TIMED_OUT), Raise)
    assert case.state.ejected


@pytest.mark.parametrize("outcome", [ResponseHead(503), Failed(Failure.RESET)])
def test_what_an_endpoint_does_in_that_time_counts(outcome: ResponseHead | Failed) -> None:
    case = Case()
    steps = case.begin(0.02)
    next(steps)
    steps.send(outcome)
    assert case.state.ejected


def test_a_body_that_the_callers_time_cut_short_does_not_count() -> None:
    case = Case()
    steps = case.begin(0.02)
    next(steps)
    assert isinstance(steps.send(ResponseHead(200)), Deliver)
    with pytest.raises(StopIteration):
        steps.send(BodyEnded(False, TIMED_OUT))
    assert not case.state.ejected


@pytest.mark.parametrize("left", [0.0, -3.0])
def test_nothing_is_sent_for_who_waits_no_longer(left: float) -> None:
    case = Case(mirrors=(MirrorPolicy("c"),), retry=RetryPolicy(frozenset((RetryOn.FIVE_XX,)), 2))
    only, *more = case.begin(left)
    assert isinstance(only, Raise)
    assert not more
    assert (only.failed.how, only.failed.connected, only.facts.flag) == (Failure.TIMED_OUT, False, "UT")
    assert (only.facts.attempts, only.facts.endpoint, only.facts.cluster) == (0, "", "c")
    assert "nothing was sent" in only.facts.detail
    assert (case.state.active, case.state.retries, case.state.ejected) == (0, 0, {})


def test_who_is_told_of_the_time_never_gives_up_before_its_caller() -> None:
    attempt = next(Case().begin(0.0194))
    assert isinstance(attempt, Attempt)
    assert attempt.head.header(b"x-envoy-expected-rq-timeout-ms") == b"20"
