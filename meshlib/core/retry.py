"""Whether, and when, a failed attempt is tried again. Envoy's rules (router filter, `retry_on`).

Law: a retry happens only if the policy names the outcome, tries are left, the body can be sent
again and no response was delivered. Methods are not looked at: Envoy does not either.
"""

from dataclasses import dataclass
from enum import Enum


class RetryOn(Enum):
    """Envoy's conditions."""

    FIVE_XX = "5xx"
    GATEWAY_ERROR = "gateway-error"
    RESET = "reset"
    RESET_BEFORE_REQUEST = "reset-before-request"
    CONNECT_FAILURE = "connect-failure"
    ENVOY_RATELIMITED = "envoy-ratelimited"
    RETRIABLE_4XX = "retriable-4xx"
    REFUSED_STREAM = "refused-stream"
    RETRIABLE_STATUS_CODES = "retriable-status-codes"
    RETRIABLE_HEADERS = "retriable-headers"
    HTTP3_POST_CONNECT_FAILURE = "http3-post-connect-failure"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    INTERNAL = "internal"
    RESOURCE_EXHAUSTED = "resource-exhausted"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Config of retries, from Envoy's RetryPolicy."""

    retry_on: frozenset[RetryOn]
    retries: int = 1
    """Tries after the first."""
    per_try_timeout: float = 0.0
    """Seconds; 0: the route's own timeout only."""
    status_codes: frozenset[int] = frozenset()
    headers: tuple[bytes, ...] = ()
    base_interval: float = 0.025
    max_interval: float = 0.25
    avoid_previous_hosts: bool = False
    host_selection_attempts: int = 1
