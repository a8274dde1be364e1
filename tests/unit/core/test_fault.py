"""Which requests a fault concerns, and what becomes of them, action by action."""

from collections.abc import Sequence

import pytest

from meshlib.core.actions import Attempt, BodyEnded, Deliver, Flow, Raise, Reply, Sleep
from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.fault import Abort, Aborted, Delay, Fault, Share
from meshlib.core.headers import EMPTY
from meshlib.core.ledger import Ledger
from meshlib.core.outbound import flow
from meshlib.core.request import Failed, Failure, Header, RequestHead, ResponseHead
from meshlib.core.retry import RetryOn, RetryPolicy
from meshlib.core.route.match import HeaderMatch, RouteMatch
from meshlib.core.route.rule import DirectResponse, Forward, Origin, Route, WeightedCluster
from meshlib.core.route.table import RouteTable, VirtualHost
from meshlib.core.route.text import TextKind, TextMatch
from meshlib.core.view import View

ALL, HALF = Share(100, 100), Share(50, 100)
SLOW = Delay(ALL, 2.0)
DOWN = Abort(ALL, Aborted(503))


class Dice:
    """Falls as it was told, one number after the other."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)


class Body:
    def replayable(self) -> bool:
        return True

    def once(self) -> None:
        pass


def begin(
    fault: Fault,
    ledger: Ledger | None = None,
    *,
    headers: Sequence[Header] = (),
    dice: Dice | None = None,
    caller: float | None = None,
    own: bool = False,
) -> Flow:
    retry = RetryPolicy(frozenset((RetryOn.FIVE_XX,)), retries=1)
    to = WeightedCluster("c", 1, 1, EMPTY, EMPTY, fault=fault)
    action = DirectResponse(410, b"gone") if own else Forward((to,), 1, timeout=1.0, retry=retry)
    route = Route("r", RouteMatch(), action, EMPTY, EMPTY, Origin("VirtualService d/a", "a.yaml:3"), fault)
    listed = EndpointSet((LocalityEndpoints("", 0, 1, (Endpoint("10.0.0.1", 80),)),))
    tables = {"a:80": RouteTable("a:80", [VirtualHost("v", ("*",), (route,))])}
    view = View("7", tables, {"c": Cluster("c", "c")}, {"c": listed})
    head = RequestHead("GET", "http", "a", "/", [(b"x-request-id", b"1"), *headers])
    rolls = dice or Dice(*[0.0] * 9)
    nowhere = ("", 0)
    return flow(head, Body(), view, "a:80", ledger or Ledger(), lambda: 100.0, rolls, nowhere, caller)


def test_a_delay_comes_first_and_counts_against_no_time_of_the_route() -> None:
    steps = begin(Fault(SLOW))
    assert next(steps) == Sleep(2.0)
    attempt = next(steps)
    assert isinstance(attempt, Attempt)
    assert attempt.deadline == 101.0
    end = steps.send(ResponseHead(200))
    assert isinstance(end, Deliver)
    assert end.facts.flag == "DI"


def test_an_abort_is_no_try_and_is_not_tried_again() -> None:
    steps = begin(Fault(abort=DOWN))
    reply = next(steps)
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (503, b"fault filter abort")
    assert reply.headers == ((b"content-type", b"text/plain"),)
    facts = reply.facts
    assert (facts.flag, facts.attempts, facts.cluster) == ("FI", 0, "c")
    assert facts.detail == "injected fault of VirtualService d/a a.yaml:3"
    assert list(steps) == []


def test_both() -> None:
    steps = begin(Fault(SLOW, DOWN))
    assert next(steps) == Sleep(2.0)
    reply = next(steps)
    assert isinstance(reply, Reply)
    assert reply.facts.flag == "DI,FI"


def test_a_fault_comes_before_an_answer_of_the_rule() -> None:
    reply = next(begin(Fault(abort=DOWN), own=True))
    assert isinstance(reply, Reply)
    assert (reply.status, reply.facts.flag, reply.facts.cluster) == (503, "FI", "")
    steps = begin(Fault(SLOW), own=True)
    next(steps)
    reply = next(steps)
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body, reply.facts.flag) == (410, b"gone", "DI")


def test_a_delayed_request_that_fails_says_so() -> None:
    steps = begin(Fault(SLOW))
    next(steps)
    next(steps)
    assert isinstance(steps.send(Failed(Failure.RESET)), Sleep)
    next(steps)
    end = steps.send(Failed(Failure.RESET))
    assert isinstance(end, Raise)
    assert end.facts.flag == "DI,UC,URX"


@pytest.mark.parametrize("caller", [2.0, 0.5])
def test_a_caller_waits_no_longer_than_it_said(caller: float) -> None:
    steps = begin(Fault(SLOW, DOWN), caller=caller)
    assert next(steps) == Sleep(caller)
    end = next(steps)
    assert isinstance(end, Raise)
    assert (end.failed.how, end.facts.flag) == (Failure.TIMED_OUT, "DI,UT")
    assert list(steps) == []


def test_what_is_left_to_the_caller_bounds_the_request() -> None:
    steps = begin(Fault(SLOW), caller=2.25)
    next(steps)
    attempt = next(steps)
    assert isinstance(attempt, Attempt)
    assert attempt.deadline == 100.25


def test_shares_are_drawn_each_for_itself() -> None:
    fault = Fault(Delay(HALF, 2.0), Abort(HALF, Aborted(503)))
    assert isinstance(next(begin(fault, dice=Dice(0.5, 0.5, 0.0))), Attempt)
    assert isinstance(next(begin(fault, dice=Dice(0.5, 0.49))), Reply)
    steps = begin(fault, dice=Dice(0.49, 0.5, 0.0))
    assert isinstance(next(steps), Sleep)
    assert isinstance(next(steps), Attempt)


@pytest.mark.parametrize("ends", ["closed", "delivered", "aborted"])
def test_a_fault_is_active_to_the_end_of_the_request(ends: str) -> None:
    ledger = Ledger()
    steps = begin(Fault(SLOW, DOWN if ends == "aborted" else None, max_active=1), ledger)
    next(steps)
    assert ledger.faults == 1
    assert isinstance(next(begin(Fault(SLOW, DOWN, max_active=1), ledger)), Attempt)
    if ends == "closed":
        steps.close()
    elif ends == "delivered":
        next(steps)
        steps.send(ResponseHead(200))
        assert ledger.faults == 1
        with pytest.raises(StopIteration):
            steps.send(BodyEnded())
    else:
        assert len(list(steps)) == 1
    assert ledger.faults == 0


def test_whom_it_concerns() -> None:
    match = HeaderMatch(b"x-a", TextMatch(TextKind.EXACT, "1"))
    fault = Fault(abort=DOWN, cluster="c", headers=(match,), nodes=frozenset((b"n",)))
    good = [(b"x-a", b"1"), (b"X-Envoy-Downstream-Service-Node", b"n")]
    head = RequestHead("GET", "http", "a", "/", good)
    assert fault.concerns(head, "c")
    assert not fault.concerns(head, "d")
    assert not fault.concerns(head, "")
    for number in range(2):
        missing = RequestHead("GET", "http", "a", "/", good[:number] + good[number + 1 :])
        assert not fault.concerns(missing, "c")
    assert isinstance(next(begin(fault)), Attempt)
    assert isinstance(next(begin(fault, headers=good)), Reply)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, None),
        ({"abort-request": "418"}, 418),
        ({"abort-request": "199"}, None),
        ({"abort-request": "600"}, None),
        ({"abort-request": "-418"}, None),
        ({"abort-grpc-request": "5"}, 200),
        ({"abort-request": "418", "abort-grpc-request": "5"}, 418),
        ({"abort-request": "418", "abort-request-percentage": "0"}, None),
        ({"abort-request": "418", "abort-request-percentage": "nothing"}, 418),
        ({"abort-request": "418", "abort-request-percentage": "1000"}, 418),
    ],
)
def test_what_is_left_to_the_request(headers: dict[str, str], status: int | None) -> None:
    pairs = [(f"x-envoy-fault-{name}".encode(), value.encode()) for name, value in headers.items()]
    first = next(begin(Fault(abort=Abort(ALL)), headers=pairs))
    assert (first.status if isinstance(first, Reply) else None) == status
    assert isinstance(next(begin(Fault(abort=Abort(Share(0, 100))), headers=pairs)), Attempt)
    fixed = next(begin(Fault(abort=DOWN), headers=pairs))
    assert isinstance(fixed, Reply)
    assert fixed.status == 503


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"1500", 1.5), (b"0", 0), (b"x", 0), (b"-5", 0), (b"", 0), (None, 0)]
)
def test_a_delay_by_header(value: bytes | None, seconds: float) -> None:
    headers = [] if value is None else [(b"x-envoy-fault-delay-request", value)]
    first = next(begin(Fault(Delay(ALL)), headers=headers))
    assert first == Sleep(seconds) if seconds else isinstance(first, Attempt)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(SLOW, DOWN), "delay 2 s for 100 %, abort 503 for 100 %"),
        (Fault(abort=Abort(HALF, Aborted(200, 14))), "abort with gRPC status 14 for 50 %"),
        (
            Fault(Delay(HALF), Abort(Share(1, 1_000_000))),
            "delay as long as the request says for 50 %, abort as the request says for 0.0001 %",
        ),
    ],
)
def test_in_words(fault: Fault, words: str) -> None:
    assert str(fault) == words
