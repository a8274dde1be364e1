"""Copies of requests, in the background: nobody waits for them and nothing of them is kept.

- At most `MOST` of a client are in flight or waiting; one more is dropped and counted.
- A body is copied when it is known whole; a stream that grows past what is recorded is not mirrored,
  because the copy would have to wait for the caller's bytes.
- Threads are daemons that end when there is nothing to do. When the client closes, copies that have
  not begun are dropped; those of tasks are cancelled.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.request import Failed
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.http.limits import Broken
from meshlib.dataplane.http.pools import COPIES
from meshlib.dataplane.http.syntax import Unsendable
from meshlib.dataplane.network import AsyncConnections, Connections

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

MOST = 100
THREADS = 8
IDLE_SECONDS = 1.0


def as_attempt(mirror: Mirror, now: float) -> Attempt:
    """A copy is one try without a second. Its connections are its own, so that no request waits for one."""
    name, until = COPIES + mirror.cluster, now + mirror.timeout
    head, upstream = mirror.head, mirror.upstream
    return Attempt(name, mirror.address, head, upstream, None, until, tls=mirror.tls, at=mirror.at)


class Mirrors:
    """For threads."""

    def __init__(self, connections: Connections, clock: Callable[[], float]) -> None:
        self._connections = connections
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Mirror, bytes]] = deque()
        self._threads = 0
        self._idle = 0
        self._closed = False
        self.dropped = 0
        """How many copies were not sent because too many were under way, or the body was too long."""

    def __repr__(self) -> str:
        return f"<Mirrors: {len(self._waiting)} waiting, {self._threads} threads, {self.dropped} dropped>"

    def add(self, mirror: Mirror, body: RequestBody) -> None:
        """Sends a copy once the body is known."""
        body.when_known(lambda whole: self._enqueue(mirror, whole))

    def _enqueue(self, mirror: Mirror, whole: bytes | None) -> None:
        with self._changed:
            under_way = len(self._waiting) + self._threads - self._idle
            if whole is None or self._closed or under_way >= MOST:
                self.dropped += 1
                return
            self._waiting.append((mirror, whole))
            if self._idle >= len(self._waiting) or self._threads >= THREADS:
                self._changed.notify()
                return
            self._threads += 1
        threading.Thread(target=self._run, name="meshlib-mirror", daemon=True).start()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            try:
                self._send(*task)
            except Exception:
                log.exception("a mirrored request could not be sent")

    def _next(self) -> tuple[Mirror, bytes] | None:
        """The next copy; None: there is none for a while, and this thread ends."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._waiting or self._closed, IDLE_SECONDS)
            self._idle -= 1
            if self._waiting:
                return self._waiting.popleft()
            self._threads -= 1
            return None

    def _send(self, mirror: Mirror, body: bytes) -> None:
        try:
            sent = self._connections.send(as_attempt(mirror, self._clock()), body)
            if not isinstance(sent, Failed):
                for _ in sent:
                    pass
        except (Broken, Unsendable) as error:
            log.debug("a mirrored request to %s failed: %s", mirror.cluster, error)

    def close(self) -> None:
        """Drops the copies that have not begun; idle threads end."""
        with self._changed:
            self._closed = True
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()


class AsyncMirrors:
    """For tasks."""

    def __init__(self, connections: AsyncConnections, clock: Callable[[], float]) -> None:
        self._connections = connections
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.dropped = 0
        """How many copies were not sent because too many were under way, or the body was too long."""

    def __repr__(self) -> str:
        return f"<AsyncMirrors: {len(self._tasks)} under way, {self.dropped} dropped>"

    def add(self, mirror: Mirror, body: RequestBody) -> None:
        """Sends a copy once the body is known."""
        body.when_known(lambda whole: self._start(mirror, whole))

    def _start(self, mirror: Mirror, whole: bytes | None) -> None:
        if whole is None or self._closed or len(self._tasks) >= MOST:
            self.dropped += 1
            return
        import asyncio  # which an application without tasks need not load

        task = asyncio.get_running_loop().create_task(self._send(mirror, whole), name="meshlib-mirror")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, mirror: Mirror, body: bytes) -> None:
        try:
            sent = await self._connections.send(as_attempt(mirror, self._clock()), body)
            if not isinstance(sent, Failed):
                async for _ in sent:
                    pass
        except (Broken, Unsendable) as error:
            log.debug("a mirrored request to %s failed: %s", mirror.cluster, error)
        except Exception:
            log.exception("a mirrored request could not be sent")

    async def close(self) -> None:
        """Gives up the copies that are under way."""
        import asyncio

        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
