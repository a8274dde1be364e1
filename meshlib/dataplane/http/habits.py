"""For how long the peers of a pool leave an idle connection open, learned so that none is used which is just
being closed.

Rules:

- A peer that says so (`Keep-Alive: timeout=5`) is believed, and left first.
- An idle connection that its peer closed was idle for too long: `SHARE` of the shortest such time is the
  longest from now on. Less than `SHORTEST` teaches nothing: who restarts closes all.
- A peer that closed `STRIKES` connections in a row, each after its first use, does not keep any.
- That is remembered for `MEMORY` seconds, or `TIMES` as long as the connection was idle; each time that it
  turns out true again after it was forgotten, for twice as long, up to `LONGEST_MEMORY`.
"""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

SHARE = 0.75
MEMORY = 60.0
LONGEST_MEMORY = 3600.0
TIMES = 10
SHORTEST = 0.25
STRIKES = 3
MOST = 1024
"""Peers."""
A = TypeVar("A")


def kept_for(value: bytes) -> float:
    """Seconds for which a connection may be idle, by a Keep-Alive header."""
    for option in value.split(b","):
        name, _, digits = option.partition(b"=")
        digits = digits.strip()
        if name.strip().lower() == b"timeout" and digits.isdigit() and len(digits) < 10:
            seconds = int(digits)
            return max(seconds - 1.0, seconds / 2)
    return math.inf


@dataclass(slots=True)
class _Habit:
    until: float
    """When it is forgotten."""
    longest: float = math.inf
    strikes: int = 0
    memory: float = MEMORY


class Habits(Generic[A]):
    """Those of the peers of one pool, by address."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: dict[A, _Habit] = {}
        """Few: asked with each use of a connection whether there are any."""

    def closed(self, address: A, idle: float, uses: int, now: float) -> None:
        """The peer closed a connection that was idle for so many seconds, after so many uses."""
        habit = self.known.get(address)
        if habit is None:
            habit = _Habit(now)
        elif habit.until <= now:
            habit = _Habit(now, memory=min(2 * habit.memory, LONGEST_MEMORY))
        if idle >= SHORTEST:
            habit.longest = min(habit.longest, idle * SHARE)
        elif uses == 1:
            habit.strikes += 1
        habit.until = now + max(habit.memory, TIMES * idle)
        self.known.pop(address, None)
        self.known[address] = habit
        if len(self.known) > MOST:
            del self.known[next(iter(self.known))]

    def used_again(self, address: A) -> None:
        """An idle connection has served."""
        habit = self.known.get(address)
        if habit is not None:
            habit.strikes = 0

    def longest(self, address: A, now: float) -> float:
        """Seconds for which a connection may be idle."""
        habit = self.known.get(address)
        if habit is None or habit.until <= now:
            return math.inf
        return 0.0 if habit.strikes >= STRIKES else habit.longest
