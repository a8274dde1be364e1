"""Hedged retries: Envoy and our whole path make as many tries, the same one wins, and with the same flags."""

from pathlib import Path

from support.oracle_retries import Case, Result, compare

ROUNDS = 3
HEDGES = {"hedge_policy": {"hedge_on_per_try_timeout": True}}
EXPECTED = "x-envoy-expected-rq-timeout-ms"
HEADER = "x-envoy-hedge-on-per-try-timeout"
ON_5XX = {"retry_on": "5xx", "num_retries": 2, "per_try_timeout": "0.2s"}
ON_NOTHING_ELSE = {"retry_on": "retriable-4xx", "num_retries": 1, "per_try_timeout": "0.2s"}
"""Conditions do not matter for a hedge."""

SCRIPTS = (
    *("200", "503", "503,200", "404", "reset", "reset,200"),
    # the first is slow
    *("200@0.5,never", "200@0.5,200", "200@0.5,503,never", "200@0.3,200@0.3", "200@0.7,200@0.3"),
    *("never,200", "never,503,200", "never,never,200", "never,reset,200", "never,never,never"),
    # what is bad waits for the others
    *("503@0.3,200@0.3", "503@0.3,503@0.4,200@0.1", "reset@0.3,200@0.3", "close@0.3,200@0.3"),
    *("503@0.5,503,503@0.8", "503@0.5,503,503", "reset@0.5,reset,reset", "200@0.6,503,503"),
    # what asks for no retry wins
    *("404@0.3,200@0.4", "409@0.3,200@0.4", "200@0.4,404@0.1", "never,409,200@0.1"),
    *("never@0.1,200|grpc-status=14", "200|x-a=1@0.3,never"),
)


def cases() -> list[Case]:
    made = [
        Case(script, policy, timeout=timeout, more=HEDGES)
        for policy in (ON_5XX, ON_NOTHING_ELSE)
        for script in SCRIPTS
        for timeout in ("1.2s", "0.45s")
    ]
    once = {**ON_5XX, "num_retries": 1}
    made += [Case(script, once, more=HEDGES, timeout="1s") for script in SCRIPTS]
    # Without a policy, without a time, without conditions: nothing is hedged.
    policies = (None, {"per_try_timeout": "0.2s"}, {"retry_on": "5xx"}, {**ON_5XX, "num_retries": 0})
    for policy in policies:
        made += [
            Case(script, policy, more=HEDGES, timeout="0.6s")
            for script in ("200@0.3,200", "503,200", "never", "503@0.3,200")
        ]
    # The request's own word, and fields that Envoy has and does not look at.
    for said in ("true", "false", "TRUE", "1", ""):
        for more in ({}, HEDGES):
            made.append(Case("200@0.5,200", ON_5XX, {HEADER: said}, timeout="1s", more=more))
    chance = {"additional_request_chance": {"numerator": 100}, "initial_requests": 3}
    made += [
        Case(
            script,
            ON_5XX,
            more={"hedge_policy": {**chance, "hedge_on_per_try_timeout": hedges}},
            timeout="1s",
        )
        for script in ("200@0.5,200", "200")
        for hedges in (False, True)
    ]
    # The breaker.
    made += [
        Case(script, ON_5XX, more=HEDGES, timeout="1s", breaker={limit: most})
        for script in ("200@0.5,200", "503@0.5,200", "never", "reset@0.5,200", "never,never,200")
        for limit, most in (("max_retries", 0), ("max_retries", 1), ("max_requests", 1), ("max_requests", 2))
    ]
    # No end of the whole: nothing is told.
    made.append(Case("200@0.5,200@0.1", ON_5XX, more=HEDGES, timeout="0s"))
    made.append(Case("200@0.5,200@0.1", ON_5XX, more=HEDGES, timeout="5s", method="POST"))
    return made


def seen(result: Result) -> tuple[object, ...]:
    """What is compared: times only of the first try, for later ones are told what is left."""
    told = [(one.get("x-envoy-attempt-count"), EXPECTED in one) for one in result.told]
    return (
        *result[:2],
        result.won,
        sorted(result.flags),
        told,
        [one.get(EXPECTED) for one in result.told[:1]],
    )


async def test_envoy_and_we_hedge_alike(tmp_path: Path) -> None:
    # On a busy machine a timer may be late: a difference counts if it comes every time.
    left, differences = cases(), list[str]()
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        differing = [each for each in await compare(left, folder) if seen(each[1]) != seen(each[2])]
        left = [case for case, _, _ in differing]
        differences = [
            f"{case}:\n  Envoy {seen(one)}\n  ours {seen(other)}" for case, one, other in differing
        ]
        if not left:
            break
    assert not differences, f"{len(differences)} differ\n" + "\n".join(differences)
