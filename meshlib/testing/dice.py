"""Dice that fall as they are told, and otherwise alike in every run."""

import random
from collections import deque


class Dice(random.Random):
    """The chance of a mesh. What is loaded falls first, in order; then come seeded rolls."""

    def __init__(self, seed: int = 0) -> None:
        self._loaded: deque[float] = deque()
        self._seed = seed
        super().__init__(seed)

    def load(self, *rolls: float) -> None:
        """These fall next, each from 0 to just below 1: a share of 50 % is hit by rolls below 0.5."""
        for roll in rolls:
            if not 0 <= roll < 1:
                raise ValueError(f"found the roll {roll!r}; allowed is 0 or more and less than 1")
        self._loaded.extend(rolls)

    @property
    def loaded(self) -> tuple[float, ...]:
        """The rolls that have not fallen yet."""
        return tuple(self._loaded)

    def random(self) -> float:
        """The next roll."""
        return self._loaded.popleft() if self._loaded else super().random()

    def __repr__(self) -> str:
        rolls = ", ".join(f"{roll:g}" for roll in self._loaded)
        return f"<Dice: {f'{rolls}, then ' if rolls else ''}seed {self._seed}>"
