"""A retry that leaves the priorities tried before (retryRemoteLocalities).

Rules (Envoy, PreviousPrioritiesRetryPriority):
* After every so many tries, `frequency`, the priorities of all hosts tried take nothing more; the others
  share by what they are available. In between nothing changes.
* When none is left, all count again from the beginning.
* A policy that looks at keys does not ask.
"""

from collections.abc import Sequence

from meshlib.core.balance.plan import Plan
from meshlib.core.balance.priorities import Loads, available, spread


def loads_after(plan: Plan, tried: Sequence[str], frequency: int) -> Loads | None:
    """What the priorities take after these tries; None: what they do anyway."""
    priority_of = {
        endpoint.key: number
        for number, level in enumerate(plan.levels)
        for group in level.groups
        for endpoint in group.endpoints
    }
    health = [level.health for level in plan.levels]
    healthy, degraded = available(health, plan.endpoints.overprovisioning)
    attempted: list[str] = []
    excluded: set[int] = set()
    loads: Loads | None = None
    for key in tried:
        attempted.append(key)
        if len(attempted) < frequency:
            loads = None
        elif not len(attempted) % frequency:
            excluded |= {priority_of[each] for each in attempted if each in priority_of}
            left = _without(healthy, excluded), _without(degraded, excluded)
            if not any((*left[0], *left[1])):
                attempted, excluded, left = [], set(), (healthy, degraded)
            loads = spread(*left, plan.loads.panics) if any((*left[0], *left[1])) else None
    return loads


def _without(available: Sequence[int], excluded: set[int]) -> Sequence[int]:
    return [0 if number in excluded else each for number, each in enumerate(available)]
