"""Balancing by locality, as Istio's webhook checks it.

Rules:
- A locality is region[/zone[/subzone]]; one `*` may end it.
- Of the localities that are listed together none lies in one before it.
- Failover is between regions, and works only where endpoints are ejected.
"""

from collections.abc import Iterable

from meshlib.control.istio.destinationrule import (
    Failover,
    LocalityLoadBalancerSetting,
    ZoneAwareLoadBalancerSetting,
)
from meshlib.control.istio.validity.report import Report

_TOPOLOGY = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone")
LOCALITY = "region, region/zone or region/zone/subzone, * only at the end"


def setting(given: LocalityLoadBalancerSetting, ejects: bool, to: Report) -> None:
    """Shares, or who takes over."""
    if given.distribute and given.failover:
        to.at("distribute").error("stands with failover", "", "distribute or failover")
    origins = to.at("distribute")
    _apart([(share.from_, origins.at(i, "from_")) for i, share in enumerate(given.distribute)])
    for index, share in enumerate(given.distribute):
        at = origins.at(index, "to")
        total = sum(share.to.values())
        for name, weight in share.to.items():
            if not 1 <= weight <= 100:
                at.at(name).error("not a share", weight, "1 to 100")
        if total != 100:
            at.error("the shares are not 100", total, "shares of 1 to 100 that add up to 100")
        _apart([(name, at.at(name)) for name in share.to])
    _failover(given.failover, to.at("failover"))
    if given.failover:
        _no_topology(given.failover_priority, "beside failover", to.at("failover_priority"))
    _ejecting(bool(given.failover or given.failover_priority), ejects, to)


def zone_aware(given: ZoneAwareLoadBalancerSetting, ejects: bool, to: Report) -> None:
    """Zones are seen to without being named."""
    _failover(given.failover, to.at("failover"))
    _no_topology(given.failover_priority, "of zone-aware balancing", to.at("failover_priority"))
    _ejecting(bool(given.failover or given.failover_priority), ejects, to)


def valid(text: str) -> bool:
    """Whether this is a locality."""
    parts = text.split("/")
    return all(parts) and len(parts) <= 3 and "*" not in text.removesuffix("*")


def plain(text: str) -> bool:
    """Whether this is where a server may stand: a locality without a wildcard."""
    return valid(text) and "*" not in text


def _apart(given: Iterable[tuple[str, Report]]) -> None:
    seen: list[str] = []
    for text, at in given:
        if not valid(text):
            at.error("not a locality", repr(text), LOCALITY)
            continue
        # What is written with * may take the rest of what stands before it.
        rest = text.endswith("*")
        other = next((one for one in seen if _within(one, text) or (not rest and _within(text, one))), None)
        if other is not None:
            at.error(f"overlaps {other}", repr(text), "localities apart from each other")
        seen.append(text)


def _within(wide: str, narrow: str) -> bool:
    """Whether the wide locality contains the other; what is left out at the end stands for all."""
    outer, inner = wide.removesuffix("*").rstrip("/"), narrow.removesuffix("*").rstrip("/")
    return not outer or inner == outer or inner.startswith(outer + "/")


def _failover(given: tuple[Failover, ...], to: Report) -> None:
    for index, over in enumerate(given):
        for name, region in (("from_", over.from_), ("to", over.to)):
            if not region or "/" in region or "*" in region:
                to.at(index, name).error("not a region", repr(region), "a region without zone and wildcard")
        if over.from_ == over.to:
            to.at(index).error("a region that fails over to itself", repr(over.to), "two regions")


def _no_topology(labels: tuple[str, ...], where: str, to: Report) -> None:
    for index, label in enumerate(labels):
        if label in _TOPOLOGY:
            to.at(index).error(f"names localities {where}", repr(label), "other labels")


def _ejecting(fails_over: bool, ejects: bool, to: Report) -> None:
    if fails_over and not ejects:
        to.warn(
            "failover works only together with outlierDetection", "", "outlierDetection in the same policy"
        )
