"""Percentages as Envoy's fractions, in parts per million."""

from typing import Any

from meshlib.control.istio.fields import Percent
from meshlib.xds import pb

MILLION = 1_000_000


def millionths(percent: float) -> int:
    """0.0 to 100.0 in parts per million, cut off as Istio does, within bounds."""
    return max(0, min(MILLION, int(round(percent * 10_000, 6))))


def fraction(percent: float) -> Any:
    """An envoy.type.v3.FractionalPercent."""
    return pb.FractionalPercent(numerator=millionths(percent), denominator="MILLION")


def percent_or(percent: Percent | None, default: float) -> float:
    """The value of a percentage that may be missing."""
    return default if percent is None else percent.value
