"""When a certificate is renewed, and when its state is an alarm.

Rules:

- At half of its term, give or take a hundredth, so that a crowd that started together does not come
  together (Istio's agent: SECRET_GRACE_PERIOD_RATIO 0.5, jitter 0.01).
- A term begins when the certificate was received: the CA dates it back for skew, and half of a short
  life would be over before it began.
- What failed is tried again with growing pauses, and at least ten times in what is left of the term.
- A wait is cut into slices: a clock that jumps, or a machine that slept, is noticed after one.
"""

from collections.abc import Iterable
from enum import Enum

from cryptography import x509

from meshlib.values import dataclass

RATIO, SPREAD = 0.5, 0.01
LATE, EXPIRING = 0.6, 0.75
"""Shares of the term after which a certificate that should be new is an alarm, and a loud one."""
SLICE_S = 60.0
"""The longest wait without a look at the clock."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
TRIES_LEFT = 10
BACKDATED_S = 120.0
"""How far the CA dates a certificate back (Istio's clock skew grace)."""


class Health(Enum):
    """How a certificate stands."""

    OK = "ok"
    LATE = "should have been renewed"
    EXPIRING = "ends soon and could not be renewed"
    EXPIRED = "has ended"
    REFUSED = "is of no use at the control service any more"
    """Whatever its term; who looks at the term alone never says so."""

    @property
    def alarm(self) -> bool:
        """Whether somebody should be told."""
        return self is not Health.OK


@dataclass(frozen=True, slots=True)
class Term:
    """From when to when a certificate serves, in Unix seconds."""

    begin: float
    end: float

    @classmethod
    def of(cls, certificate: x509.Certificate, received: float | None = None) -> "Term":
        """Of a certificate that was received at a time; None: not known, such as from a file."""
        first = certificate.not_valid_before_utc.timestamp()
        end = certificate.not_valid_after_utc.timestamp()
        begin = first + BACKDATED_S if received is None else received
        return cls(min(max(begin, first), end), end)

    @property
    def length(self) -> float:
        """Seconds from begin to end."""
        return self.end - self.begin


def out_of_force(certificates: Iterable[x509.Certificate], now: float) -> str:
    """`has ended, on 2020-01-31`: why one of a chain is not good now; empty: all are."""
    for one in certificates:
        begin, end = one.not_valid_before_utc, one.not_valid_after_utc
        if end.timestamp() <= now:
            return f"has ended, on {end:%Y-%m-%d}"
        if begin.timestamp() > now:
            return f"begins later, on {begin:%Y-%m-%d}"
    return ""


def renew_at(term: Term, jitter: float) -> float:
    """When to renew, in Unix seconds. `jitter`: from -1 to 1, the process's own throw."""
    if not -1.0 <= jitter <= 1.0:
        raise ValueError(f"jitter {jitter} is not from -1 to 1")
    return term.begin + term.length * (RATIO + SPREAD * jitter)


def is_due(term: Term, now: float, jitter: float) -> bool:
    """Whether to renew now. A clock before the begin has been set back: what holds is not known, so yes."""
    return now >= renew_at(term, jitter) or now < term.begin - BACKDATED_S


def wait(term: Term, now: float, jitter: float) -> float:
    """Seconds until the next look: 0 if it is due, else at most a slice."""
    if is_due(term, now, jitter):
        return 0.0
    return min(renew_at(term, jitter) - now, SLICE_S)


def pause(term: Term, now: float, failures: int, jitter: float) -> float:
    """Seconds until the next try after `failures` tries in a row failed, 1 or more.

    Doubles from one second to five minutes; is never more than a tenth of what is left. Once the
    certificate has ended it is as long as after so many failures, for a new one may still come.
    """
    grown = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20), LONGEST_PAUSE_S) * (1 + 0.2 * jitter)
    left = term.end - now
    return max(min(grown, left / TRIES_LEFT), FIRST_PAUSE_S / 2) if left > 0 else grown


def health(term: Term, now: float) -> Health:
    """How a certificate stands at a time."""
    if now >= term.end:
        return Health.EXPIRED
    if now >= term.begin + term.length * EXPIRING:
        return Health.EXPIRING
    if now >= term.begin + term.length * LATE or now < term.begin - BACKDATED_S:
        return Health.LATE
    return Health.OK
