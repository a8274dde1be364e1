"""Circuit breakers and retry budgets: a real Envoy and our whole path turn away the same requests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.oracle_breaker import Case, compare

ROUNDS = 3


def requests() -> list[Case]:
    """Requests that are held: how many have a connection, how many wait, which is one too many."""
    made = []
    for connections in (1, 2, 4):
        for pending in (1, 2, 4):
            for most in (1, 2, 3, 1000):
                numbers = {
                    "max_connections": connections,
                    "max_pending_requests": pending,
                    "max_requests": most,
                }
                made.append(Case(f"{connections}-{pending}-{most}", numbers, ["hold"] * 7))
    for name in ("max_connections", "max_pending_requests", "max_requests"):
        made += [Case(f"{name}-{number}", {name: number}, ["hold"] * 5) for number in (0, 1, 3)]
    return made


def pending() -> list[Case]:
    """Requests for which a connection is being made are pending."""
    return [
        Case(f"{number}-{connections}", numbers, ["hold"] * 6, hangs=True)
        for number in (0, 1, 3)
        for connections in (1, 2, 9)
        for numbers in ({"max_pending_requests": number, "max_connections": connections},)
    ]


def retries() -> list[Case]:
    """Retries in flight, by a number and by a budget."""
    made = [Case(f"number-{number}", {"max_retries": number}, ["503,hold"] * 5) for number in (0, 1, 3)]
    for percent in (0, 20, 34, 50, 100):
        for least in (0, 1, 3):
            for held in (0, 3, 6):
                budget = {"budget_percent": {"value": percent}, "min_retry_concurrency": least}
                script = ["hold"] * held + ["503,hold"] * 5
                made.append(Case(f"budget-{percent}-{least}-{held}", {"retry_budget": budget}, script))
    made.append(Case("budget-defaults", {"retry_budget": {}}, ["hold"] * 20 + ["503,hold"] * 6))
    # Requests that wait count too, and the number is not looked at.
    many = {"retry_budget": {"budget_percent": {"value": 50}}, "max_retries": 0}
    made.append(Case("budget-waiting", {**many, "max_connections": 12}, ["hold"] * 4 + ["503,hold"] * 6))
    return made


def intervals() -> list[Case]:
    """Retries in flight as a share of the tries of a while."""
    made = []
    after = ["503,hold"] * 14
    for percent, least, before in ((10, 0, 20), (10, 3, 20), (0, 0, 20), (50, 0, 3), (100, 0, 0)):
        budget = {"budget_percent": {"value": percent}, "min_retry_concurrency": least}
        for interval, seconds in (("60s", 0.0), ("0s", 0.0), ("0.0009s", 0.0), ("3s", 0.4), ("1s", 1.2)):
            for word in ("200", "404", "hold", "503"):
                script = [*[word] * before, f"wait {seconds}", *after]
                name = f"{percent}-{least}-{interval}-{seconds}-{word}"
                made.append(Case(name, {"retry_budget": {**budget, "budget_interval": interval}}, script))
    # What waits for a connection is no try yet.
    waiting = {"budget_percent": {"value": 20}, "min_retry_concurrency": 0, "budget_interval": "60s"}
    few = {"retry_budget": waiting, "max_connections": 9}
    made.append(Case("waiting", few, [*["hold"] * 6, *["503,hold"] * 9]))
    return made


@pytest.mark.parametrize("make", [requests, pending, retries, intervals])
async def test_the_same_are_turned_away(make: Callable[[], list[Case]], tmp_path: Path) -> None:
    # On a busy machine a request may come to rest late: a difference counts if it comes every time.
    cases = make()
    total, differing = len(cases), []
    for _ in range(ROUNDS):
        differing = [each for each in await compare(cases, tmp_path) if each[1] != each[2]]
        cases = [case for case, _, _ in differing]
        if not cases:
            break
    words = [f"{case}: Envoy {theirs}, ours {ours}" for case, theirs, ours in differing]
    assert not words, f"{len(words)} of {total} differ\n" + "\n".join(words)
