"""How much of the requests each priority takes, and whether it panics.

Rules (Envoy, LoadBalancerBase):
* A priority is available as far as its healthy share, times the overprovisioning factor, reaches; its
  degraded share comes after the healthy ones of all priorities. Lower priorities get what is left.
* If all together are less than fully available, a priority of which too few are healthy or degraded
  panics: it is used whole. A threshold of 0 turns panic off.
* Endpoints that drain count in neither share: who leaves does not make the others look ill.
* If every priority panics, each takes what its number of endpoints says, draining ones included.
* What rounding leaves over goes to the first priority that is available at all.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Health(NamedTuple):
    """One priority. Endpoints by number; `weights`: what stands in place of the numbers for its load."""

    healthy: int
    degraded: int
    counted: int
    """All but those that drain."""
    size: int
    weights: tuple[int, int, int] | None = None
    """Of the healthy ones, the degraded ones, all that count; None: the numbers count."""


class Loads(NamedTuple):
    """Percent of the requests by priority, 100 in all, and who panics."""

    healthy: tuple[int, ...]
    degraded: tuple[int, ...]
    panics: tuple[bool, ...]


def priority_loads(levels: Sequence[Health], threshold: int, factor: int) -> Loads:
    """The loads of the priorities. `threshold` and `factor` (overprovisioning) are percents."""
    nothing = tuple(0 for _ in levels)
    calm = tuple(False for _ in levels)
    if not levels:
        return Loads(nothing, nothing, calm)
    healthy, degraded = available(levels, factor)
    reached = min(100, sum(healthy) + sum(degraded))
    if not reached and not threshold:
        return Loads((100, *nothing[1:]), nothing, calm)
    panics = tuple(reached < 100 and _percent(level) < threshold for level in levels)
    if all(panics):
        return Loads(_by_size(levels), nothing, panics)
    if not reached:
        return Loads(nothing, nothing, panics)
    loads, left = _distribute(healthy, 100, reached)
    others, left = _distribute(degraded, left, reached)
    for part, reach in ((loads, healthy), (others, degraded)):
        first = next((number for number, each in enumerate(reach) if each), None)
        if first is not None:
            part[first] += left
            break
    return Loads(tuple(loads), tuple(others), panics)


def available(levels: Sequence[Health], factor: int) -> tuple[list[int], list[int]]:
    """How far the healthy and the degraded endpoints of each priority reach, in percent."""
    return [_available(level, 0, factor) for level in levels], [
        _available(level, 1, factor) for level in levels
    ]


def spread(healthy: Sequence[int], degraded: Sequence[int], panics: tuple[bool, ...]) -> Loads:
    """The loads of a retry, by what is available (Envoy, adjustForAttemptedPriorities)."""
    reached = min(100, sum(healthy) + sum(degraded))
    loads = [0] * (len(healthy) + len(degraded))
    left = 100
    while left:
        for number, each in enumerate((*healthy, *degraded)):
            part = min(left, each * 100 // reached)
            loads[number] += part
            left -= part
    return Loads(tuple(loads[: len(healthy)]), tuple(loads[len(healthy) :]), panics)


def _available(level: Health, which: int, factor: int) -> int:
    counts = level.weights or (level.healthy, level.degraded, level.counted)
    return min(100, factor * counts[which] // counts[2]) if counts[2] else 0


def _percent(level: Health) -> float:
    return 100.0 * (level.healthy + level.degraded) / level.counted if level.counted else 0.0


def _distribute(available: Sequence[int], left: int, reached: int) -> tuple[list[int], int]:
    loads = []
    for part in available:
        loads.append(min(left, part * 100 // reached))
        left -= loads[-1]
    return loads, left


def _by_size(levels: Sequence[Health]) -> tuple[int, ...]:
    total = sum(level.size for level in levels)
    if not total:
        return (100, *(0 for _ in levels[1:]))
    shares = [100 * level.size // total for level in levels]
    first = next(number for number, level in enumerate(levels) if level.size)
    shares[first] += 100 - sum(shares)
    return tuple(shares)
