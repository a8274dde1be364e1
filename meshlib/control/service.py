"""The control service: documents and registrations in, configuration out to every client.

    source ──documents──┐
                        ├──► build ──► hub ──► streams
    servers ──joined────┘

Rules:

- One thing is built at a time, on a thread, always from the newest documents and registrations;
  what changes meanwhile is built next, all at once.
- What can't be built changes nothing: the last good configuration stays in force, and says so in the
  status.
- The first configuration is published before the port is open, so nobody is told that there is nothing.
- Versions are `<start, ms>.<count>`: they grow over a restart.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from meshlib.control.registration import Registration
from meshlib.control.serve.push import Compiler, Hub
from meshlib.control.serve.server import ControlServer
from meshlib.control.status import status

log = logging.getLogger(__name__)

D = TypeVar("D")
D_co = TypeVar("D_co", covariant=True)

SETTLE_SECONDS = 3.0
"""After a start: within this time the servers of an earlier life have joined again."""
RETRY_SECONDS = 1.0


class Source(Protocol[D_co]):
    """Where documents come from."""

    def load(self) -> D_co:
        """All documents as they are now, with the last good state of those that are broken."""
        ...

    def watch(self) -> AsyncIterator[D_co]:
        """All documents again after each batch of changes since `load`, whenever they were made."""
        ...


@dataclass(frozen=True, slots=True)
class Built:
    """One configuration, and what its documents' author should know."""

    compiler: Compiler
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class ControlService(Generic[D]):
    """A running control service; `async with` starts and stops it."""

    def __init__(
        self,
        source: Source[D],
        build: Callable[[D, tuple[Registration, ...], str], Built],
        listen: str,
        *,
        grace: float = 2.0,
        settle: float = SETTLE_SECONDS,
        allow_plaintext: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`build` makes a configuration of that version; `grace`, `settle` are seconds.

        ConfigError: `listen` is no address that can be served.
        """
        self._source = source
        self._build = build
        self._settle = settle
        self._wall = wall
        self._hub = Hub(settled=settle <= 0)
        self._server = ControlServer(
            self._hub,
            listen,
            on_registrations=self._joined,
            status=self.status,
            grace=grace,
            allow_plaintext=allow_plaintext,
        )
        self._registrations: tuple[Registration, ...] = ()
        self._documents: D
        self._built: Built | None = None
        self._failure = ""
        self._changed = asyncio.Event()
        self._life = ""
        self._count = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._settling: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """`host:port` as bound."""
        return self._server.address

    @property
    def hub(self) -> Hub:
        """What is served to whom."""
        return self._hub

    def status(self) -> dict[str, Any]:
        """What `meshlib status` shows; see `control.status`."""
        errors = self._built.errors if self._built else ()
        return status(
            self._hub,
            self._registrations,
            (*errors, self._failure) if self._failure else errors,
            self._built.warnings if self._built else (),
        )

    async def start(self) -> None:
        """Loads, builds, then listens. ConfigError: no such folder, or the port can't be bound."""
        self._life = str(int(self._wall() * 1000))
        self._documents = await asyncio.to_thread(self._source.load)
        await self._publish()
        await self._server.start()
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._publish_changes())]
        if self._settle > 0:
            self._settling = asyncio.get_running_loop().call_later(self._settle, self._hub.settle)

    async def stop(self) -> None:
        """Stops watching and ends all streams; what clients hold stays with them."""
        if self._settling is not None:
            self._settling.cancel()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        await self._server.stop()

    async def __aenter__(self) -> "ControlService[D]":
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _joined(self, registrations: tuple[Registration, ...]) -> None:
        self._registrations = registrations
        self._changed.set()

    async def _watch(self) -> None:
        while True:
            try:
                async for documents in self._source.watch():
                    self._take(documents)
            except Exception:
                log.exception("watching the documents failed; trying again")
            await asyncio.sleep(RETRY_SECONDS)
            # What was saved while nobody watched.
            with contextlib.suppress(OSError):
                self._take(await asyncio.to_thread(self._source.load))

    def _take(self, documents: D) -> None:
        self._documents = documents
        self._changed.set()

    async def _publish_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._publish()

    async def _publish(self) -> None:
        self._count += 1
        version = f"{self._life}.{self._count}"
        try:
            built = await asyncio.to_thread(self._build, self._documents, self._registrations, version)
        except Exception as error:
            log.exception("configuration %s can't be built; %s stays in force", version, self._hub.version)
            self._failure = f"configuration {version} can't be built: {error!r}"
            return
        self._failure = ""
        self._built = built
        self._hub.publish(built.compiler)
