"""When a certificate is renewed, and when somebody should be told that it was not.

Times are seconds since 1970, by the clock on the wall: that is what a certificate knows.
"""

from enum import Enum

SHARE = 0.5
"""Of its life, after which a certificate is renewed (Istio's SECRET_GRACE_PERIOD_RATIO)."""
JITTER = 0.05
"""Of its life, either way: so that those that were made together are not renewed together."""


class Health(Enum):
    """How a certificate is; the value completes the sentence `the certificate of …`."""

    OK = "is good"
    LATE = "should have been renewed"
    EXPIRING = "is about to end and can't be renewed"
    EXPIRED = "has ended"


def renew_at(not_before: float, not_after: float, roll: float) -> float:
    """When to renew a certificate of that life; `roll` in [0, 1) spreads it."""
    life = max(0.0, not_after - not_before)
    return not_before + life * (SHARE + JITTER * (2 * roll - 1))


def health(not_before: float, not_after: float, now: float) -> Health:
    """How a certificate of that life is now. LATE after 60 % of it, EXPIRING after 80 %."""
    life = max(0.0, not_after - not_before)
    if now >= not_after:
        return Health.EXPIRED
    if now >= not_before + 0.8 * life:
        return Health.EXPIRING
    return Health.LATE if now >= not_before + 0.6 * life else Health.OK
