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
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meshlib.control.built import Build
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.jwks import KeyFetcher
from meshlib.control.registration import Registration
from meshlib.control.serve.push import Hub
from meshlib.control.serve.server import ControlServer, Security
from meshlib.control.sources.source import Loaded, Source
from meshlib.control.status import status
from meshlib.xds.node import Client, Flavour

log = logging.getLogger(__name__)

SETTLE_SECONDS = 3.0
"""After a start: within this time the servers of an earlier life have joined again."""
RETRY_SECONDS = 1.0
CATCH_UP_SECONDS = 0.5


class ControlService:
    """A running control service; `async with` starts and stops it."""

    def __init__(
        self,
        source: Source,
        build: Build,
        listen: str,
        *,
        grace: float = 2.0,
        settle: float = SETTLE_SECONDS,
        security: Security | None = None,
        allow_plaintext: bool = False,
        keys: KeyFetcher | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`build` makes a configuration of that version; `grace`, `settle` are seconds.

        `keys` fetches what `build` wants of issuers' keys, and has it build anew when they change.

        ConfigError: `listen` is no address that can be served; not one of `security`, `allow_plaintext`.
        """
        if security is not None:
            told, service = security.changed, self

            def changed() -> None:
                told()
                service._changed.set()

            security = replace(security, changed=changed)
        self._security = security
        self._source = source
        self._build = build
        self._settle = settle
        self._wall = wall
        self._keys = keys
        self._stale = False
        """Whether other keys than those in the configuration in force are known."""
        self._hub = Hub(settled=settle <= 0)
        self._server = ControlServer(
            self._hub,
            listen,
            on_registrations=self._joined,
            status=self.status,
            grace=grace,
            security=security,
            allow_plaintext=allow_plaintext,
        )
        self._registrations: tuple[Registration, ...] = ()
        self._loaded = Loaded()
        self._reload = True
        self._problems: tuple[Problem, ...] = ()
        self._analysed: tuple[Problem, ...] = ()
        self._analyse: Callable[[], tuple[Problem, ...]] | None = None
        self._to_analyse = asyncio.Event()
        self._built_for: tuple[tuple[Registration, ...], bytes] | None = None
        """The registrations and roots in the configuration in force; None before the first."""
        self._notes: Callable[[Client, frozenset[str]], tuple[str, ...]] | None = None
        self._noted: dict[tuple[Client, frozenset[str]], tuple[str, ...]] = {}
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
        problems = dict.fromkeys((*self._loaded.problems, *self._problems, *self._analysed))
        errors = [str(problem) for problem in problems if problem.severity is Severity.ERROR]
        warnings = [str(problem) for problem in problems if problem.severity is Severity.WARNING]
        if self._failure:
            errors.append(self._failure)
        now = self._wall()
        authority = None if self._security is None else self._security.authority.status(now)
        return status(
            self._hub,
            self._registrations,
            errors,
            warnings,
            now=now,
            authority=authority,
            renewed=self._server.renewed,
            notes=self.notes,
        )

    def notes(self, client: Client, listeners: frozenset[str]) -> tuple[str, ...]:
        """What a client that asks for these does not get that documents say it has, and why, in sentences."""
        if client.flavour not in (Flavour.GATEWAY, Flavour.GRPC) or self._notes is None:
            return ()
        key = client, listeners
        if key not in self._noted:
            try:
                self._noted[key] = self._notes(client, listeners)
            except Exception:
                log.exception("what %s does not get can't be told", client)
                self._noted[key] = ()
        return self._noted[key]

    async def start(self) -> None:
        """Loads, builds, then listens. ConfigError: the port can't be bound."""
        self._life = str(int(self._wall() * 1000))
        await self._publish()
        await self._server.start()
        self._tasks = [
            asyncio.create_task(work())
            for work in (self._watch, self._publish_changes, self._analyse_changes)
        ]
        if self._keys is not None:
            self._tasks.append(asyncio.create_task(self._keys.run(self._keys_changed)))
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

    async def __aenter__(self) -> "ControlService":
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

    def _keys_changed(self) -> None:
        self._stale = True
        self._changed.set()

    async def _watch(self) -> None:
        while True:
            # What was saved before the watch stood is seen by looking again.
            look = asyncio.get_running_loop().call_later(CATCH_UP_SECONDS, self._look)
            try:
                async for _ in self._source.watch():
                    self._look()
            except Exception:
                log.exception("watching the documents failed; trying again")
            finally:
                look.cancel()
            await asyncio.sleep(RETRY_SECONDS)

    def _look(self) -> None:
        self._reload = True
        self._changed.set()

    async def _publish_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._publish()

    async def _publish(self) -> None:
        version = f"{self._life}.{self._count + 1}"
        try:
            loaded, registrations = await self._loaded_anew(), self._registrations
            roots = b"" if self._security is None else self._security.authority.roots_pem.encode()
            stale, self._stale = self._stale, False
            if loaded == self._loaded and self._built_for == (registrations, roots) and not stale:
                self._failure = ""
                return
            self._count += 1
            built = await asyncio.to_thread(self._build, loaded, registrations, version, roots)
        except Exception as error:
            log.exception("configuration %s can't be built; %s stays in force", version, self._hub.version)
            self._failure = f"configuration {version} can't be built: {error!r}"
            self._reload = self._stale = True
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._changed.set)
            return
        self._failure = ""
        self._loaded, self._built_for, self._problems = loaded, (registrations, roots), built.problems
        self._notes = built.notes
        self._noted.clear()
        self._hub.publish(built.compiler)
        if built.mesh is not None:
            self._server.adopt(built.mesh.trust_domain_aliases, built.mesh.root_namespace)
        if built.analyse is not None:
            self._analyse = built.analyse
            self._to_analyse.set()

    async def _analyse_changes(self) -> None:
        while True:
            await self._to_analyse.wait()
            self._to_analyse.clear()
            if self._analyse is None:
                continue
            try:
                self._analysed = await asyncio.to_thread(self._analyse)
            except Exception:
                log.exception("the documents can't be analysed; what is served does not depend on it")

    async def _loaded_anew(self) -> Loaded:
        """The documents, read again if they may have changed."""
        if not self._reload:
            return self._loaded
        self._reload = False
        return await asyncio.to_thread(self._source.load)
