"""A uvicorn protocol that waits for the head of a request only so long, and says which one is the last.

uvicorn itself waits for ever: only what comes after a response, and says nothing at all, has a limit there.

Rules:

- The time begins with the connection, and with the first bytes after a request that was answered whole.
- It ends with the head. A body, and a WebSocket, take the time that they take.
- Who is too slow is cut off, unanswered, as who shakes hands too slowly is.
- While the server lingers, requests are answered with `connection: close`: who was told so sends no other.
"""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import CLOSE_HEADER

log = logging.getLogger(__name__)


class _Bounded:
    """Stands before uvicorn's protocol among the bases."""

    head_seconds: float
    _head_timer: asyncio.TimerHandle | None = None
    lingers: Callable[[], bool]
    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._begin()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)  # type: ignore[misc]
        if self.cycle is not before and self.lingers():
            # To uvicorn it is the caller's wish. The application's task has not run yet.
            self.cycle.scope["headers"].append(CLOSE_HEADER)
        if self._waits():
            self._begin()
        else:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)  # type: ignore[misc]

    def _waits(self) -> bool:
        """Whether what came last is a part of a head."""
        cycle = self.cycle
        if cycle is not None:
            return bool(cycle.response_complete and not cycle.more_body)
        now: object = self.transport.get_protocol()
        return now is self  # else it is a WebSocket's by now

    def _begin(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _end(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        log.info("a connection is cut off: a request's head took more than %g s", self.head_seconds)
        self.transport.abort()


@functools.cache
def bounded(protocol: Any, seconds: float) -> Any:
    """uvicorn's protocol for HTTP, whose heads may take so long. Whoever makes one sets its `lingers`."""
    return type(protocol.__name__, (_Bounded, protocol), {"head_seconds": seconds})
