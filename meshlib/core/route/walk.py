"""The decision of `RouteTable.match`, told step by step: which rules were tried, why each did not match."""

from collections.abc import Iterator

from meshlib.core.request import RequestHead
from meshlib.core.route.rule import Route
from meshlib.core.route.table import MILLION, VirtualHost
from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that was tried."""

    number: int
    """From 0, in the virtual host's order."""
    route: Route
    matched: bool
    why_not: str
    """Every condition that failed, in words; empty if the rule matched."""


def walk(host: VirtualHost, head: RequestHead, roll: float) -> Iterator[Step]:
    """Every rule up to the one that takes the request; `roll` is the dice's number in [0, 1)."""
    for number, route in enumerate(host.routes):
        why_not = route.match.why_not(head)
        share = route.match.share
        if not why_not and share is not None and roll * MILLION >= share:
            why_not = f"the rule takes part for {share / 10_000:g}% of requests, not for this one"
        yield Step(number, route, not why_not, why_not)
        if not why_not:
            return
