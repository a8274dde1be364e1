"""The tries of one hedged request that are in flight, as tasks: what a driver begins, awaits and gives up.

A response that nobody waits for any more is closed, whenever it comes; errors of the application's own body,
and its own limits, come out of the wait. For threads there is `hedge_blocking`.
"""

import asyncio
from collections.abc import Awaitable, Callable

from meshlib.core.actions import Attempt, Await, Begin
from meshlib.core.request import Failed
from meshlib.dataplane.hedge_blocking import Came, came_of, drop
from meshlib.dataplane.network import AsyncResponse


class AsyncTries:
    """Of one request."""

    def __init__(
        self,
        send: Callable[[Attempt], Awaitable[AsyncResponse | Failed]],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._send = send
        self._sleep = sleep
        self._flying: dict[asyncio.Task[AsyncResponse | Failed], int] = {}

    async def do(self, step: Begin | Await) -> Came[AsyncResponse]:
        """What a flow says."""
        if isinstance(step, Await):
            return await self._wait(step.seconds)
        self._begin(step.attempt)
        return None, None

    def _begin(self, attempt: Attempt) -> None:
        task = asyncio.get_running_loop().create_task(self._make(attempt), name="meshlib-hedge")
        self._flying[task] = attempt.number

    async def _make(self, attempt: Attempt) -> AsyncResponse | Failed:
        return await self._send(attempt)

    async def _wait(self, seconds: float | None) -> Came[AsyncResponse]:
        waited: list[asyncio.Task[AsyncResponse | Failed] | asyncio.Task[None]] = list(self._flying)
        timer = None
        if seconds is not None:
            timer = asyncio.get_running_loop().create_task(self._pause(seconds))
            waited.append(timer)
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if timer is not None:
                timer.cancel()
        for task, number in self._flying.items():
            if task.done():
                del self._flying[task]
                return came_of(number, task.result())
        return None, None

    async def _pause(self, seconds: float) -> None:
        await self._sleep(seconds)

    def close(self) -> None:
        """Gives up what is in flight, without waiting for it."""
        for task in self._flying:
            task.cancel()
            task.add_done_callback(_forget)
        self._flying.clear()


def _forget(task: "asyncio.Task[AsyncResponse | Failed]") -> None:
    if not task.cancelled():
        drop(task.exception() or task.result())
