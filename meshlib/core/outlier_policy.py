"""When an endpoint is ejected for a while (`outlier` decides by it)."""

from collections.abc import Callable
from dataclasses import field

from meshlib.core.request import ResponseHead
from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class InARow:
    """A detector of so many failures in a row."""

    count: int
    enforced: int = 100
    """Percent of the times that it ejects."""


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """A detector of endpoints that succeed less than the others do, once an interval."""

    deviations: float = 1.9
    """How many standard deviations below the mean are too few."""
    hosts: int = 5
    """Below so many endpoints with enough requests nothing is compared."""
    requests: int = 100
    """In an interval; an endpoint with less is not looked at."""
    enforced: int = 100


@dataclass(frozen=True, slots=True)
class FailurePercentage:
    """A detector of endpoints that fail too often, once an interval."""

    percent: int = 85
    hosts: int = 5
    requests: int = 50
    enforced: int = 100


@dataclass(frozen=True, slots=True)
class OutlierPolicy:
    """When an endpoint is ejected for a while. Times in seconds; None: that detector is off."""

    consecutive_5xx: InARow | None = InARow(5)
    consecutive_gateway: InARow | None = None
    consecutive_local: InARow | None = None
    success_rate: SuccessRate | None = None
    failure_percentage: FailurePercentage | None = None
    local_success_rate: SuccessRate | None = None
    local_failure_percentage: FailurePercentage | None = None
    split: bool = False
    """Whether failures that the process itself sees (no connection, a reset, a timeout) are counted apart,
    by the detectors called local, which otherwise count nothing.
    """
    errors: Callable[[ResponseHead], bool] | None = None
    """Which responses are failures; None: those of 500 and more."""
    interval: float = 10.0
    base_ejection: float = 30.0
    max_ejection: float = 300.0
    jitter: float = 0.0
    """An ejection lasts up to so much longer."""
    max_ejection_percent: int = 10
    always_eject_one: bool = False
    """Whether one endpoint may be ejected whatever the percentage says."""
    rates: bool = field(init=False, default=False)
    """Whether a detector looks at all responses of an interval."""
    plain: bool = field(init=False, default=False)
    """Whether a response is judged by its status alone, and a good one only ends a row of failures."""

    def __post_init__(self) -> None:
        rated = (self.success_rate, self.failure_percentage)
        local = (self.local_success_rate, self.local_failure_percentage)
        object.__setattr__(self, "rates", any((*rated, *local)))
        object.__setattr__(self, "plain", not self.rates and not self.split and self.errors is None)
