"""One timer of an event loop: who looks after its idle connections while nothing is sent."""

import asyncio
import contextlib
from collections.abc import Callable


class Alarm:
    """One timer of an event loop."""

    __slots__ = ("_ring", "_timer")

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Rings then, and not when it would have."""
        self.cancel()
        with contextlib.suppress(RuntimeError):  # no loop runs here any more
            self._timer = asyncio.get_running_loop().call_later(seconds, self._ring)

    def cancel(self) -> None:
        """Does not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
