"""By which another thread ends an exchange that it does not wait for any more.

The thread of the exchange says before it waits what would end the wait (`during`); every further one fails,
for no time is left. What can't be ended is the making of a connection: it takes its `connect_timeout` at
most, and then the exchange ends.
"""

import math
import threading
from collections.abc import Callable

from meshlib.core.request import Failed, Failure
from meshlib.dataplane.http.limits import Broken, Limits


def _nothing() -> None:
    pass


class Cut:
    """Of one exchange."""

    __slots__ = ("_limits", "_lock", "_wake", "done")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: Limits | None = None
        self._wake: Callable[[], None] = _nothing
        self.done = False
        """Whether the exchange is given up."""

    def during(self, limits: Limits | None, wake: Callable[[], None]) -> None:
        """What is waited for from now on, within these limits, ends if `wake` is called, never after
        `over`. Broken: the exchange is given up.
        """
        with self._lock:
            self._limits, self._wake = limits, wake
            if self.done:
                if limits is not None:
                    limits.deadline = -math.inf
                raise Broken(Failed(Failure.RESET, "given up"))

    def over(self) -> None:
        """Nothing is waited for."""
        with self._lock:
            self._wake = _nothing

    def now(self) -> None:
        """Gives the exchange up."""
        with self._lock:
            self.done = True
            if self._limits is not None:
                self._limits.deadline = -math.inf
            self._wake()
