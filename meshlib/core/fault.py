"""Faults on purpose: which requests are delayed, which are answered with an error instead of being sent.

Rules (Envoy, FaultFilter):

- A fault concerns a request by the cluster of its route, its headers, and the node that sends it.
- Delay and abort are drawn each by itself; the abort is drawn after the delay.
- What the resource leaves to the request (`header_delay`, `header_abort`), x-envoy-fault-… headers say.
  Of them a percentage can only lower that of the resource. A status beats a gRPC status.
- A request that is delayed or aborted counts as an active fault to its end; beyond the most, none is made.
"""

from typing import NamedTuple

from meshlib.core.numbers import number
from meshlib.core.request import Dice, RequestHead
from meshlib.core.route.match import HeaderMatch
from meshlib.values import dataclass

BODY = b"fault filter abort"
DELAYED, ABORTED = "DI", "FI"
_NODE = b"x-envoy-downstream-service-node"
_DELAY = b"x-envoy-fault-delay-request"
_ABORT = b"x-envoy-fault-abort-request"
_ABORT_GRPC = b"x-envoy-fault-abort-grpc-request"
_NO_LIMIT = 2**32 - 1
_OK = 200


class Share(NamedTuple):
    """A share of the requests."""

    numerator: int
    denominator: int

    def falls(self, dice: Dice, wanted: bytes | None = None) -> bool:
        """Whether this request is one of them; `wanted` is the request's own word for the numerator."""
        own = number(wanted, _NO_LIMIT)
        most = self.numerator if own is None else min(own, self.numerator)
        return most >= self.denominator or (most > 0 and dice.random() * self.denominator < most)

    def __str__(self) -> str:
        return f"{100 * self.numerator / self.denominator:g} %"


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait before anything else is done."""

    share: Share
    seconds: float | None = None
    """None: the request says how long, in milliseconds."""

    def __str__(self) -> str:
        how = "as long as the request says" if self.seconds is None else f"{self.seconds:g} s"
        return f"delay {how} for {self.share}"


class Aborted(NamedTuple):
    """How a request is answered. `grpc` counts for those that speak gRPC; None: as `status` reads there."""

    status: int
    grpc: int | None = None


@dataclass(frozen=True, slots=True)
class Abort:
    """Answer instead of sending."""

    share: Share
    how: Aborted | None = None
    """None: the request says it."""

    def __str__(self) -> str:
        if self.how is None:
            return f"abort as the request says for {self.share}"
        how = f"{self.how.status}" if self.how.grpc is None else f"with gRPC status {self.how.grpc}"
        return f"abort {how} for {self.share}"


@dataclass(frozen=True, slots=True)
class Fault:
    """The faults of a route, from Envoy's HTTPFault."""

    delay: Delay | None = None
    abort: Abort | None = None
    cluster: str = ""
    """Only requests to this one; empty: to any, and those that nobody is sent."""
    headers: tuple[HeaderMatch, ...] = ()
    nodes: frozenset[bytes] = frozenset()
    """Only requests of these nodes, by their x-envoy-downstream-service-node; empty: of any."""
    max_active: int = _NO_LIMIT

    def concerns(self, head: RequestHead, cluster: str) -> bool:
        """Whether it is there for a request to that cluster (empty: it is answered here)."""
        if self.cluster and self.cluster != cluster:
            return False
        if self.nodes and head.index.get(_NODE) not in self.nodes:
            return False
        return all(header.holds(head) for header in self.headers)

    def delay_of(self, head: RequestHead, dice: Dice) -> float:
        """Seconds by which this request is delayed; 0: it is not."""
        delay = self.delay
        if delay is None or not delay.share.falls(dice, _percentage(head, _DELAY, delay.seconds)):
            return 0.0
        if delay.seconds is not None:
            return delay.seconds
        return (number(head.index.get(_DELAY)) or 0) / 1000

    def abort_of(self, head: RequestHead, dice: Dice) -> Aborted | None:
        """How this request is answered; None: it is not."""
        abort = self.abort
        if abort is None or not abort.share.falls(dice, _percentage(head, _ABORT, abort.how)):
            return None
        return abort.how or _wished(head)

    def __str__(self) -> str:
        return ", ".join(str(each) for each in (self.delay, self.abort) if each is not None)


def _percentage(head: RequestHead, name: bytes, said: object) -> bytes | None:
    """The request's own percentage; None: it has none, or the resource leaves nothing to it."""
    return head.index.get(name + b"-percentage") if said is None else None


def _wished(head: RequestHead) -> Aborted | None:
    status = number(head.index.get(_ABORT))
    if status is not None and _OK <= status < 600:
        return Aborted(status)
    grpc = number(head.index.get(_ABORT_GRPC))
    return None if grpc is None else Aborted(_OK, grpc)
