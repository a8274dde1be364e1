"""Whether, and when, a failed attempt is tried again. Envoy's rules (router filter, `retry_on`).

Law: a retry happens only if the policy names the outcome, tries are left, the body can be sent
again and no response was delivered. Methods are not looked at: Envoy does not either.
"""

from collections.abc import Mapping
from dataclasses import field, replace
from enum import Enum

from meshlib.core.numbers import number
from meshlib.core.request import Dice, Failed, Failure, Outcome, RequestHead, ResponseHead
from meshlib.values import dataclass


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


_RATELIMITED = b"x-envoy-ratelimited"
_GRPC_STATUS = b"grpc-status"
_WELL = ((_GRPC_STATUS, b"0"),)
"""All that most calls of gRPC come to."""
_STATUSES = {
    RetryOn.FIVE_XX: range(500, 600),
    RetryOn.GATEWAY_ERROR: range(502, 505),
    RetryOn.RETRIABLE_4XX: (409,),
}
_GRPC_CONDITIONS = {
    1: RetryOn.CANCELLED,
    4: RetryOn.DEADLINE_EXCEEDED,
    8: RetryOn.RESOURCE_EXHAUSTED,
    13: RetryOn.INTERNAL,
    14: RetryOn.UNAVAILABLE,
}


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
    leave_priorities_after: int = 0
    """After every so many tries the priorities tried take nothing more; 0: they stay."""
    statuses: frozenset[int] = field(init=False, compare=False, repr=False)
    """All statuses that are retried."""
    telling: frozenset[bytes] = field(init=False, compare=False, repr=False)
    """The headers of a response that say more than its status; a response without them is judged by that."""
    named: frozenset[bytes] = field(init=False, compare=False, repr=False)
    """The headers that are retried for being there."""
    codes: frozenset[int] = field(init=False, compare=False, repr=False)
    """All statuses of gRPC that are retried."""

    def __post_init__(self) -> None:
        on = self.retry_on
        found = {status for each in on for status in _STATUSES.get(each, ())}
        if RetryOn.RETRIABLE_STATUS_CODES in on:
            found |= self.status_codes
        named = frozenset(self.headers if RetryOn.RETRIABLE_HEADERS in on else ())
        codes = frozenset(code for code, each in _GRPC_CONDITIONS.items() if each in on)
        object.__setattr__(self, "statuses", frozenset(found))
        object.__setattr__(self, "telling", named | {_RATELIMITED, _GRPC_STATUS})
        object.__setattr__(self, "named", named)
        object.__setattr__(self, "codes", codes)


DEFAULT = RetryPolicy(frozenset())
"""What a request without a policy of its route starts from, if it asks for retries itself."""
_GRPC_WORDS = {condition.value.encode(): condition for condition in _GRPC_CONDITIONS.values()}
_WORDS = {each.value.encode(): each for each in RetryOn if each not in _GRPC_WORDS.values()}
"""Each header has its own words; a policy may use all of them."""
_CONNECT = frozenset((Failure.CONNECT_FAILED, Failure.CONNECT_TIMED_OUT))
_NOT_STARTED = _CONNECT | {Failure.RESET_BEFORE_REQUEST}
CONSUMED = frozenset(
    (
        b"x-envoy-retry-on",
        b"x-envoy-retry-grpc-on",
        b"x-envoy-max-retries",
        b"x-envoy-retriable-status-codes",
        b"x-envoy-retriable-header-names",
        b"x-envoy-hedge-on-per-try-timeout",
    )
)
"""Request headers that are for the sidecar and do not go further."""


def effective(policy: RetryPolicy | None, head: RequestHead) -> RetryPolicy | None:
    """The route's policy with what the application's own x-envoy-… headers add; None: no retries."""
    on, grpc_on = head.header(b"x-envoy-retry-on"), head.header(b"x-envoy-retry-grpc-on")
    base = policy or DEFAULT
    conditions = base.retry_on | _named(on, _WORDS) | _named(grpc_on, _GRPC_WORDS)
    if not conditions:
        return None
    retries = base.retries
    wanted = number(head.header(b"x-envoy-max-retries"))
    if wanted is not None:
        retries = wanted % 2**32
    codes = head.header(b"x-envoy-retriable-status-codes") or b""
    names = head.header(b"x-envoy-retriable-header-names") or b""
    return replace(
        base,
        retry_on=conditions,
        retries=retries,
        status_codes=base.status_codes.union(
            code for word in codes.split(b",") if (code := number(word, 2**32 - 1)) is not None
        ),
        headers=base.headers + tuple(n.lower() for n in map(bytes.strip, names.split(b",")) if n),
    )


def _named(value: bytes | None, words: Mapping[bytes, RetryOn]) -> set[RetryOn]:
    return {words[w] for w in map(bytes.strip, (value or b"").split(b",")) if w in words}


def wants_retry(policy: RetryPolicy, outcome: Outcome) -> bool:
    """Whether the policy names this outcome."""
    if isinstance(outcome, Failed):
        return _wants_after_failure(policy.retry_on, outcome.how)
    headers = outcome.headers
    if headers == _WELL or policy.telling.isdisjoint(map(bytes.lower, dict(headers))):
        return outcome.status in policy.statuses
    return _wants_after_response(policy, outcome)


def _wants_after_failure(on: frozenset[RetryOn], how: Failure) -> bool:
    # Envoy, RetryStateImpl::wouldRetryFromReset: an overflow is never retried.
    if how in (Failure.TIMED_OUT, Failure.OVERFLOW, Failure.BROKEN_OFF):
        return False
    # Envoy, RetryStateImpl::wouldRetryFromReset: these three take every way to lose a try.
    if RetryOn.RESET in on or RetryOn.FIVE_XX in on or RetryOn.GATEWAY_ERROR in on:
        return True
    if RetryOn.RESET_BEFORE_REQUEST in on and how in _NOT_STARTED:
        return True
    if RetryOn.REFUSED_STREAM in on and how is Failure.REFUSED_STREAM:
        return True
    return RetryOn.CONNECT_FAILURE in on and how in _CONNECT


def _wants_after_response(policy: RetryPolicy, head: ResponseHead) -> bool:
    said: dict[bytes, bytes] = {}
    for name, value in head.headers:
        said.setdefault(name.lower(), value)
    if _RATELIMITED in said:
        return RetryOn.ENVOY_RATELIMITED in policy.retry_on
    if head.status in policy.statuses or not policy.named.isdisjoint(said):
        return True
    grpc = said.get(_GRPC_STATUS)
    return grpc is not None and number(grpc) in policy.codes


def back_off(policy: RetryPolicy, retry: int, dice: Dice) -> float:
    """Seconds before the retry of that number (1 is the first): below base × 2^(n-1), full jitter."""
    longest = min(policy.base_interval * (1 << min(retry - 1, 32)), policy.max_interval)
    return longest * dice.random()
