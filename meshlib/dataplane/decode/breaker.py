"""Envoy's CircuitBreakers as core's Limits: the thresholds of the default priority.

`track_remaining` is about statistics, and `max_connection_pools` about pools that Envoy makes for each
connection of a caller: neither means anything here.
"""

from typing import Any

from meshlib.core.balance.cluster import Limits
from meshlib.core.budget import RetryBudget
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.text import decode_seconds

DEFAULT_LIMIT = 1024
DEFAULT_RETRIES = 3


def decode_limits(message: Any) -> Limits:
    """An envoy.config.cluster.v3.CircuitBreakers; what is not set has Envoy's default."""
    for number, found in enumerate(message.thresholds):
        budget = _budget(found, f"thresholds[{number}].retry_budget")
        if found.priority == 0:
            return Limits(
                # An endpoint without any connection gets one, whatever the limit is.
                max(1, _value(found, "max_connections", DEFAULT_LIMIT)),
                _value(found, "max_pending_requests", DEFAULT_LIMIT),
                _value(found, "max_requests", DEFAULT_LIMIT),
                _value(found, "max_retries", DEFAULT_RETRIES),
                budget,
            )
    return Limits(DEFAULT_LIMIT, DEFAULT_LIMIT, DEFAULT_LIMIT, DEFAULT_RETRIES)


def _budget(message: Any, path: str) -> RetryBudget | None:
    if not message.HasField("retry_budget"):
        return None
    said = message.retry_budget
    percent = said.budget_percent.value if said.HasField("budget_percent") else 20.0
    if not 0 <= percent <= 100:  # which NaN is not either
        raise Refused(f"{path}.budget_percent.value", f"{percent} is no percentage")
    try:
        interval = decode_seconds(said, "budget_interval", 0.0)
    except Refused as refused:
        raise refused.within(path) from None
    # Envoy counts in whole milliseconds.
    return RetryBudget(percent, _value(said, "min_retry_concurrency", 3), int(interval * 1000) / 1000)


def _value(message: Any, name: str, default: int) -> int:
    return int(getattr(message, name).value) if message.HasField(name) else default
