"""The retry budget: how many retries a cluster may have in flight, as a share of its requests.

Rules (Envoy, ResourceManager): the share is of all requests in flight, those that wait for a connection and
the retry's own included; or, with an interval, of the tries that were given a connection in it, retries too,
whether they are over or not. It is rounded down; as many retries as `minimum` are always allowed. With a
budget the breaker's `max_retries` is not looked at.

The interval has ten parts: the one that goes on and the nine before it.
"""

from collections.abc import MutableMapping

from meshlib.values import dataclass

PARTS = 10
Tries = MutableMapping[int, int]
"""How many tries were given a connection, by the number of the part of an interval."""


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Of one cluster."""

    percent: float = 20.0
    minimum: int = 3
    interval: float = 0.0
    """Seconds; 0: what is in flight counts."""


def most_retries(budget: RetryBudget, requests: int) -> int:
    """How many retries may be in flight beside so many requests."""
    return max(int(budget.percent / 100.0 * requests), budget.minimum)


def count_try(budget: RetryBudget, tries: Tries, now: float) -> None:
    """A try was given a connection."""
    part = _part(budget, now)
    if part not in tries:
        for each in list(tries):
            if not part - PARTS < each < part:
                tries.pop(each, None)
    tries[part] = tries.get(part, 0) + 1


def tries_of(budget: RetryBudget, tries: Tries, now: float) -> int:
    """How many tries were given a connection in the interval."""
    part = _part(budget, now)
    return sum(tries.get(part - back, 0) for back in range(PARTS))


def _part(budget: RetryBudget, now: float) -> int:
    return int(now * PARTS / budget.interval)
