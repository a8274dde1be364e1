"""Times of a request: the route's, the request's own wishes, and what the next service is told."""

from dataclasses import replace

import pytest

from meshlib.core.headers import EMPTY
from meshlib.core.request import RequestHead
from meshlib.core.retry import RetryPolicy
from meshlib.core.route.rule import Forward, Timeouts, WeightedCluster, expected
from meshlib.core.timeout import effective, told


def route(whole: float, per_try: float = 0.0) -> Forward:
    policy = RetryPolicy(frozenset(), per_try_timeout=per_try)
    return Forward((WeightedCluster("c", 1, 1, EMPTY, EMPTY),), 1, timeout=whole, retry=policy)


def asking(whole: str | None = None, per_try: str | None = None) -> RequestHead:
    named = (b"X-Envoy-Upstream-Rq-Timeout-Ms", whole), (b"X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms", per_try)
    pairs = [(name, value.encode()) for name, value in named if value is not None]
    return RequestHead("GET", "http", "a", "/", pairs)


@pytest.mark.parametrize(
    ("head", "whole", "per_try"),
    [
        (asking(), 15.0, 0.5),
        (asking("100"), 0.1, 0.0),
        (asking("600"), 0.6, 0.5),
        (asking("500"), 0.5, 0.0),
        (asking("0"), 0.0, 0.5),
        (asking("+100", " 50 "), 0.1, 0.05),
        (asking(None, "0"), 15.0, 0.0),
        (asking(None, "0100"), 15.0, 0.1),
        (asking(None, "15000"), 15.0, 0.0),
        (asking("x", "-5"), 15.0, 0.5),
        (asking("", "1e2"), 15.0, 0.5),
        (asking("9" * 5000, "9" * 20), 15.0, 0.5),
    ],
)
def test_the_wishes_of_a_request_stand_for_the_times_of_its_route(
    head: RequestHead, whole: float, per_try: float
) -> None:
    assert effective(route(15.0, 0.5), head, None) == Timeouts(whole, per_try)


@pytest.mark.parametrize(
    ("caller", "limits"),
    [
        (None, Timeouts(15.0, 0.5)),
        (20.0, Timeouts(15.0, 0.5)),
        (1.0, Timeouts(1.0, 0.5)),
        (0.4, Timeouts(0.4, 0.0)),
    ],
)
def test_the_callers_own_bound_makes_it_shorter(caller: float | None, limits: Timeouts) -> None:
    assert effective(route(15.0, 0.5), asking(), caller) == limits


def test_the_callers_own_bound_counts_if_the_route_has_none() -> None:
    assert effective(route(0.0, 0.5), asking(), 2.0) == Timeouts(2.0, 0.5)


@pytest.mark.parametrize(
    ("per_try", "left", "value"),
    [
        (0.0, None, None),
        (0.2, None, b"200"),
        (0.0, 15.0, b"15000"),
        (0.2, 15.0, b"200"),
        (0.2, 0.1, b"100"),
        (0.0, 0.0004, b"1"),
        (0.2, -0.1, b"1"),
        (0.0, 0.29, b"290"),
    ],
)
def test_the_next_service_is_told_what_is_left_to_a_try(
    per_try: float, left: float | None, value: bytes | None
) -> None:
    assert expected(per_try, left) == value


@pytest.mark.parametrize(
    ("left", "value"),
    [
        *((0.2, b"200m"), (99_999.999, b"99999999m"), (100_000.0, b"100000S")),
        *((10**8, b"1666666M"), (10**10, b"2777777H"), (10**12, b"99999999H")),
    ],
)
def test_a_grpc_request_is_told_in_grpc_timeout_if_the_route_looks_at_it(left: float, value: bytes) -> None:
    came = [(b"content-type", b"application/grpc"), (b"Grpc-Timeout", b"9S")]
    head = RequestHead("POST", "http", "a", "/", came)
    made = told(replace(route(15.0), max_grpc_timeout=0.0), head, 0.0, left)
    assert made.header(b"grpc-timeout") == value
    assert told(route(15.0), head, 0.0, left).header(b"grpc-timeout") == b"9S"
