"""What was compiled before and still holds, so that a change costs only what it touches.

An entry is kept under what it is for and with what it was made from. A compiler takes over what the
one before it used; what nobody asked for in between is forgotten.
"""

from collections.abc import Callable, Hashable
from typing import Any

Key = tuple[Hashable, ...]


class Memo:
    """Two generations of results. One thread compiles at a time."""

    def __init__(self, before: "Memo | None" = None) -> None:
        self._before: dict[Key, tuple[Any, Any]] = before.latest if before is not None else {}
        self._now: dict[Key, tuple[Any, Any]] = {}
        self.made = 0
        """How many results had to be made anew."""

    @property
    def latest(self) -> dict[Key, tuple[Any, Any]]:
        """What was asked for; with nothing asked yet, what was taken over."""
        return self._now or self._before

    def get(self, key: Key, holds: Callable[[Any], bool], make: Callable[[], tuple[Any, Any]]) -> Any:
        """The result for `key` if its inputs still hold, else what `make` gives: inputs and result."""
        entry = self._now.get(key)
        if entry is None:
            entry = self._before.get(key)
        if entry is None or not holds(entry[0]):
            entry = make()
            self.made += 1
        self._now[key] = entry
        return entry[1]
