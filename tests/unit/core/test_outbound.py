"""The flow of one request, action by action, with loaded dice and a clock that stands."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from meshlib.core.actions import Attempt, BodyEnded, Deliver, Discard, Flow, Mirror, Raise, Reply, Sleep
from meshlib.core.balance.cluster import Cluster, HashTable, Limits, Policy, Resolution, Upstream
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.balance.hashing import HashCookie
from meshlib.core.balance.pick import MOST_UNLISTED, unlisted
from meshlib.core.headers import EMPTY
from meshlib.core.ledger import Ledger
from meshlib.core.outbound import flow
from meshlib.core.outlier_policy import InARow, OutlierPolicy
from meshlib.core.request import Failed, Failure, RequestHead, ResponseHead
from meshlib.core.retry import RetryOn, RetryPolicy
from meshlib.core.route.match import PathKind, PathMatch, RouteMatch
from meshlib.core.route.rule import (
    DirectResponse,
    Forward,
    MirrorPolicy,
    Origin,
    Redirect,
    Route,
    WeightedCluster,
)
from meshlib.core.route.table import RouteTable, VirtualHost
from meshlib.core.view import View

HALF = type("Half", (), {"random": lambda self: 0.5})()
NO_LIMITS = Limits()
ALL, NOWHERE = RouteMatch(), Origin()
RETRY = RetryPolicy(frozenset((RetryOn.FIVE_XX,)), retries=2)


class Body:
    def __init__(self, *, again: bool = True) -> None:
        self.again = again

    def replayable(self) -> bool:
        return self.again

    def once(self) -> None:
        pass


def view_of(
    action: Forward | Redirect | DirectResponse,
    *,
    limits: Limits = NO_LIMITS,
    healthy: bool = True,
    match: RouteMatch = ALL,
    origin: Origin = NOWHERE,
) -> View:
    route = Route("r", match, action, EMPTY, EMPTY, origin)
    table = RouteTable("a:80", [VirtualHost("v", ("a:80",), (route,), attempt_count=True)]).of("6")
    listed = EndpointSet((LocalityEndpoints("", 0, 1, (Endpoint("10.0.0.1", 80, healthy=healthy),)),))
    made = Cluster("c", "c", Policy.ROUND_ROBIN, upstream=Upstream(limits=limits), panic_threshold=0)
    return View("7", {"a:80": table}, {"c": made}, {"c": listed})


def forward(cluster: str = "c", **more: object) -> Forward:
    return Forward((WeightedCluster(cluster, 1, 1, EMPTY, EMPTY),), 1, **more)  # type: ignore[arg-type]


def begin(view: View, ledger: Ledger, body: Body | None = None, authority: str = "a:80", headers=()) -> Flow:  # type: ignore[no-untyped-def]
    head = RequestHead("GET", "http", authority, "/", headers)
    return flow(head, body or Body(), view, "a:80", ledger, lambda: 100.0, HALF, ("9.9.9.9", 80))


def in_flight(ledger: Ledger) -> tuple[int, int, list[int]]:
    state = ledger.cluster("c")
    return state.active, state.retries, [host.active for host in state.hosts.values()]


def test_a_response_is_delivered_and_the_slot_given_back_when_the_body_ended() -> None:
    ledger = Ledger()
    steps = begin(view_of(forward(timeout=2.0)), ledger)
    attempt = next(steps)
    assert isinstance(attempt, Attempt)
    assert (attempt.address, attempt.deadline, attempt.number) == (("10.0.0.1", 80), 102.0, 1)
    assert attempt.head.header(b"x-envoy-expected-rq-timeout-ms") == b"2000"
    assert attempt.head.header(b"x-envoy-attempt-count") == b"1"
    assert in_flight(ledger) == (1, 0, [1])
    assert isinstance(steps.send(ResponseHead(200)), Deliver)
    with pytest.raises(StopIteration):
        steps.send(BodyEnded())
    active, retries, hosts = in_flight(ledger)
    assert (active, retries, sum(hosts)) == (0, 0, 0)


def test_retries_end_with_the_last_response_and_its_flag() -> None:
    ledger = Ledger()
    steps = begin(view_of(forward(retry=RETRY)), ledger)
    next(steps)
    assert isinstance(steps.send(ResponseHead(503)), Discard)
    assert next(steps) == Sleep(0.0125)
    assert isinstance(next(steps), Attempt)
    assert steps.send(Failed(Failure.RESET)) == Sleep(0.025)
    assert in_flight(ledger) == (0, 1, [0])
    last = next(steps)
    assert isinstance(last, Attempt)
    assert last.head.header(b"x-envoy-attempt-count") == b"3"
    end = steps.send(ResponseHead(500))
    assert isinstance(end, Deliver)
    assert (end.facts.flag, end.facts.attempts) == ("URX", 3)


@pytest.mark.parametrize("stop_after", range(6))
def test_closing_at_each_action_gives_everything_back(stop_after: int) -> None:
    ledger = Ledger()
    steps = begin(view_of(forward(retry=RETRY, mirrors=(MirrorPolicy("c"),))), ledger)
    events: Iterator[object] = iter((None, None, ResponseHead(503), None, None, ResponseHead(200)))
    for _ in range(stop_after + 1):
        steps.send(next(events))  # type: ignore[arg-type]
    steps.close()
    active, retries, hosts = in_flight(ledger)
    assert (active, retries, sum(hosts)) == (0, 0, 0)


def test_a_body_that_is_gone_is_not_sent_again() -> None:
    steps = begin(view_of(forward(retry=RETRY)), Ledger(), Body(again=False))
    next(steps)
    assert isinstance(steps.send(Failed(Failure.RESET)), Raise)


@pytest.mark.parametrize(
    ("view", "authority", "status", "flag", "detail"),
    [
        (view_of(forward()), "b:80", 404, "NR", "no virtual host of a:80 has this host"),
        (View(), "a:80", 404, "NR", "no virtual host of a:80 has this host"),
        (
            view_of(forward(), match=RouteMatch(PathMatch(PathKind.EXACT, "/x"))),
            *("a:80", 404, "NR", "no rule of a:80 takes the request"),
        ),
        (view_of(forward("gone")), "a:80", 503, "NC", "cluster gone is unknown"),
        (view_of(forward(), healthy=False), "a:80", 503, "UH", "cluster c has no healthy endpoint"),
        (view_of(Redirect(host="b")), "a:80", 301, "-", "redirect of route r"),
        (view_of(DirectResponse(418)), "a:80", 418, "-", "direct response of route r"),
        (
            view_of(DirectResponse(418), origin=Origin("VirtualService d/a", "a.yaml:3")),
            *("a:80", 418, "-", "direct response of VirtualService d/a a.yaml:3"),
        ),
        (
            view_of(DirectResponse(502, blocks=True)),
            *("a:80", 502, "-", "outboundTrafficPolicy REGISTRY_ONLY: a is not in the mesh"),
        ),
    ],
)
def test_own_replies_say_why(view: View, authority: str, status: int, flag: str, detail: str) -> None:
    reply = next(begin(view, Ledger(), authority=authority))
    assert isinstance(reply, Reply)
    assert (reply.status, reply.facts.flag, reply.facts.detail) == (status, flag, detail)


def test_a_reply_for_too_many_who_wait_says_why() -> None:
    steps = begin(view_of(forward()), Ledger())
    next(steps)
    reply = steps.send(Failed(Failure.OVERFLOW, "3 requests wait for a connection"))
    assert isinstance(reply, Reply)
    assert (reply.status, reply.facts.flag) == (503, "UO")
    assert reply.facts.detail == "3 requests wait for a connection"


def test_the_applications_own_wishes_count_and_stop_here() -> None:
    headers = [(b"X-Envoy-Retry-On", b"reset"), (b"x-envoy-max-retries", b"1")]
    steps = begin(view_of(forward()), Ledger(), headers=headers)
    attempt = next(steps)
    assert isinstance(attempt, Attempt)
    assert attempt.head.header(b"x-envoy-retry-on") is attempt.head.header(b"x-envoy-max-retries") is None
    assert isinstance(steps.send(Failed(Failure.RESET)), Sleep)
    next(steps)
    assert isinstance(steps.send(Failed(Failure.RESET)), Raise)


def test_a_mirror_goes_out_before_the_first_try() -> None:
    steps = begin(view_of(forward(mirrors=(MirrorPolicy("c"), MirrorPolicy("c", 400_000)))), Ledger())
    assert isinstance(next(steps), Mirror)
    assert isinstance(next(steps), Attempt)


def test_a_copy_never_waits_and_keeps_to_the_limit_of_requests_too() -> None:
    limits = Limits(max_connections=9, max_requests=7)
    steps = begin(view_of(forward(mirrors=(MirrorPolicy("c"),)), limits=limits), Ledger())
    mirror, attempt = next(steps), next(steps)
    assert isinstance(mirror, Mirror)
    assert isinstance(attempt, Attempt)
    assert mirror.upstream == Upstream(limits=Limits(max_connections=7, max_requests=7), waits=False)
    assert attempt.upstream == Upstream(limits=limits)


def test_the_configuration_that_is_told_is_that_of_the_rules() -> None:
    told = [
        begin(view_of(forward("nobody")), Ledger()),
        begin(view_of(DirectResponse(410)), Ledger()),
        begin(view_of(forward()), Ledger(), authority="other"),
        begin(View("7"), Ledger()),
    ]
    replies = [next(steps) for steps in told]
    assert [r.facts.config_version for r in replies if isinstance(r, Reply)] == ["6", "6", "6", "7"]


def sticky_view(retry: RetryPolicy | None = None) -> View:
    """Ten endpoints in a ring; who is new gets a cookie."""
    cookie = HashCookie(b"user", 60, b"/")
    found = view_of(forward(hashing=(cookie,), retry=retry))
    listed = EndpointSet((LocalityEndpoints("", 0, 1, tuple(Endpoint("10.0.0.1", n) for n in range(10))),))
    made = Cluster("c", "c", Policy.RING_HASH, hash_table=HashTable())
    return View("7", found.tables, {"c": made}, {"c": listed})


def test_a_cookie_is_made_counts_at_once_and_stays_over_tries() -> None:
    view, ledger = sticky_view(RETRY), Ledger()
    steps = begin(view, ledger)
    first = next(steps)
    assert isinstance(first, Attempt)
    assert isinstance(steps.send(ResponseHead(503)), Discard)
    assert isinstance(next(steps), Sleep)
    second = next(steps)
    assert isinstance(second, Attempt)
    delivered = steps.send(ResponseHead(200, ((b"x", b"1"),)))
    assert isinstance(delivered, Deliver)
    (_, (name, value)) = delivered.headers
    assert (name, value[:6], value[22:]) == (b"set-cookie", b'user="', b'"; Max-Age=60; Path=/; HttpOnly')
    assert second.address == first.address

    again = next(begin(view, ledger, headers=[(b"cookie", value.partition(b";")[0])]))
    assert isinstance(again, Attempt)
    assert again.address == first.address


def test_what_was_made_for_nobody_is_not_said() -> None:
    steps = begin(sticky_view(), Ledger(), headers=[(b"cookie", b"user=jason")])
    next(steps)
    delivered = steps.send(ResponseHead(200))
    assert isinstance(delivered, Deliver)
    assert delivered.headers == ()


def test_a_cluster_may_pass_through_to_the_address_that_was_named() -> None:
    view = view_of(forward())
    passing = Cluster("c", "c", Policy.ROUND_ROBIN, Resolution.ORIGINAL)
    attempt = next(begin(View("7", view.tables, {"c": passing}, {}), Ledger()))
    assert isinstance(attempt, Attempt)
    assert attempt.address == ("9.9.9.9", 80)


def ejecting(resolution: Resolution) -> View:
    view = view_of(forward())
    made = replace(
        view.clusters["c"],
        resolution=resolution,
        outlier=OutlierPolicy(consecutive_5xx=InARow(1), max_ejection_percent=100, interval=10.0),
    )
    return replace(view, clusters={"c": made}, endpoints={})


def outcome(view: View, ledger: Ledger) -> object:
    """What becomes of a request whose try is answered 500."""
    steps = begin(view, ledger)
    action = next(steps)
    if isinstance(action, Attempt):
        action = steps.send(ResponseHead(500))
        steps.close()
    return action


def test_a_host_that_a_request_names_is_ejected_for_itself() -> None:
    view, ledger = ejecting(Resolution.DYNAMIC), Ledger()
    assert isinstance(outcome(view, ledger), Deliver)
    turned_away = outcome(view, ledger)
    assert isinstance(turned_away, Reply)
    assert (turned_away.status, turned_away.facts.flag) == (503, "UH")
    assert set(ledger.cluster("c").ejected) == {"a:80"}


def test_the_address_of_a_request_that_passes_through_is_not() -> None:
    view, ledger = ejecting(Resolution.ORIGINAL), Ledger()
    for _ in range(3):
        assert isinstance(outcome(view, ledger), Deliver)


def test_hosts_that_requests_name_are_forgotten_when_they_are_many() -> None:
    cluster = Cluster("c", "c", resolution=Resolution.DYNAMIC)
    state = Ledger().cluster("c")
    busy = state.host("busy:80")
    busy.active = 1
    for number in range(3 * MOST_UNLISTED):
        endpoint = Endpoint(f"h{number}", 80)
        assert unlisted(cluster, endpoint, state, 1.0, HALF) is endpoint
        state.host(endpoint.key)
        assert len(state.hosts) <= MOST_UNLISTED
    assert state.hosts["busy:80"] is busy


def test_a_retry_may_leave_the_priority_that_was_tried() -> None:
    near, far = (LocalityEndpoints("", n, 1, (Endpoint(f"10.0.{n}.1", 80),)) for n in (0, 1))
    view = view_of(forward(retry=replace(RETRY, leave_priorities_after=1)))
    listed = {"c": EndpointSet((near, far))}
    steps = begin(View("7", view.tables, view.clusters, listed), Ledger())
    hosts = []
    for _ in range(3):
        attempt = next(steps)
        assert isinstance(attempt, Attempt)
        hosts.append(attempt.address[0])
        after = steps.send(ResponseHead(503))
        if isinstance(after, Discard):
            assert isinstance(next(steps), Sleep)
    # When both were tried, all count again.
    assert hosts == ["10.0.0.1", "10.0.1.1", "10.0.0.1"]
