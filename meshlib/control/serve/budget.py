"""How much may wait, in all connections together, in messages that are not whole.

A caller is known by its certificate or token; that gives it no right to the control service's memory. Rules:

- One connection may hold so much, all of them together so much.
- If all together hold too much, the caller that holds most loses its largest connection. A caller is an
  identity, or, as long as that is not known, an address: many connections make nobody small.
- Who is refused counts no more: it is read from no further, and about to be closed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from meshlib.control.serve.limits import MAX_RECEIVED

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """The bounds, in bytes."""

    each: int = 2 * MAX_RECEIVED + MEBIBYTE // 4
    """Two of the largest messages at a time, with the frames that they come in."""
    all: int = 64 * MEBIBYTE


@dataclass(slots=True)
class _Holding:
    caller: str
    size: int
    refuse: Callable[[str], None]


class Budget:
    """That of one port. One event loop."""

    def __init__(self, limits: BudgetLimits) -> None:
        """Nobody holds anything."""
        self._limits = limits
        self._there: dict[object, _Holding] = {}
        self.held = 0
        """By all together."""

    def holds(self, who: object, caller: str, size: int, refuse: Callable[[str], None]) -> None:
        """A connection of that caller holds so much now. Calls the `refuse` of who holds too much, once."""
        known = self._there.get(who)
        if known is None:
            if not size:
                return
            known = self._there[who] = _Holding(caller, 0, refuse)
        self.held += size - known.size
        known.caller, known.size = caller, size
        if size > self._limits.each:
            self._refuse(who, f"this connection holds more than {_text(self._limits.each)}")
        elif self.held > self._limits.all:
            self._refuse(
                self._greatest(),
                f"all connections together hold more than {_text(self._limits.all)}, and this caller most",
            )

    def gone(self, who: object) -> None:
        """It holds nothing any more."""
        if (known := self._there.pop(who, None)) is not None:
            self.held -= known.size

    def _greatest(self) -> object:
        of_caller: Counter[str] = Counter()
        for one in self._there.values():
            of_caller[one.caller] += one.size
        return max(self._there, key=lambda who: (of_caller[self._there[who].caller], self._there[who].size))

    def _refuse(self, who: object, why: str) -> None:
        known = self._there[who]
        self.gone(who)
        known.refuse(f"{why} in messages that are not whole")


def _text(size: int) -> str:
    return f"{size / MEBIBYTE:g} MiB"
