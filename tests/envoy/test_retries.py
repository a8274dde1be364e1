"""Every retry condition against every outcome: Envoy and our whole path make as many tries, end alike."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.oracle_retries import REFUSED, Case, Result, compare

CONDITIONS = (
    *("5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited"),
    *("retriable-4xx", "refused-stream", "retriable-status-codes", "retriable-headers"),
    "http3-post-connect-failure",
    *("cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"),
)
OUTCOMES = (
    *("200", "404", "409", "418", "429", "500", "501", "502", "503", "504", "599"),
    *("429|x-envoy-ratelimited=true", "503|x-envoy-ratelimited=true", "418|x-envoy-ratelimited=true"),
    *("200|x-again=1", "404|x-again=", "503|x-again=1"),
    *(f"200|grpc-status={number}" for number in (0, 1, 2, 4, 8, 13, 14)),
    *("503|x-envoy-overloaded=true", "409|x-envoy-overloaded=true"),
    *("503|grpc-status=14", "200|grpc-status=x", "200|grpc-status=014"),
    *("reset", "close", "cut", "never", REFUSED),
)


def every_condition() -> list[Case]:
    made = []
    for condition in CONDITIONS:
        for outcome in OUTCOMES:
            policy = {
                "retry_on": condition,
                "num_retries": 2,
                "retriable_status_codes": [418],
                "retriable_headers": [{"name": "X-Again", "present_match": True}],
            }
            if outcome == "never":
                policy["per_try_timeout"] = "0.06s"
            made.append(Case(outcome, policy))
    return made


FIVE_XX = {"retry_on": "5xx", "num_retries": 2}
ON = "x-envoy-retry-on"
GRPC_ON = "x-envoy-retry-grpc-on"
MAX = "x-envoy-max-retries"
CODES = "x-envoy-retriable-status-codes"
NAMES = "x-envoy-retriable-header-names"
PER_TRY = "x-envoy-upstream-rq-per-try-timeout-ms"
WHOLE = "x-envoy-upstream-rq-timeout-ms"
ROUNDS = 3
EXPECTED = "x-envoy-expected-rq-timeout-ms"
NEVER_ENDING = "503,503,503,503,503,200"
"""Ends after five retries."""


def numbers_of_tries() -> list[Case]:
    """How many retries the policy and the request's own header give, and success on the way."""
    made = [
        Case(script, {"retry_on": "5xx,reset", "num_retries": retries})
        for retries in range(4)
        for script in ("503", "reset", REFUSED, "503,200", "503,reset,200", "reset,close,503,200", "503,404")
    ]
    made.append(Case("503", {"retry_on": "5xx"}))
    numbers = ("0", "1", "3", "x", "", "-1", "+2", " 2 ", "02", "2,3", "1.5", "4294967296", "4294967298")
    numbers += ("99999999999999999999", "000000000000000000000002")
    for policy in (None, FIVE_XX, {"retry_on": "5xx", "num_retries": 0}, {"retry_on": "", "num_retries": 2}):
        made += [Case(NEVER_ENDING, policy, {MAX: number}) for number in numbers]
        made += [Case(NEVER_ENDING, policy, {ON: "5xx", MAX: number}) for number in numbers]
        made += [Case(NEVER_ENDING, policy, {ON: "nothing", MAX: number}) for number in ("0", "3")]
        made.append(Case(NEVER_ENDING, policy, {ON: "5xx"}))
    return made


def conditions_of_requests() -> list[Case]:
    """Conditions, codes and names of headers that the request itself gives, with and without a policy."""
    made = []
    for policy in (None, {"retry_on": "connect-failure,refused-stream,unavailable", "num_retries": 2}):
        for condition in CONDITIONS:
            for name in (ON, GRPC_ON):
                made += [
                    Case(outcome, policy, {name: condition, CODES: "418", NAMES: "x-again"})
                    for outcome in (
                        *("503", "409", "418", "500", "200|x-again=1", "429|x-envoy-ratelimited=true"),
                        *("reset", REFUSED, *(f"200|grpc-status={n}" for n in (1, 4, 8, 13, 14))),
                    )
                ]
        for said in ("5xx,reset", " 5xx , reset ", "5XX", "", "x,5xx", "5xx;reset", ",,5xx,", "5xx reset"):
            made += [Case(outcome, policy, {ON: said}) for outcome in ("503", "reset")]
        for said in ("cancelled,internal", "CANCELLED", "5xx", " unavailable ,cancelled"):
            made += [Case(f"200|grpc-status={n}", policy, {GRPC_ON: said}) for n in (1, 13, 14)]
            made += [Case("200|grpc-status=1", policy, {GRPC_ON: said, ON: "5xx"})]
            made += [Case("503", policy, {GRPC_ON: said, ON: "5xx"})]
        for said in ("418", "418,503", " 418 , x", "0418", "+418", "x,418", "", "418;503", "4294967714"):
            made += [
                Case(outcome, policy, {CODES: said, ON: "retriable-status-codes"})
                for outcome in ("418", "503")
            ]
            made.append(Case("418", policy, {CODES: said}))
        for said in (
            "x-again",
            "X-Again",
            "x-other, x-again",
            " x-again ",
            "",
            "x-again;x-other",
            ",x-again",
        ):
            made += [
                Case(outcome, policy, {NAMES: said, ON: "retriable-headers"})
                for outcome in ("200|X-Again=1", "200|x-again=", "200")
            ]
            made.append(Case("200|x-again=1", policy, {NAMES: said}))
    return made


def times() -> list[Case]:
    """Limits of tries and of the whole, of the route and of the request."""
    tries = {"retry_on": "5xx", "num_retries": 5, "per_try_timeout": "0.2s"}
    idle = {"retry_on": "5xx", "num_retries": 5, "retry_back_off": {"base_interval": "1000s"}}
    made = [
        Case("never", tries, timeout="0.3s"),
        Case("never", tries, timeout="0.5s"),
        Case("never", tries, timeout="0.1s"),
        Case("never", tries, timeout="0.2s"),
        Case("never,200", tries, timeout="0s"),
        Case("never,503,never,200", tries),
        Case("never", None, timeout="0.1s"),
        Case("never", FIVE_XX, timeout="0.1s"),
        Case("never", {"retry_on": "retriable-4xx", "per_try_timeout": "0.1s"}),
        Case("never", {"per_try_timeout": "0.1s"}),
        Case("never", {"retry_on": "nothing", "per_try_timeout": "0.1s"}),
        Case("503", idle, timeout="0.1s"),
        Case("reset", idle, timeout="0.1s"),
        Case(REFUSED, idle, timeout="0.1s"),
        Case("never", {**tries, "retry_on": "reset"}, timeout="0.3s"),
        Case("slow,slow,200", FIVE_XX, timeout="2s"),
        Case("slow,slow,200", {**FIVE_XX, "per_try_timeout": "1s"}, timeout="1.5s"),
    ]
    for policy in (None, FIVE_XX, tries):
        for value in ("100", "0", "x", "", "-5", "+100", "0100", " 100 ", "1e2"):
            made.append(Case("never", policy, {WHOLE: value}, timeout="0.3s"))
            made.append(Case("never", policy, {PER_TRY: value, ON: "5xx"}, timeout="0.3s"))
            made.append(Case("200", policy, {WHOLE: value}))
            made.append(Case("503,200", policy, {PER_TRY: value, WHOLE: "9000"}))
            made.append(Case("200", policy, {PER_TRY: value}, timeout="0s"))
        made += [
            Case("never", policy, {WHOLE: "500", PER_TRY: "200", ON: "5xx", MAX: "5"}),
            Case("never", policy, {WHOLE: "100", PER_TRY: "200", ON: "5xx", MAX: "5"}),
            Case("never", policy, {WHOLE: "0", PER_TRY: "50", ON: "5xx", MAX: "3"}),
            Case("200", policy, {WHOLE: "9000", PER_TRY: "9001"}),
            Case("200", policy, {WHOLE: "9000", PER_TRY: "9000"}),
            Case("200", policy, {PER_TRY: "20000"}),
        ]
    return made


def others() -> list[Case]:
    """Breakers, the words of a policy, gRPC, methods, and headers that mean something to a sidecar."""
    made = [
        Case(script, {"retry_on": condition, "num_retries": 2}, breaker={limit: 0})
        for limit in ("max_retries", "max_requests")
        for condition in ("5xx", "reset", "connect-failure", "refused-stream", "retriable-4xx")
        for script in ("503", "409", "reset", "200")
    ]
    for said in ("5xx , reset", "5XX", ",x,reset", "reset,unavailable", " unavailable", "5xx;reset", "all"):
        policy = {"retry_on": said, "num_retries": 2}
        made += [Case(script, policy) for script in ("503", "reset", "200|grpc-status=14")]
    for kind in ("application/grpc", "application/grpc+proto", "application/json"):
        for number in (0, 2, 13, 14):
            script = f"200|content-type={kind}|grpc-status={number}"
            policy = {"retry_on": "unavailable,internal,5xx", "num_retries": 2}
            made.append(Case(script, policy, {"content-type": kind}, method="POST"))
            made.append(Case("200", policy, {"content-type": kind, "grpc-timeout": "5S"}, method="POST"))
    made += [
        Case("503,503,200", FIVE_XX, method=method)
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
    ]
    names = (
        *("attempt-count", "expected-rq-timeout-ms", "upstream-rq-timeout-alt-response", "original-path"),
        *("hedge-on-per-try-timeout", "is-timeout-retry", "force-trace", "ip-tags", "decorator-operation"),
        *("downstream-service-cluster", "downstream-service-node", "external-address", "internal"),
        *("original-host", "overloaded", "ratelimited", "degraded", "upstream-canary", "something"),
    )
    made += [Case("503,200", FIVE_XX, {f"x-envoy-{name}": "5000"}) for name in names]
    return made


def times_of_grpc() -> list[Case]:
    """A grpc-timeout, with and without a route that looks at it."""
    grpc, tries = {"content-type": "application/grpc"}, {"retry_on": "unavailable,5xx", "num_retries": 2}
    per_try = {**tries, "per_try_timeout": "0.5s"}
    looks: tuple[dict[str, Any], ...] = ({}, {"max_grpc_timeout": "0s"}, {"max_grpc_timeout": "3s"})
    looks += ({"max_grpc_timeout": "1000000s"},)
    values = ("4S", "6000m", "5S", "1H", "8000000u", "0m", "x", "", "1", "123456789S", "99999999S", None)
    return [
        Case(
            "200|content-type=application/grpc|grpc-status=14",
            policy,
            grpc if value is None else {**grpc, "grpc-timeout": value},
            method="POST",
            more=more,
        )
        for more in looks
        for policy in (tries, per_try)
        for value in values
    ]


def say(case: Case, theirs: Result, ours: Result) -> list[str]:
    """The differences in words."""
    made = []
    if theirs[:2] != ours[:2]:
        made.append(
            f"{case}: Envoy {theirs.status} after {theirs.tries}, ours {ours.status} after {ours.tries}"
        )
    elif [without_times(told) for told in theirs.told] != [without_times(told) for told in ours.told]:
        made.append(f"{case}: Envoy tells {theirs.told}, ours {ours.told}")
    elif not alike(expected_milliseconds(theirs), expected_milliseconds(ours)):
        made.append(
            f"{case}: Envoy tells {expected_milliseconds(theirs)}, ours {expected_milliseconds(ours)}"
        )
    return made


def without_times(told: Mapping[str, str]) -> dict[str, str]:
    """What a try was told; a grpc-timeout in its own words only if it is not the expected time again.

    What has more than eight digits in milliseconds is told in whole seconds, rounded down.
    """
    kept = {name: value for name, value in told.items() if name != EXPECTED}
    expected = int(told.get(EXPECTED, "-1"))
    if kept.get("grpc-timeout") == (f"{expected}m" if expected < 10**8 else f"{expected // 1000}S"):
        kept["grpc-timeout"] = EXPECTED
    return kept


def expected_milliseconds(result: Result) -> list[int]:
    """What each try was told of its time; -1: nothing."""
    return [int(told.get(EXPECTED, "-1")) for told in result.told]


def alike(theirs: list[int], ours: list[int]) -> bool:
    """Whether the first try was told the same, and the others nearly so: time has passed there."""
    nearly = 60 + max(theirs, default=0) // 20
    return theirs[:1] == ours[:1] and all(
        (one < 0) == (other < 0) and abs(one - other) < nearly
        for one, other in zip(theirs, ours, strict=True)
    )


@pytest.mark.parametrize(
    "make", [every_condition, numbers_of_tries, conditions_of_requests, others, times_of_grpc, times]
)
async def test_envoy_and_we_try_alike(make: Callable[[], list[Case]], tmp_path: Path) -> None:
    # On a busy machine a timer may be late: a difference counts if it comes every time.
    cases = make()
    total, differences = len(cases), list[str]()
    for _ in range(ROUNDS):
        found = [(each[0], say(*each)) for each in await compare(cases, tmp_path)]
        differences = [word for _, words in found for word in words]
        cases = [case for case, words in found if words]
        if not cases:
            break
    assert not differences, f"{len(differences)} of {total} differ\n" + "\n".join(differences)


async def test_pauses_are_jittered_below_bounds_that_double(tmp_path: Path) -> None:
    back_off = {"base_interval": "0.1s", "max_interval": "0.3s"}
    case = Case("503", {"retry_on": "5xx", "num_retries": 4, "retry_back_off": back_off})
    # As above: a timer that is late once is late, and no other bound.
    for _ in range(ROUNDS):
        found = await compare([case] * 64, tmp_path)
        both = ([theirs for _, theirs, _ in found], [ours for _, _, ours in found])
        longest = [
            [max(pauses) for pauses in zip(*(each.pauses for each in results), strict=True)]
            for results in both
        ]
        bounds = (0.1, 0.2, 0.3, 0.3)
        if all(
            0.85 * bound < pause < bound + 0.06
            for each in longest
            for pause, bound in zip(each, bounds, strict=True)
        ):
            break
    else:
        raise AssertionError(longest)
