"""Tries of a call whose route hedges them: several may be in flight, and it is read from the one that won.

A stream of requests is read by whichever try asks for more; what one is given, the others have too (see
`bodies`).
"""

from collections.abc import Awaitable, Callable
from typing import Any

from meshlib.core.actions import Attempt, Await, Begin
from meshlib.core.request import Failed
from meshlib.dataplane.hedge import AsyncTries
from meshlib.dataplane.hedge_blocking import Came, Threads, Tries
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.network import SOCKETS, AsyncResponse, Response


class Hedged(Tries):
    """For threads."""

    def __init__(
        self,
        send: Callable[[Attempt, Cut | None], Response | Failed],
        threads: Threads,
        came: Callable[[Any], None],
    ) -> None:
        """`came` is told of each response; the last of them won."""
        super().__init__(lambda attempt, cut, _: send(attempt, cut), threads, lambda: None)
        self._tell = came

    def do(self, step: Begin | Await) -> Came[Response]:
        """What a flow says."""
        response, event = super().do(step)
        if response is not None:
            self._tell(response)
        return response, event


class AsyncHedged(AsyncTries):
    """For tasks."""

    def __init__(
        self, send: Callable[[Attempt], Awaitable[AsyncResponse | Failed]], came: Callable[[Any], None]
    ) -> None:
        """As of `Hedged`."""
        super().__init__(send, SOCKETS.asleep)
        self._tell = came

    async def do(self, step: Begin | Await) -> Came[AsyncResponse]:
        """What a flow says."""
        response, event = await super().do(step)
        if response is not None:
            self._tell(response)
        return response, event
