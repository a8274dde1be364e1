"""Envoy's CircuitBreakers as core's Limits: the thresholds of the default priority."""

from typing import Any

from meshlib.core.balance.cluster import Limits
from meshlib.dataplane.decode.errors import Refused

DEFAULT_LIMIT = 1024
DEFAULT_RETRIES = 3


def decode_limits(message: Any) -> Limits:
    """An envoy.config.cluster.v3.CircuitBreakers; what is not set has Envoy's default."""
    for number, found in enumerate(message.thresholds):
        if found.HasField("retry_budget"):
            raise Refused(f"thresholds[{number}].retry_budget", "is not supported")
        if found.priority == 0:
            return Limits(
                _value(found, "max_connections", DEFAULT_LIMIT),
                _value(found, "max_pending_requests", DEFAULT_LIMIT),
                _value(found, "max_requests", DEFAULT_LIMIT),
                _value(found, "max_retries", DEFAULT_RETRIES),
            )
    return Limits(DEFAULT_LIMIT, DEFAULT_LIMIT, DEFAULT_LIMIT, DEFAULT_RETRIES)


def _value(message: Any, name: str, default: int) -> int:
    return int(getattr(message, name).value) if message.HasField(name) else default
