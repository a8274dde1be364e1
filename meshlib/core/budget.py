"""The retry budget: how many retries a cluster may have in flight, as a share of its requests.

Rules (Envoy, ResourceManager): the share is of all requests, those that wait for a connection and the
retry's own included, rounded down; as many retries as `minimum` are always allowed. With a budget the
breaker's `max_retries` is not looked at.
"""

from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Of one cluster."""

    percent: float = 20.0
    minimum: int = 3


def most_retries(budget: RetryBudget, requests: int) -> int:
    """How many retries may be in flight beside so many requests."""
    return max(int(budget.percent / 100.0 * requests), budget.minimum)
