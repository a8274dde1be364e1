"""Earliest deadline first: each entry's turn comes as often as its weight says, evenly spread.

Safe among threads without a lock: popping and pushing are one operation each; an entry that another
thread has in hand at that moment is passed over.
"""

import heapq
from collections.abc import Callable, Sequence
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Fixed weights, exact shares: in each W picks (the sum of weights) each has its own."""

    __slots__ = ("_cursor", "_equal", "_heap", "_items")

    def __init__(self, items: Sequence[T], weights: Sequence[int], start: float = 0.0) -> None:
        """Entries of weight 0 are left out. `start`, in [0, 1), says where in the round it begins."""
        kept = [(item, weight) for item, weight in zip(items, weights, strict=True) if weight > 0]
        self._items = tuple(item for item, _ in kept)
        self._equal = len({weight for _, weight in kept}) <= 1
        self._cursor = count(int(start * len(kept)))
        self._heap: list[tuple[float, int, int, int]] = []
        if not self._equal:
            self._heap = [(1 / weight, number, 1, weight) for number, (_, weight) in enumerate(kept)]
            heapq.heapify(self._heap)
            for _ in range(int(start * len(kept))):
                self.next()

    def next(self) -> T | None:
        """Whose turn it is; None if there is nobody."""
        items = self._items
        if self._equal:
            return items[next(self._cursor) % len(items)] if items else None
        try:
            _, number, turn, weight = heapq.heappop(self._heap)
        except IndexError:
            return items[next(self._cursor) % len(items)]
        # Divided anew each time: after `weight` turns the deadline is exactly 1, whatever was rounded.
        heapq.heappush(self._heap, ((turn + 1) / weight, number, turn + 1, weight))
        return items[number]


class LiveTurns(Generic[T]):
    """Weights that are asked for at each turn: of busy endpoints (least request), of new ones."""

    __slots__ = ("_cursor", "_heap", "_items", "_weigh")

    def __init__(
        self, items: Sequence[T], weigh: Callable[[T, float], float], now: float, start: float = 0.0
    ) -> None:
        """`weigh` gives more than 0 for an entry at a time. `start` is as for `Turns`."""
        self._items = tuple(items)
        self._weigh = weigh
        self._cursor = count()
        self._heap = [(1 / weigh(item, now), number) for number, item in enumerate(self._items)]
        heapq.heapify(self._heap)
        for _ in range(int(start * len(self._items))):
            self.next(now)

    def next(self, now: float) -> T | None:
        """Whose turn it is; None if there is nobody."""
        items = self._items
        if not items:
            return None
        try:
            deadline, number = heapq.heappop(self._heap)
        except IndexError:
            return items[next(self._cursor) % len(items)]
        item = items[number]
        heapq.heappush(self._heap, (deadline + 1 / self._weigh(item, now), number))
        return item
