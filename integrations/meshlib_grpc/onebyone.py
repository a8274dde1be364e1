"""Tries of a call whose route would hedge them: here one begins when the one before has ended.

What a call came to is read from the try that came last, so there is never another one in flight.
"""

from collections import deque
from collections.abc import Awaitable, Callable

from meshlib.core.actions import Attempt, Await, Begin
from meshlib.core.request import Failed
from meshlib.dataplane.hedge import AsyncTries
from meshlib.dataplane.hedge_blocking import Came, Threads, Tries, came_of, drop
from meshlib.dataplane.network import SOCKETS, AsyncResponse, Response


def one_by_one(send: Callable[[Attempt], Response | Failed], threads: Threads) -> Tries:
    """For threads: the caller's own makes them all."""
    return Tries(lambda attempt, _cut: send(attempt), threads, whole=lambda: False)


class AsyncOneByOne(AsyncTries):
    """For tasks."""

    def __init__(self, send: Callable[[Attempt], Awaitable[AsyncResponse | Failed]]) -> None:
        super().__init__(send, SOCKETS.asleep)
        self._ended: deque[tuple[int, AsyncResponse | Failed]] = deque()

    async def do(self, step: Begin | Await) -> Came[AsyncResponse]:
        """What a flow says."""
        if isinstance(step, Begin):
            self._ended.append((step.attempt.number, await self._send(step.attempt)))
            return None, None
        return came_of(*self._ended.popleft())

    def close(self) -> None:
        """Drops what nobody waits for."""
        for _, sent in self._ended:
            drop(sent)
        self._ended.clear()
