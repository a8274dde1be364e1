"""Copies of requests, in the background: nobody waits for them and nothing of them is kept.

- At most `MOST` are in flight or waiting in a process; one more is dropped and counted.
- A body is copied when it is known whole; a stream that grows past what is recorded is not mirrored,
  because the copy would have to wait for the caller's bytes.
- Threads are daemons that end when there is nothing to do; tasks are cancelled when the client closes.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.request import Failed
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.http import asynchronous, blocking
from meshlib.dataplane.http.limits import Broken, TooSlow

MOST = 100
THREADS = 8
IDLE_SECONDS = 1.0


def as_attempt(mirror: Mirror, now: float) -> Attempt:
    """A copy is one try without a second."""
    return Attempt(
        mirror.cluster, mirror.address, mirror.head, mirror.connect_timeout, None, now + mirror.timeout
    )


class Mirrors:
    """For threads."""

    def __init__(self, connections: blocking.Connections, clock: Callable[[], float]) -> None:
        self._connections = connections
        self._clock = clock
        self._waiting: queue.Queue[tuple[Mirror, bytes]] = queue.Queue(MOST)
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()
        self.dropped = 0
        """How many copies were not sent because too many were under way, or the body was too long."""

    def add(self, mirror: Mirror, body: RequestBody) -> None:
        """Sends a copy once the body is known."""
        body.when_known(lambda whole: self._enqueue(mirror, whole))

    def _enqueue(self, mirror: Mirror, whole: bytes | None) -> None:
        with self._lock:
            try:
                if whole is None:
                    raise queue.Full
                self._waiting.put_nowait((mirror, whole))
            except queue.Full:
                self.dropped += 1
                return
            if self._idle or self._threads >= THREADS:
                return
            self._threads += 1
        threading.Thread(target=self._run, name="meshlib-mirror", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                mirror, body = self._waiting.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    self._idle -= 1
                    if self._waiting.empty():
                        self._threads -= 1
                        return
                continue
            with self._lock:
                self._idle -= 1
            self._send(mirror, body)

    def _send(self, mirror: Mirror, body: bytes) -> None:
        with contextlib.suppress(Broken, TooSlow, OSError):
            sent = self._connections.send(as_attempt(mirror, self._clock()), (body,) if body else ())
            if not isinstance(sent, Failed):
                for _ in sent:
                    pass


class AsyncMirrors:
    """For tasks."""

    def __init__(self, connections: asynchronous.Connections, clock: Callable[[], float]) -> None:
        self._connections = connections
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0
        """How many copies were not sent because too many were under way, or the body was too long."""

    def add(self, mirror: Mirror, body: RequestBody) -> None:
        """Sends a copy once the body is known."""
        body.when_known(lambda whole: self._start(mirror, whole))

    def _start(self, mirror: Mirror, whole: bytes | None) -> None:
        if whole is None or len(self._tasks) >= MOST:
            self.dropped += 1
            return
        task = asyncio.get_running_loop().create_task(self._send(mirror, whole), name="meshlib-mirror")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, mirror: Mirror, body: bytes) -> None:
        with contextlib.suppress(Broken, TooSlow, OSError):
            sent = await self._connections.send(as_attempt(mirror, self._clock()), _once(body))
            if not isinstance(sent, Failed):
                async for _ in sent:
                    pass

    async def close(self) -> None:
        """Gives up the copies that are under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body
