"""A request on its way: cluster, rewrites, headers, timeouts; and the replies of rules themselves."""

import random

import pytest

from meshlib.core.headers import EMPTY, Append, EditLevel, HeaderEdit, HeaderEdits, parse_template
from meshlib.core.request import RequestHead
from meshlib.core.retry import RetryOn, RetryPolicy
from meshlib.core.route.forward import grpc_timeout, incoming, outgoing, pick_cluster, timeouts
from meshlib.core.route.match import PathKind, PathMatch, RouteMatch
from meshlib.core.route.redirect import location
from meshlib.core.route.reply import own_reply
from meshlib.core.route.rewrite import prefix_rewrite, regex_rewrite
from meshlib.core.route.rule import DirectResponse, Forward, Redirect, Route, Timeouts, WeightedCluster

HEAD = RequestHead("GET", "http", "reviews:80", "/api/v1?q=/api", [(b"x-a", b"1")])


def clusters(*weights: int) -> Forward:
    made, upto = [], 0
    for number, weight in enumerate(weights):
        upto += weight
        made.append(WeightedCluster(f"c{number}", weight, upto, EMPTY, EMPTY))
    return Forward(tuple(made), upto)


def add(name: bytes, value: str) -> HeaderEdits:
    return HeaderEdits((EditLevel((HeaderEdit(name, parse_template(value), Append.OVERWRITE_OR_ADD),)),))


def route(action: Forward | Redirect | DirectResponse, request: HeaderEdits = EMPTY) -> Route:
    return Route("r", RouteMatch(), action, request, add(b"x-route", "%ROUTE_NAME%"))


def test_weights_within_bounds_and_zero_never() -> None:
    forward, dice = clusters(0, 10, 0, 90, 0), random.Random(3)
    seen = [pick_cluster(forward, dice).name for _ in range(20_000)]
    assert set(seen) == {"c1", "c3"}
    assert 0.09 < seen.count("c1") / len(seen) < 0.11


class AlmostOne:
    """The highest roll there is."""

    def random(self) -> float:
        return 1 - 2**-53


def test_the_highest_roll_still_picks_a_cluster_with_weight() -> None:
    assert pick_cluster(clusters(1, 2**31, 0), AlmostOne()).name == "c1"


def test_nothing_to_change_is_the_same_head() -> None:
    forward = clusters(1)
    assert outgoing(HEAD, route(forward), forward, forward.clusters[0]) is HEAD


def test_edits_hosts_and_path_in_order() -> None:
    cluster = WeightedCluster("c", 1, 1, add(b"x-c", "%REQ(:authority)%"), EMPTY, authority="by-cluster")
    matched = PathMatch(PathKind.PREFIX, "/api")
    forward = Forward((cluster,), 1, rewrite=prefix_rewrite(matched, "/new"), authority="by-route")
    sent = outgoing(HEAD, route(forward, add(b"x-r", "%REQ(:authority)%")), forward, cluster)
    assert (sent.authority, sent.path) == ("by-route", "/new/v1?q=/api")
    assert sent.headers == [
        (b"x-a", b"1"),
        (b"x-c", b"reviews:80"),
        (b"x-r", b"by-cluster"),
        (b"x-envoy-original-host", b"by-cluster"),
        (b"x-envoy-original-path", b"/api/v1?q=/api"),
    ]


def test_response_edits_of_cluster_then_route() -> None:
    cluster = WeightedCluster("c", 1, 1, EMPTY, add(b"x-route", "cluster's"))
    forward = Forward((cluster,), 1)
    assert incoming([(b"a", b"1")], 200, HEAD, route(forward), cluster) == ((b"a", b"1"), (b"x-route", b"r"))


@pytest.mark.parametrize(
    ("kind", "value", "text", "path", "expected"),
    [
        (PathKind.PREFIX, "/api", "/", "/api/v1?q", "//v1?q"),
        (PathKind.PREFIX, "/api/", "/", "/api/v1", "/v1"),
        (PathKind.EXACT, "/api", "/new", "/API?q=1", "/new?q=1"),
        (PathKind.SEGMENTS, "/api", "/x", "/api/v1", "/x/v1"),
        (PathKind.REGEX, "/.*", "/x", "/api/v1?q=/", "/x?q=/"),
    ],
)
def test_prefix_rewrite(kind: PathKind, value: str, text: str, path: str, expected: str) -> None:
    rewrite = prefix_rewrite(PathMatch(kind, value, False), text)
    assert rewrite(RequestHead("GET", "http", "a", path)) == expected


@pytest.mark.parametrize(
    ("source", "substitution", "path", "expected"),
    [
        ("/api/(v[0-9])", r"/\1/api", "/api/v1/x?q=/api/v1", "/v1/api/x?q=/api/v1"),
        ("a", "b", "/aXa", "/bXb"),
        ("x*", "-", "/ab", "-/-a-b-"),
        ("(x)|(a)", r"<\1>", "/a", "/<>"),
        ("/a", r"\\\0", "/a", "\\/a"),
        (".*", "", "/a?q", ""),
        ("nothing", "y", "/a?q", "/a?q"),
    ],
)
def test_regex_rewrite(source: str, substitution: str, path: str, expected: str) -> None:
    assert regex_rewrite(source, substitution)(RequestHead("GET", "http", "a", path)) == expected


@pytest.mark.parametrize(("source", "substitution"), [("a", r"\1"), ("a", "\\"), ("a", r"\x"), ("(", "x")])
def test_bad_regex_rewrites(source: str, substitution: str) -> None:
    with pytest.raises(ValueError):
        regex_rewrite(source, substitution)


def test_nothing_left_of_a_path_leaves_it_as_it_was() -> None:
    forward = Forward((WeightedCluster("c", 1, 1, EMPTY, EMPTY),), 1, rewrite=regex_rewrite(".*", ""))
    assert outgoing(HEAD, route(forward), forward, forward.clusters[0]) is HEAD


@pytest.mark.parametrize(
    ("redirect", "authority", "expected"),
    [
        (Redirect(), "a:80", "http://a:80/api/v1?q=/api"),
        (Redirect(https=True), "a:80", "https://a/api/v1?q=/api"),
        (Redirect(https=True), "a:8080", "https://a:8080/api/v1?q=/api"),
        (Redirect(scheme="https"), "[::1]:80", "https://[::1]/api/v1?q=/api"),
        (Redirect(port=8443), "[::1]", "http://[::1]:8443/api/v1?q=/api"),
        (Redirect(port=80), "a:9080", "http://a:80/api/v1?q=/api"),
        (Redirect(host="b"), "a:9080", "http://b/api/v1?q=/api"),
        (Redirect(path="/n"), "a", "http://a/n?q=/api"),
        (Redirect(path="n", strip_query=True), "a", "http://a/n"),
        (Redirect(path="/n?x", strip_query=True), "a", "http://a/n?x"),
        (Redirect(strip_query=True), "a", "http://a/api/v1"),
        (Redirect(rewrite=regex_rewrite("/api", "/b")), "a", "http://a/b/v1?q=/api"),
        (Redirect(rewrite=regex_rewrite(".*", "")), "a", "http://a/api/v1?q=/api"),
    ],
)
def test_location(redirect: Redirect, authority: str, expected: str) -> None:
    assert location(redirect, RequestHead("GET", "http", authority, HEAD.path)) == expected


def test_replies_of_rules_are_edited() -> None:
    redirect, direct = Redirect(status=302, host="b"), DirectResponse(503, b"no")
    moved = own_reply(route(redirect), redirect, HEAD)
    assert (moved.status, moved.body) == (302, b"")
    assert moved.headers == ((b"location", b"http://b/api/v1?q=/api"), (b"x-route", b"r"))
    said = own_reply(route(direct), direct, HEAD)
    assert (said.status, said.body) == (503, b"no")
    assert said.headers == ((b"content-type", b"text/plain"), (b"x-route", b"r"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, 0),
        (b"", 0),
        (b"1S", 1),
        (b"200m", 0.2),
        (b"2H", 7200),
        (b"1x", 0),
        (b"S", 0),
        (b"123456789S", 0),
        (b"-1S", 0),
    ],
)
def test_grpc_timeout(value: bytes | None, expected: float) -> None:
    assert grpc_timeout(value) == expected


@pytest.mark.parametrize(
    ("timeout", "bound", "per_try", "asked", "expected"),
    [
        (2.0, None, 0.0, None, Timeouts(2, 0)),
        (2.0, None, 0.5, None, Timeouts(2, 0.5)),
        (2.0, None, 2.0, None, Timeouts(2, 0)),
        (0.0, None, 9.0, None, Timeouts(0, 9)),
        (2.0, None, 0.0, b"1S", Timeouts(2, 0)),
        (2.0, 0.0, 0.0, b"9S", Timeouts(9, 0)),
        (2.0, 5.0, 0.0, b"9S", Timeouts(5, 0)),
        (2.0, 5.0, 0.0, b"1S", Timeouts(1, 0)),
        (2.0, 5.0, 0.0, None, Timeouts(2, 0)),
    ],
)
def test_timeouts(
    timeout: float, bound: float | None, per_try: float, asked: bytes | None, expected: Timeouts
) -> None:
    retry = RetryPolicy(frozenset({RetryOn.FIVE_XX}), per_try_timeout=per_try)
    forward = Forward((), 0, timeout=timeout, retry=retry, max_grpc_timeout=bound)
    headers = [] if asked is None else [(b"content-type", b"application/grpc"), (b"grpc-timeout", asked)]
    assert timeouts(forward, RequestHead("POST", "http", "a", "/", headers)) == expected


@pytest.mark.parametrize("changed", ["", "route", "cluster", "cluster's host", "host", "path"])
def test_a_rule_knows_whether_it_edits_requests(changed: str) -> None:
    edits = add(b"x-a", "1")
    weighted = WeightedCluster(
        "c",
        1,
        1,
        edits if changed == "cluster" else EMPTY,
        edits,
        authority="h" if changed == "cluster's host" else "",
    )
    action = Forward(
        (weighted,),
        1,
        authority="h" if changed == "host" else "",
        rewrite=prefix_rewrite(PathMatch(PathKind.PREFIX, "/"), "/v1/") if changed == "path" else None,
    )
    made = route(action, edits if changed == "route" else EMPTY)
    head = RequestHead("GET", "http", "a", "/x")
    assert made.edits is bool(changed)
    assert (outgoing(head, made, action, weighted) is head) is not made.edits
