"""Whom outlier detection ejects, when, for how long: a real Envoy and our whole path agree."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.oracle_outlier import Case, Event, Step, compare

ROUNDS = 3
MOST = 100
"""Requests of the cases that run together: endpoints and clients share a thread with this test."""
_SHORT = {"max_ejection_percent": 100, "base_ejection_time": "0.001s"}
"""All may be ejected, and return with the next interval."""
_ONE = {**_SHORT, "consecutive_5xx": 1}
_SPLIT = {
    **_SHORT,
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 2,
    "enforcing_success_rate": 0,
    "enforcing_local_origin_success_rate": 0,
}
_GATEWAY = {"consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100}
_OTHERS = ({**_SHORT, "consecutive_5xx": 0, **_GATEWAY}, {**_SPLIT, "consecutive_5xx": 2})
_WORDS = (
    *("200", "404", "500", "501", "502", "504", "599"),
    *("refused", "reset", "close", "cut", "never", "half", "nonsense", "hangs"),
)
_GRPC = (
    *(f"200|grpc-status={number}" for number in (0, 1, 2, 4, 5, 7, 8, 12, 13, 14, 15, 16, 17, "x", "")),
    *("503", "200", "503|grpc-status=0", "reset"),
)


def in_a_row() -> list[Case]:
    """What counts as what, without and with a split, against each of the detectors of rows."""
    made = []
    for word in _WORDS:
        twice = [Step(1.3, 0, word, 2)]
        made += [
            Case(f"5xx-{word}", {**_SHORT, "consecutive_5xx": 2}, twice),
            Case(f"gateway-{word}", {**_SHORT, "consecutive_5xx": 0, **_GATEWAY}, twice),
            Case(f"split-{word}", {**_SPLIT, "consecutive_5xx": 0, **_GATEWAY}, twice),
            Case(f"split-5xx-{word}", {**_SPLIT, "consecutive_5xx": 2}, twice),
            Case(f"local-{word}", {**_SPLIT, "consecutive_local_origin_failure": 1}, twice),
        ]
    # A route's time that runs out before there is a connection.
    for name, detection in (("plain", _ONE), ("split", {**_SPLIT, "consecutive_local_origin_failure": 1})):
        made.append(Case(f"waits-{name}", detection, [Step(1.3, 0, "hangs")], connect_timeout="5s"))
    return made


def sets_back() -> list[Case]:
    """What ends a row, and what is forgotten when."""
    made = []
    for word in ("200", "404", "500", "503", "refused", "reset", "cut", "never"):
        for name, detection in (
            ("plain", {**_SHORT, "consecutive_5xx": 3, **_GATEWAY, "consecutive_gateway_failure": 3}),
            ("split", {**_SPLIT, "consecutive_local_origin_failure": 3, "consecutive_5xx": 3}),
        ):
            for kind in ("503", "refused"):
                steps = [Step(1.3, 0, kind, 2), Step(1.4, 0, word), Step(1.6, 0, kind), Step(2.4, 0, kind)]
                made.append(Case(f"{name}-{kind}-{word}", detection, steps))
    made += [
        # Failures of an ejected endpoint count, and are forgotten when it returns.
        Case("ejected", {**_SHORT, "consecutive_5xx": 2}, [Step(1.3, 0, "500", 5), Step(2.5, 0, "500", 1)]),
        Case("again", {**_SHORT, "consecutive_5xx": 2}, [Step(1.3, 0, "500", 2), Step(2.5, 0, "500", 2)]),
        # The other row goes on where its own ejection is not enforced.
        Case(
            "both-rows",
            {**_SHORT, "consecutive_5xx": 3, **_GATEWAY},
            [Step(1.3, 0, "503", 3), Step(2.5, 0, "500", 2), Step(3.5, 0, "500")],
        ),
        Case("off", {**_SHORT, "consecutive_5xx": 0}, [Step(1.3, 0, "500", 8)]),
        Case("not-enforced", {**_ONE, "enforcing_consecutive_5xx": 0}, [Step(1.3, 0, "500", 3)]),
        Case("defaults", {"max_ejection_percent": 50}, [Step(1.3, 0, "502", 4), Step(2.5, 0, "500", 1)]),
    ]
    return made


def shares() -> list[Case]:
    """How many may be ejected at a time."""
    made = []
    for size, percent in ((1, 10), (1, 100), (2, 50), (3, 10), (3, 33), (3, 34), (4, 50), (7, 15)):
        for always in (None, True):
            detection: dict[str, Any] = {**_ONE, "max_ejection_percent": percent}
            if always is not None:
                detection["always_eject_one_host"] = always
            steps = [Step(at, host, "503") for at in (1.4, 2.4) for host in range(size)]
            made.append(Case(f"{size}-{percent}-{always}", detection, steps, size))
    return made


def times() -> list[Case]:
    """How long ejections last: n times the base, at most the maximum, and n shrinks.

    Envoy takes one off n at the first end of an interval after a return only by chance, for there its own
    clock is some microseconds before or after: no case depends on that one.
    """
    grows = {**_ONE, "base_ejection_time": "0.3s"}
    made = [
        Case("grows", grows, _at(0, 1.5, 3.6, 5.6, 8.6)),
        Case("at-most", {**grows, "max_ejection_time": "0.6s"}, _at(0, 1.5, 3.6, 5.6, 7.6)),
        Case("base", {**grows, "base_ejection_time": "0.45s"}, _at(0, 1.4, 3.6)),
        Case("long", {**grows, "base_ejection_time": "0.9s", "max_ejection_time": "0.9s"}, _at(0, 1.5, 4.6)),
        Case("forgiven", grows, _at(0, 1.5, 6.6)),
        Case("wholly-forgiven", grows, _at(0, 1.5, 3.5, 9.5)),
    ]
    made += [Case(f"short-{n}", _ONE, _at(0, *(1.5 + each for each in range(n)))) for n in (1, 3)]
    return made


def _at(host: int, *times: float) -> list[Step]:
    return [*(Step(at, host, "500") for at in times), Step(times[-1] + 3, host, "200")]


def rates() -> list[Case]:
    """What happens once an interval."""
    rate = {
        **_SHORT,
        "consecutive_5xx": 0,
        "success_rate_minimum_hosts": 3,
        "success_rate_request_volume": 2,
        "success_rate_stdev_factor": 1000,
    }
    share = {
        **_SHORT,
        "consecutive_5xx": 0,
        "enforcing_success_rate": 0,
        "enforcing_failure_percentage": 100,
        "failure_percentage_minimum_hosts": 3,
        "failure_percentage_request_volume": 2,
        "failure_percentage_threshold": 50,
    }
    local = {"split_external_local_origin_errors": True, "consecutive_local_origin_failure": 0}
    made = []
    for name, detection in (("rate", rate), ("share", share)):
        made += [
            *(Case(f"{name}-{bad}-of-2", detection, _mixed(bad, 2), 3) for bad in (0, 1, 2)),
            Case(f"{name}-few-requests", detection, _mixed(1, 1), 3),
            Case(f"{name}-few-hosts", detection, _mixed(2, 2, size=2), 2),
            Case(f"{name}-of-an-interval", detection, [*_mixed(1, 1), *_mixed(1, 1, at=2.3)], 3),
            Case(f"{name}-each-interval", detection, [*_mixed(0, 2), *_mixed(2, 2, at=2.3)], 3),
            Case(f"{name}-none-may", {**detection, "max_ejection_percent": 10}, _mixed(2, 2), 3),
        ]
        for bad in ("refused", "reset", "500"):
            made.append(Case(f"{name}-split-{bad}", {**detection, **local}, _mixed(2, 2, bad=bad), 3))
            asks = {
                **detection,
                **local,
                "enforcing_success_rate": 0,
                "enforcing_local_origin_success_rate": 100 * (name == "rate"),
                "enforcing_failure_percentage": 0,
                "enforcing_failure_percentage_local_origin": 100 * (name == "share"),
            }
            made += [
                Case(f"{name}-local-{bad}-{count}", asks, _mixed(count, 2, bad=bad), 3) for count in (1, 2)
            ]
    defaults = {
        **_SHORT,
        "consecutive_5xx": 0,
        "success_rate_minimum_hosts": 2,
        "success_rate_request_volume": 1,
    }
    made.append(Case("rate-default", defaults, _mixed(1, 1, size=6), 6))
    return made


def _mixed(failures: int, requests: int, *, size: int = 3, bad: str = "500", at: float = 1.3) -> list[Step]:
    """The first of so many endpoints fails so often, the others never."""
    made = [Step(at, 0, bad, failures)] if failures else []
    made += [Step(at + 0.1, 0, "200", requests - failures)] if failures < requests else []
    made += [Step(at + 0.2, host, "200", requests) for host in range(1, size)]
    return [*made, Step(math.floor(at) + 1.7, size - 1, "200")]


def errors() -> list[Case]:
    """Which statuses are failures, as the cluster's HTTP options say; and gRPC."""
    made = [Case(f"grpc-{n}", _ONE, [Step(1.3, 0, word, grpc=True)]) for n, word in enumerate(_GRPC)]
    made += [Case(f"no-grpc-{n}", _ONE, [Step(1.3, 0, word)]) for n, word in enumerate(_GRPC[::4])]
    status = {"name": ":status", "string_match": {"exact": "429"}}
    header = {"name": "x-bad", "string_match": {"prefix": "y"}}
    one, other = ({"http_response_headers_match": {"headers": [each]}} for each in (status, header))
    rules: tuple[dict[str, Any], ...] = (
        one,
        {"or_match": {"rules": [one, other]}},
        {"and_match": {"rules": [one, other]}},
        {"not_match": one},
        {"http_response_headers_match": {"headers": [status, header]}},
        {"any_match": True},
        {"or_match": {"rules": [one, _exactly("503")]}},
    )
    words = ("429", "503", "200", "429|x-bad=yes", "200|x-bad=yes", "reset", "never", "200|grpc-status=14")
    for number, rule in enumerate(rules):
        # What is a failure does not depend on who counts it.
        for detection in (_ONE, *(_OTHERS if not number else ())):
            for word in words:
                grpc = "grpc" in word
                name = f"errors-{number}-{len(made)}"
                steps = [Step(1.3, 0, word, 2, grpc)]
                made.append(Case(name, detection, steps, options={"error_matcher": rule}))
    return made


def _exactly(status: str) -> dict[str, Any]:
    return {
        "http_response_headers_match": {"headers": [{"name": ":status", "string_match": {"exact": status}}]}
    }


@pytest.mark.parametrize("make", [in_a_row, sets_back, shares, times, rates, errors])
async def test_the_same_at_the_same_times(make: Callable[[], list[Case]], tmp_path: Path) -> None:
    # On a busy machine requests may be late: a difference counts if it comes every time, when few run too.
    cases = make()
    total, differences = len(cases), list[str]()
    for turn in range(ROUNDS):
        # Each cluster that Envoy makes is some milliseconds behind the one before.
        found = [each for some in batched(cases, MOST >> 2 * turn) for each in await compare(some, tmp_path)]
        differing = [each for each in found if sorted(each[1]) != sorted(each[2])]
        differences = [f"{c.name}: Envoy {say(e)}, ours {say(o)}" for c, e, o in differing]
        cases = [case for case, _, _ in differing]
        if not cases:
            break
    assert not differences, f"{len(differences)} of {total} differ\n" + "\n".join(differences)


def say(events: list[Event]) -> list[str]:
    """Events in few words."""
    return [f"{'-' if event.ejected else '+'}{event.host}@{event.interval}" for event in sorted(events)]


def batched(cases: list[Case], most: int) -> list[list[Case]]:
    """The cases, with so many requests at a time, but at least one case."""
    made: list[list[Case]] = []
    left = 0
    for case in cases:
        requests = sum(step.times for step in case.steps)
        if requests > left:
            made.append([])
            left = most
        made[-1].append(case)
        left -= requests
    return made
