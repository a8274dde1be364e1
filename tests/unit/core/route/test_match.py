"""Every condition of a rule, met, failed and explained."""

import pytest

from meshlib.core.request import RequestHead
from meshlib.core.route.match import (
    HeaderMatch,
    PathKind,
    PathMatch,
    QueryMatch,
    RouteMatch,
    query_parameters,
)
from meshlib.core.route.text import Presence, Range, TextKind, TextMatch

JASON = TextMatch(TextKind.EXACT, "jason")


def head(path: str = "/", *headers: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("GET", "http", "reviews:9080", path, headers)


@pytest.mark.parametrize(
    ("kind", "value", "sensitive", "path", "expected"),
    [
        (PathKind.PREFIX, "/foo", True, "/foobar?x", True),
        (PathKind.PREFIX, "/foo", True, "/FOO", False),
        (PathKind.PREFIX, "/foo", False, "/FOObar", True),
        (PathKind.PREFIX, "", True, "/", True),
        (PathKind.PREFIX, "/foo?x", True, "/foo?x", False),
        (PathKind.EXACT, "/foo", True, "/foo?x=/y", True),
        (PathKind.EXACT, "/foo", True, "/foo/", False),
        (PathKind.EXACT, "/Foo", False, "/fOO", True),
        (PathKind.SEGMENTS, "/foo", True, "/foo", True),
        (PathKind.SEGMENTS, "/foo", True, "/foo/bar", True),
        (PathKind.SEGMENTS, "/foo", True, "/foobar", False),
        (PathKind.REGEX, "/a[0-9]", True, "/a1?q", True),
        (PathKind.REGEX, "/a[0-9]", True, "/a12", False),
        (PathKind.REGEX, "/a", False, "/A", False),
    ],
)
def test_path(kind: PathKind, value: str, sensitive: bool, path: str, expected: bool) -> None:
    assert RouteMatch(PathMatch(kind, value, sensitive)).matches(head(path)) is expected


PRESENT, ABSENT = Presence(), Presence(False)


@pytest.mark.parametrize(
    ("match", "values", "expected"),
    [
        (HeaderMatch(b"u", JASON), [b"jason"], True),
        (HeaderMatch(b"u", JASON), [b"Jason"], False),
        (HeaderMatch(b"u", JASON), [], False),
        (HeaderMatch(b"u", JASON), [b"x", b"jason"], True),
        (HeaderMatch(b"u", JASON), [b"x,jason"], False),
        (HeaderMatch(b"u", JASON, invert=True), [b"x"], True),
        (HeaderMatch(b"u", JASON, invert=True), [b"x", b"jason"], False),
        (HeaderMatch(b"u", JASON, invert=True), [], False),
        (HeaderMatch(b"u", JASON, invert=True, absent_is_empty=True), [], True),
        (HeaderMatch(b"u", TextMatch(TextKind.EXACT, ""), absent_is_empty=True), [], True),
        (HeaderMatch(b"u", TextMatch(TextKind.PREFIX, "JA", ignore_case=True)), [b"jason"], True),
        (HeaderMatch(b"u", TextMatch(TextKind.SUFFIX, "son")), [b"jason"], True),
        (HeaderMatch(b"u", TextMatch(TextKind.CONTAINS, "aso")), [b"jason"], True),
        (HeaderMatch(b"u", TextMatch(TextKind.REGEX, ".*Chrome.*")), [b"a Chrome/1"], True),
        (HeaderMatch(b"u", TextMatch(TextKind.REGEX, "Chrome")), [b"a Chrome/1"], False),
        (HeaderMatch(b"u", PRESENT), [b""], True),
        (HeaderMatch(b"u", PRESENT), [], False),
        (HeaderMatch(b"u", PRESENT, invert=True), [], True),
        (HeaderMatch(b"u", PRESENT, invert=True, absent_is_empty=True), [], False),
        (HeaderMatch(b"u", ABSENT), [], True),
        (HeaderMatch(b"u", Range(-10, 5)), [b"-10"], True),
        (HeaderMatch(b"u", Range(-10, 5)), [b"5"], False),
        (HeaderMatch(b"u", Range(-10, 5)), [b"1.0"], False),
        (HeaderMatch(b"u", Range(-10, 5)), [b"1_0"], False),
        (HeaderMatch(b"u", Range(0, 2**63)), [b"9" * 50], False),
    ],
)
def test_header(match: HeaderMatch, values: list[bytes], expected: bool) -> None:
    request = head("/", *((b"U", value) for value in values))
    rule = RouteMatch(headers=(match,))
    assert rule.matches(request) is expected
    assert (rule.why_not(request) == "") is expected


def test_pseudo_headers() -> None:
    for name, value in ((b":method", "GET"), (b":authority", "reviews:9080"), (b":scheme", "http")):
        assert RouteMatch(headers=(HeaderMatch(name, TextMatch(TextKind.EXACT, value)),)).matches(head())


def test_query_parameters_are_as_written_and_the_first_counts() -> None:
    assert query_parameters("/a?x=1&x=2&y&=z&%61=%20&w=a=b") == {
        "x": "1", "y": "", "": "z", "%61": "%20", "w": "a=b"
    }  # fmt: skip
    assert query_parameters("/a") == {}
    rule = RouteMatch(query=(QueryMatch("x", TextMatch(TextKind.EXACT, "1")), QueryMatch("y", PRESENT)))
    assert rule.matches(head("/?x=1&y"))
    assert not rule.matches(head("/?x=2&x=1&y"))
    assert not rule.matches(head("/?x=1"))


def test_why_not_names_every_condition_that_failed() -> None:
    rule = RouteMatch(
        PathMatch(PathKind.PREFIX, "/api"),
        (HeaderMatch(b"end-user", JASON), HeaderMatch(b"x-v", Range(1, 3))),
        (QueryMatch("q", TextMatch(TextKind.PREFIX, "a")),),
    )
    assert rule.why_not(head("/x?q=b", (b"x-v", b"7"))) == (
        'path is "/x", wanted prefix "/api"; header end-user is absent, wanted exactly "jason"; '
        'header x-v is "7", wanted a number in [1, 3); query parameter q is "b", wanted prefix "a"'
    )


def test_a_pattern_that_backtracks_elsewhere_takes_no_time() -> None:
    rule = RouteMatch(PathMatch(PathKind.REGEX, "/(a+)+b"))
    assert not rule.matches(head("/" + "a" * 20_000))


@pytest.mark.parametrize("source", ["(", "(?=x)", "a{1001}", "(a{1000}){1000}", "x" * 20_000, r"\1"])
def test_bad_patterns(source: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        TextMatch(TextKind.REGEX, source)
