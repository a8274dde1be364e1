"""Which virtual host, which rule; the index against the plain scan; the walk."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.core.headers import EMPTY
from meshlib.core.request import RequestHead
from meshlib.core.route.match import HeaderMatch, PathKind, PathMatch, QueryMatch, RouteMatch
from meshlib.core.route.rule import DirectResponse, Route
from meshlib.core.route.table import RouteTable, VirtualHost
from meshlib.core.route.text import Presence, TextKind, TextMatch
from meshlib.core.route.walk import walk


class Loaded:
    """Dice that count how often they are rolled."""

    def __init__(self, number: float) -> None:
        self.number = number
        self.rolls = 0

    def random(self) -> float:
        self.rolls += 1
        return self.number


def route(name: str, match: RouteMatch) -> Route:
    return Route(name, match, DirectResponse(200), EMPTY, EMPTY)


def host(name: str, *domains: str) -> VirtualHost:
    return VirtualHost(name, domains, ())


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        ("reviews", "exact"),
        ("REVIEWS", "exact"),
        ("reviews:9080", "with port"),
        ("reviews:80", "all"),
        ("a.example.com", "suffix"),
        ("x.b.example.com", "longer suffix"),
        (".example.com", "all"),
        ("rev.x", "prefix"),
        ("rev.", "all"),
        ("unknown", "all"),
        ("", "all"),
    ],
)
def test_find_host(authority: str, expected: str) -> None:
    table = RouteTable(
        "t",
        [
            host("exact", "Reviews"),
            host("with port", "reviews:9080"),
            host("suffix", "*.example.com"),
            host("longer suffix", "*.b.example.com"),
            host("prefix", "rev.*"),
            host("all", "*"),
        ],
    )
    found = table.find_host(authority)
    assert found is not None
    assert found.name == expected


def test_no_host_is_none_and_so_is_the_match() -> None:
    table = RouteTable("t", [host("only", "reviews")])
    assert table.find_host("ratings") is None
    assert table.match(RequestHead("GET", "http", "ratings", "/"), Loaded(0)) is None


@pytest.mark.parametrize("authority", ["reviews", "reviews:80", "reviews:9080", "[::1]:80", "[::1]"])
def test_ports_can_be_ignored(authority: str) -> None:
    table = RouteTable("t", [host("only", "reviews", "[::1]")], ignore_port=True)
    assert table.find_host(authority) is not None


def test_a_domain_twice_is_refused_in_any_case() -> None:
    with pytest.raises(ValueError, match="the domain reviews stands twice"):
        RouteTable("t", [host("a", "reviews"), host("b", "Reviews")])
    with pytest.raises(ValueError, match="only one virtual host"):
        RouteTable("t", [host("a", "*"), host("b", "*")])


PATHS = ("", "/", "/a", "/A", "/a/b", "/b", "/a/b/c", "/%2f")
VALUES = ("1", "2", "a,b", "")
headers = st.builds(
    HeaderMatch,
    st.sampled_from([f"x-{n}".encode() for n in range(12)]),
    st.builds(TextMatch, st.sampled_from([TextKind.EXACT, TextKind.PREFIX]), st.sampled_from(VALUES))
    | st.builds(Presence, st.booleans()),
    st.booleans(),
    st.booleans(),
)
paths = st.builds(
    PathMatch,
    st.sampled_from([PathKind.PREFIX, PathKind.EXACT, PathKind.SEGMENTS]),
    st.sampled_from(PATHS),
    st.booleans(),
) | st.builds(PathMatch, st.just(PathKind.REGEX), st.sampled_from(["/.*", "/a.*", "/[ab]"]))
matches = st.builds(
    RouteMatch,
    paths,
    st.lists(headers, max_size=2).map(tuple),
    st.lists(st.builds(QueryMatch, st.just("q"), st.just(Presence())), max_size=1).map(tuple),
    st.none() | st.sampled_from([0, 500_000, 1_000_000]),
)
requests = st.builds(
    RequestHead,
    st.just("GET"),
    st.just("http"),
    st.just("a"),
    st.builds(lambda a, b: (a or "/") + b, st.sampled_from(PATHS), st.sampled_from(["", "?q=1", "?x"])),
    st.lists(
        st.tuples(
            st.sampled_from([f"X-{n}".encode() for n in range(12)]),
            st.sampled_from([b"1", b"2", b"a,b", b"a", b""]),
        ),
        max_size=4,
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(matches, max_size=12), st.lists(requests, min_size=1, max_size=5), st.floats(0, 0.999))
def test_the_index_gives_what_a_plain_scan_gives(
    rules: list[RouteMatch], heads: list[RequestHead], roll: float
) -> None:
    virtual = VirtualHost("v", ("*",), tuple(route(str(n), match) for n, match in enumerate(rules)))
    for head in heads:
        expected = virtual.scan(head, roll)
        assert virtual.match(head, Loaded(roll)) is expected
        steps = list(walk(virtual, head, roll))
        assert [step.route for step in steps if step.matched] == ([expected] if expected else [])
        assert [step.number for step in steps] == list(range(len(steps)))


def test_one_roll_serves_all_shares_of_a_request() -> None:
    rules = tuple(route(str(n), RouteMatch(share=share)) for n, share in enumerate((0, 100_000, 900_000)))
    virtual, dice = VirtualHost("v", ("*",), rules), Loaded(0.5)
    found = virtual.match(RequestHead("GET", "http", "a", "/"), dice)
    assert found is rules[2]
    assert dice.rolls == 1


def test_without_shares_no_dice_are_rolled() -> None:
    virtual, dice = VirtualHost("v", ("*",), (route("r", RouteMatch()),)), Loaded(0.5)
    assert virtual.match(RequestHead("GET", "http", "a", "/"), dice) is virtual.routes[0]
    assert dice.rolls == 0


def test_shares_are_met_on_average() -> None:
    virtual = VirtualHost("v", ("*",), (route("r", RouteMatch(share=250_000)),))
    dice, head = random.Random(1), RequestHead("GET", "http", "a", "/")
    hits = sum(virtual.match(head, dice) is not None for _ in range(10_000))
    assert 2_300 < hits < 2_700


def test_the_walk_says_why_a_share_did_not_take_part() -> None:
    virtual = VirtualHost("v", ("*",), (route("r", RouteMatch(share=250_000)),))
    [step] = walk(virtual, RequestHead("GET", "http", "a", "/"), 0.9)
    assert step.why_not == "the rule takes part for 25% of requests, not for this one"


def test_a_host_that_was_found_before_is_the_same_and_few_are_remembered() -> None:
    table = RouteTable("t", [host("exact", "reviews"), host("suffix", "*.b"), host("all", "*")])
    names = ["Reviews", "x.b", "", *(f"{number}.b" for number in range(1500)), "reviews"]
    for _ in range(2):
        for name in names:
            assert table.find_host(name) is table._find_host(name)
        assert len(table._found) <= 1000
    nobody = RouteTable("t", [host("exact", "reviews")])
    assert nobody.find_host("x") is nobody.find_host("x") is None


@pytest.mark.parametrize(
    "match",
    [
        RouteMatch(),
        RouteMatch(PathMatch(PathKind.EXACT, "/a")),
        RouteMatch(PathMatch(PathKind.REGEX, "/[ab]")),
        RouteMatch(PathMatch(PathKind.PREFIX, "/A", case_sensitive=False)),
        RouteMatch(headers=(HeaderMatch(b"a", Presence(True)),)),
        RouteMatch(query=(QueryMatch("a", Presence(True)),)),
        RouteMatch(share=500_000),
    ],
)
def test_an_only_rule_takes_what_the_plain_scan_gives_it(match: RouteMatch) -> None:
    only = VirtualHost("v", ("*",), (route("r", match),))
    for path in ("/", "/a", "/a?a=1", "/b#x", "/A/b", "*"):
        for headers in ([], [(b"A", b"1")]):
            head = RequestHead("GET", "http", "h", path, headers)
            for roll in (0.4, 0.6):
                assert only.match(head, Loaded(roll)) is only.scan(head, roll)
