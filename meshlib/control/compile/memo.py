"""What was compiled before and still holds, so that a change costs only what it touches.

An entry is kept under what it is for and with what it was made from. A compiler takes over what the
one before it used; what nobody asked for in between is forgotten.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
Key = tuple[Hashable, ...]


class Memo:
    """Two generations of results. One thread compiles at a time."""

    def __init__(self, before: "Memo | None" = None) -> None:
        self._before: dict[Key, tuple[Any, Any]] = before.latest if before is not None else {}
        self._now: dict[Key, tuple[Any, Any]] = {}
        self._noted: list[Key] | None = None
        self.made = 0
        """How many results had to be made anew."""

    @property
    def latest(self) -> dict[Key, tuple[Any, Any]]:
        """What was asked for; with nothing asked yet, what was taken over."""
        return self._now or self._before

    def get(self, key: Key, holds: Callable[[Any], bool], make: Callable[[], tuple[Any, Any]]) -> Any:
        """The result for `key` if its inputs still hold, else what `make` gives: inputs and result."""
        if self._noted is not None:
            self._noted.append(key)
        entry = self._now.get(key)
        if entry is None:
            entry = self._before.get(key)
        if entry is None or not holds(entry[0]):
            entry = make()
            self.made += 1
        self._now[key] = entry
        return entry[1]

    def noting(self, make: Callable[[], T]) -> tuple[T, tuple[Key, ...]]:
        """What `make` gives, and the keys that it asked for."""
        before, self._noted = self._noted, []
        try:
            return make(), tuple(self._noted)
        finally:
            self._noted = before

    def keep(self, keys: Iterable[Key]) -> None:
        """Takes over what somebody asked for before who knows that it still holds."""
        for key in keys:
            entry = self._before.get(key)
            if entry is not None:
                self._now.setdefault(key, entry)
