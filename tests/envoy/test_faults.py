"""Injected faults: Envoy and our whole path delay, abort and tell of it alike."""

import asyncio
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
from support.envoy import run_envoy
from support.oracle_faults import (
    Case,
    Ourselves,
    Result,
    ask_envoy,
    bootstrap,
    compare,
    configuration,
    settings,
)
from support.oracle_http import Call, ask_all
from support.upstream import run_upstream

DELAY = 0.06
ROUNDS = 3
CASES = 400
FRESH_SEED = int(os.environ["ORACLE_SEED"])
Values = dict[str, Any]
ALL, NONE = {"numerator": 100}, {"numerator": 0}
SHARES = (ALL, ALL, ALL, NONE, {}, {"numerator": 1_000_000, "denominator": "MILLION"}, {"numerator": 300})
SHARES += ({"numerator": 10_000, "denominator": "TEN_THOUSAND"},)
STATUSES = (200, 301, 400, 401, 403, 404, 418, 429, 500, 502, 503, 504, 599)
NUMBERS = ("418", "503", "200", "199", "600", "x", "", "-1", "+429", "0404", "0504", "99999999999999999999")
EDIT = {"header": {"key": "x-edit", "value": "%RESPONSE_CODE%"}}
COUNT = {"header": {"key": "x-envoy-attempt-count", "value": "edited"}}
TYPE = {
    "header": {"key": "content-type", "value": "text/html"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}


def make_fault(dice: random.Random) -> Values:
    """An HTTPFault whose shares are all or nothing."""
    fault: Values = {}
    if dice.random() < 0.5:
        how = (
            {"header_delay": {}}
            if dice.random() < 0.3
            else {"fixed_delay": dice.choice(("0.07s", "0.0009s"))}
        )
        fault["delay"] = {**how, "percentage": dice.choice(SHARES)}
    if dice.random() < 0.8:
        kind = dice.random()
        if kind < 0.3:
            how = {"header_abort": {}}
        elif kind < 0.5:
            how = {"grpc_status": dice.choice((0, 1, 5, 14, 16, 77))}
        else:
            how = {"http_status": dice.choice(STATUSES)}
        fault["abort"] = {**how, "percentage": dice.choice(SHARES)}
    if dice.random() < 0.15:
        fault["upstream_cluster"] = dice.choice(("up", "other", "gone"))
    if dice.random() < 0.15:
        fault["headers"] = [{"name": "X-A", "string_match": {"prefix": "1"}}]
    if dice.random() < 0.15:
        fault["downstream_nodes"] = ["n1", "n2"]
    if dice.random() < 0.05:
        fault["max_active_faults"] = 0
    return fault


def make_action(dice: random.Random) -> Values:
    retries = {"retry_on": "5xx", "num_retries": 1, "retry_back_off": {"base_interval": "0.001s"}}
    kind = dice.random()
    if kind < 0.5:
        to = dice.choice(("up", "up", "up", "gone", "empty"))
        return {"route": {"cluster": to, "timeout": "0.2s", "retry_policy": retries}}
    if kind < 0.75:
        more = settings(make_fault(dice)) if dice.random() < 0.5 else {}
        edits = {"response_headers_to_add": [EDIT]} if dice.random() < 0.3 else {}
        splits = [{"name": "up", "weight": 1, **more, **edits}, {"name": "other", "weight": 0}]
        return {"route": {"weighted_clusters": {"clusters": splits}, "timeout": "0s"}}
    if kind < 0.9:
        return {"direct_response": {"status": 410, "body": {"inline_string": "gone"}}}
    return {"redirect": {"host_redirect": "other"}}


def make_headers(dice: random.Random) -> dict[str, str]:
    made = {}
    if dice.random() < 0.3:
        made["x-a"] = dice.choice(("1", "12", "2"))
    if dice.random() < 0.3:
        made["x-envoy-downstream-service-node"] = dice.choice(("n1", "n3"))
    if dice.random() < 0.3:
        made["content-type"] = dice.choice(("application/grpc", "application/grpc+proto", "text/plain"))
    for name in ("abort-request", "abort-grpc-request"):
        if dice.random() < 0.4:
            made[f"x-envoy-fault-{name}"] = dice.choice(NUMBERS)
    if dice.random() < 0.4:
        made["x-envoy-fault-delay-request"] = dice.choice(("70", "0", "-70", "x", "+70", ""))
    for name in ("abort", "delay"):
        if dice.random() < 0.2:
            percentage = dice.choice(("0", "100", "1000000", "x", "-1"))
            made[f"x-envoy-fault-{name}-request-percentage"] = percentage
    return made


def make_case(dice: random.Random) -> Case:
    route: Values = {"match": {"prefix": "/"}, "name": "r", **make_action(dice)}
    if dice.random() < 0.8:
        route |= settings(make_fault(dice))
    if dice.random() < 0.5:
        route["response_headers_to_add"] = dice.choice(([EDIT], [EDIT], [EDIT, TYPE], [COUNT]))
    host: Values = settings(make_fault(dice)) if dice.random() < 0.5 else {}
    if dice.random() < 0.2:
        host["response_headers_to_add"] = [EDIT]
    host["include_request_attempt_count"] = dice.random() < 0.5
    host["include_attempt_count_in_response"] = dice.random() < 0.5
    method, script = dice.choice(("GET", "GET", "POST", "HEAD")), dice.choice(("200", "200", "503", "404"))
    return Case(route, host, make_headers(dice), method, script)


def say(case: Case, theirs: Result, ours: Result) -> str:
    """The difference in words; empty: there is none."""
    if ours.body is None:
        theirs, ours = (each._replace(body=None, headers={}) for each in (theirs, ours))
    return "" if theirs == ours else f"{case}\n  Envoy {theirs}\n  ours  {ours}"


@pytest.mark.parametrize("seed", [1, FRESH_SEED])
async def test_envoy_and_we_make_the_same_faults(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    # On a busy machine a timer may be late: a difference counts if it comes every time.
    cases, differences = [make_case(dice) for _ in range(CASES)], list[str]()
    for _ in range(ROUNDS):
        found = [(each[0], say(*each)) for each in await compare(cases, tmp_path, DELAY)]
        differences = [words for _, words in found if words]
        cases = [case for case, words in found if words]
        if not cases:
            break
    assert not differences, f"ORACLE_SEED={seed}: {len(differences)} differ\n" + "\n".join(differences)


HERE = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
HALF = {"numerator": 50}
SHARED = (
    (Case({**HERE, **settings({"abort": {"http_status": 418, "percentage": {"numerator": 30}}})}), 0.3),
    (
        Case(
            {**HERE, **settings({"abort": {"header_abort": {}, "percentage": HALF}})},
            headers={"x-envoy-fault-abort-request": "418", "x-envoy-fault-abort-request-percentage": "20"},
        ),
        0.2,
    ),
    (
        Case(
            {**HERE, **settings({"abort": {"header_abort": {}, "percentage": HALF}})},
            headers={"x-envoy-fault-abort-request": "418", "x-envoy-fault-abort-request-percentage": "90"},
        ),
        0.5,
    ),
    (
        Case(
            {
                **HERE,
                **settings(
                    {
                        "delay": {"fixed_delay": "0.001s", "percentage": HALF},
                        "abort": {"http_status": 418, "percentage": HALF},
                    }
                ),
            }
        ),
        0.5,
    ),
)


async def test_envoy_and_we_abort_the_same_share(tmp_path: Path) -> None:
    cases, count = [case for case, _ in SHARED], 1200
    routes = configuration(cases)
    async with run_upstream() as upstream, run_envoy(bootstrap(routes, 1), tmp_path) as envoy:
        asker = Ourselves(routes, upstream)
        for number, (case, share) in enumerate(SHARED):
            call = Call("GET", f"case-{number}", "/", tuple(case.headers.items()))
            received = await ask_all(envoy.listeners["main"], [(number, call)] * count)
            theirs = [(got.status, dict(got.headers)["x-oracle-flags"]) for got in received]
            ours = [await asker.ask(number, case, DELAY, "") for _ in range(count)]
            for found in (theirs, [(each.status, each.flags) for each in ours]):
                aborted = sum(status == 418 for status, _ in found)
                assert abs(aborted - share * count) < 5 * math.sqrt(count * share * (1 - share)), found
                if number == 3:  # both are drawn for themselves: a quarter has both
                    both = sum(flags == "DI,FI" for _, flags in found)
                    assert abs(both - count / 4) < 5 * math.sqrt(count * 3 / 16)


async def test_beyond_the_most_active_faults_there_are_none(tmp_path: Path) -> None:
    delay = {"delay": {"fixed_delay": "0.3s", "percentage": ALL}, "max_active_faults": 2}
    case = Case({"match": {"prefix": "/"}, "route": {"cluster": "up"}, **settings(delay)})
    routes = configuration([case])
    async with run_upstream() as upstream, run_envoy(bootstrap(routes, upstream.port), tmp_path) as envoy:
        asker = Ourselves(routes, upstream)
        for _ in range(2):
            received = await asyncio.gather(*(ask_envoy(envoy, 0, case, "envoy") for _ in range(6)))
            theirs = [dict(got.headers)["x-oracle-flags"] for got in received]
            ours = [
                each.flags for each in await asyncio.gather(*(asker.ask(0, case, 1, "o") for _ in range(6)))
            ]
            assert sorted(theirs) == sorted(ours) == ["-"] * 4 + ["DI"] * 2
            assert asker.ledger.faults == 0
        await asker.close()
