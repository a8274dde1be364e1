"""The law of the soak: what of the failures a real Envoy would have had too, and what is flat.

Phases are of a kind. Requests are of a policy: `tried` again by the rules, or `bare`.

- No tried request fails, in no phase; and in calm phases no bare one does.
- In another phase a bare request may fail in the ways that stand for its kind in MAY, and no more often than
  Envoy's, in phases of that kind, to that service, in that way: with e the failures that its share makes of
  as many requests, 1.5 e + 4 √(e + 4). It comes from four askers, of each client as of Envoy.
- Where one of Envoy's fails all the same, so may as many, by the same measure.
- A response that has begun breaks off where its endpoint dies, or says nothing more until the time is up, for
  all alike: at most one of each asker at a time.
- A request counts for the phase in which it began; a failure for the first, from there to the one in which
  it failed, that lets it fail like that.
- A number is flat if the line of least squares through the second half of its samples rises over that
  half by no more than its GROWTH; of fewer than SAMPLES there, in proportion more: a line through few points
  says little, and in its first minutes a process still grows. Slots are all free at the end.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soak.asking import BARE, MANY
from soak.reasons import Reason

MAY: Mapping[str, frozenset[Reason]] = {
    "calm": frozenset(),
    "unavailable": frozenset({Reason.ENDPOINT}),
    "resetting": frozenset({Reason.BROKEN}),
    "deaf": frozenset({Reason.TIME, Reason.CONNECT, Reason.BEGUN}),
    "drain": frozenset({Reason.CONNECT, Reason.BROKEN}),
    "die": frozenset({Reason.CONNECT, Reason.BROKEN, Reason.BEGUN}),
}
"""What may go wrong with a request that is not tried again, by the kind of the phase."""
GROWTH = {"rss_kb": 3_000.0, "descriptors": 5.0, "threads": 1.0, "tasks": 2.0, "slots": 2.0}
SAMPLES = 300
Key = tuple[str, str, str, Reason]
"""Kind of the phase, service, policy, reason."""


@dataclass
class Record:
    """What one process has asked, and how much of it failed."""

    asked: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By the kind of the phase, the service and the policy."""
    failed: Counter[Key] = field(default_factory=Counter)

    @staticmethod
    def of(told: Mapping[str, Any], phases: Sequence[str]) -> "Record":
        """Of the last line of `load`; `phases` are the kinds in their order."""
        made = Record()
        for phase, service, policy, count in told["asked"]:
            made.asked[phases[phase], service, policy] += count
        for began, ended, service, policy, name, count in told["failed"]:
            reason = Reason[name]
            kinds = phases[began : ended + 1]
            kind = next((one for one in kinds if may(one, policy, reason)), kinds[0])
            made.failed[kind, service, policy, reason] += count
        return made


def may(kind: str, policy: str, reason: Reason) -> bool:
    """Whether a request of that policy may fail like that in such a phase."""
    return reason in MAY[kind] and (policy == BARE or reason is Reason.BEGUN)


def wrong(ours: Record, envoys: Record, times: Mapping[str, int]) -> list[str]:
    """What breaks the law, a line each; `times`: how many phases there were of a kind."""
    found = []
    for key, count in sorted(ours.failed.items()):
        most = allowed(key, ours, envoys, times)
        if count > most:
            kind, service, policy, reason = key
            found.append(
                f"{kind}: {count} of {ours.asked[key[:3]]} {policy} requests to {service} failed, {reason}; "
                f"of Envoy's {envoys.failed[key]} of {envoys.asked[key[:3]]}, so at most {most:.0f} may"
            )
    return found


def allowed(key: Key, ours: Record, envoys: Record, times: Mapping[str, int]) -> float:
    """How many may."""
    kind, _, policy, reason = key
    if reason is Reason.BEGUN and reason in MAY[kind]:
        return MANY * times[kind]
    asked = envoys.asked[key[:3]]
    expected = envoys.failed[key] * ours.asked[key[:3]] / asked if asked else 0.0
    if not expected and not may(kind, policy, reason):
        return 0.0
    return 1.5 * expected + 4 * math.sqrt(expected + MANY)


def growth(values: Sequence[float]) -> float:
    """By how much the line of least squares through the second half rises over that half."""
    half = values[len(values) // 2 :]
    size = len(half)
    if size < 2:
        return 0.0
    middle, mean = (size - 1) / 2, sum(half) / size
    above = sum((place - middle) * (value - mean) for place, value in enumerate(half))
    return above / sum((place - middle) ** 2 for place in range(size)) * (size - 1)


def grown(told: Sequence[Mapping[str, float]], what: Iterable[str] = GROWTH) -> list[str]:
    """What is not flat, a line each."""
    found = []
    size = len(told) - len(told) // 2
    for name in what:
        rises, most = growth([one[name] for one in told]), GROWTH[name] * max(1.0, SAMPLES / max(size, 1))
        if rises > most:
            found.append(
                f"{name} grew by {rises:.1f} over the second half of {len(told)} samples; {most:.1f} may be"
            )
    return found
