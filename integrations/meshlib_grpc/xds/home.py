"""What gRPC's own xDS of this process lives by: its bootstrap, the certificates beside it, and their keeper.

    $TMPDIR/meshlib-xds-4f0q/    0700: bootstrap.json, certs/, control.sock, as of `bootstrap grpc --keep`

Rules:

- It is there for as long as a channel or server that was made by it, and as gRPC works by it; for that time
  the environment names it.
- What a killed process left is removed by the next one.
"""

import asyncio
import atexit
import contextlib
import fcntl
import itertools
import json
import logging
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.certfolder import CertFolder
from meshlib.dataplane.certs import Certs
from meshlib.dataplane.control_socket import listen_at
from meshlib.dataplane.grpc_bootstrap import FILE, grpc_bootstrap
from meshlib.dataplane.grpc_keep import LOOK_SECONDS, kept, socket_of
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ConfigError
from meshlib.socket_folder import ELSEWHERE, socket_folder
from meshlib.xds.names import MUTUAL, TLS_MODE_LABEL
from meshlib_grpc.xds.reading import PREFIX, VARIABLE, readers
from meshlib_grpc.xds.watch import Watch

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds for the keeper to end."""
_YOUNG = 60.0
"""Seconds in which a folder without a lock may be one that is just made."""
_numbers = itertools.count(1)


class Identity(NamedTuple):
    """For what a bootstrap is."""

    control: str
    namespace: str
    service_account: str
    labels: tuple[tuple[str, str], ...]
    locality: str
    certs: Certs | None

    def __str__(self) -> str:
        return f"{self.service_account}.{self.namespace} at {self.control}"

    @classmethod
    def of(cls, mesh: Mesh) -> "Identity":
        """ConfigError: gRPC can't have that."""
        said = mesh.bootstrap
        if said.local or mesh.network is not None:
            what = (
                f"{said.control} is a folder or file" if said.local else "this mesh has a network of its own"
            )
            raise ConfigError(f"gRPC's own xDS needs a control service, host:port; {what}")
        return cls(said.control, said.namespace, said.service_account, said.labels, said.locality, mesh.certs)


class Home:
    """One folder, and the thread that keeps it."""

    def __init__(self, identity: Identity, settings: Bootstrap, lock: threading.Lock) -> None:
        """Makes the folder; does not tell gRPC yet. ConfigError: it can't be."""
        self.identity = identity
        self.ended = False
        """Whether its last user has gone. Under the lock."""
        self._settings = _as_server(settings)
        self._lock = lock
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._watches: dict[tuple[Mesh, str], Watch] = {}
        self._wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._stop = False
        self._listening: socket.socket | None = None
        _sweep()
        try:
            os.stat(tempfile.gettempdir())  # noqa: PTH116 - one that is gone is a mistake to be told of
            self.folder = CertFolder(socket_folder(PREFIX))
        except OSError as error:
            raise ConfigError(f"no folder can be made for gRPC's bootstrap: {error}") from None
        try:
            self.folder.__enter__()
            self.path = self.folder.put(FILE, json.dumps(self._bootstrap(), indent=2))
            if identity.certs is not None:
                self._listening = listen_at(socket_of(self.folder))
        except OSError as error:
            self._remove()
            raise ConfigError(f"gRPC's bootstrap can't be written: {error}") from None
        except ConfigError:
            self._remove()
            raise
        atexit.register(self._remove)
        self._thread = threading.Thread(target=self._run, name="meshlib-grpc-xds", daemon=True)

    def __repr__(self) -> str:
        return f"<Home {self.folder.path} of {self.identity.service_account}, {len(self._users)} users>"

    def _bootstrap(self) -> dict[str, Any]:
        who = self._settings
        name = f"grpc~{who.service_account}.{who.namespace}~{os.uname().nodename[:128]}~{os.getpid()}"
        name = f"{name[:240]}~{next(_numbers)}"
        if self.identity.certs is None:
            return grpc_bootstrap(who, name, None)
        return grpc_bootstrap(who, name, self.folder, str(socket_of(self.folder)))

    def start(self) -> None:
        """From now on it is kept, and gRPC finds it. Under the lock."""
        self._thread.start()
        os.environ[VARIABLE] = str(self.path)

    def add(self, user: Any, mesh: Mesh, target: str | None = None) -> None:
        """It is kept for as long as `user` lives, and the rules of `target` are looked at. Under the lock."""
        self._users.add(user)
        if target is not None:
            watch = self._watches.get((mesh, target)) or Watch(mesh, target)
            watch.users.add(user)
            self._watches[mesh, target] = watch  # also if it was just given up
        self._look()

    def close(self) -> None:
        """Ends it, whoever uses it. Under the lock."""
        self._end()
        self._stop = True
        self._look()
        self._thread.join(PATIENCE)

    @property
    def users(self) -> list[Any]:
        """Whose it is."""
        return list(self._users)

    def disown(self) -> None:
        """In a fork's child: it is the parent's."""
        atexit.unregister(self._remove)

    def _look(self) -> None:
        if self._wake is not None:
            loop, event = self._wake
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(event.set)

    def _run(self) -> None:
        certs = self.identity.certs
        if certs is not None:
            certs.use()
        try:
            asyncio.run(self._kept())
        except Exception:
            log.exception("the bootstrap of gRPC's own xDS is not kept any more")
            self._end()
        finally:
            if certs is not None:
                certs.leave()
            self._remove()

    async def _kept(self) -> None:
        event = asyncio.Event()
        self._wake = (asyncio.get_running_loop(), event)
        async with self._keeping():
            while not self._is_over():
                event.clear()
                self._watch()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await event.wait()
            for watch in self._watches.values():
                watch.end()

    def _watch(self) -> None:
        for key, watch in list(self._watches.items()):
            if watch.is_used:
                try:
                    watch.look()
                except Exception:  # the certificates have to be kept all the same
                    log.exception("what gRPC ignores of the rules of %s can't be told", key[1])
            else:
                watch.end()
                self._watches.pop(key, None)

    @contextlib.asynccontextmanager
    async def _keeping(self) -> AsyncIterator[None]:
        certs = self.identity.certs
        if certs is None or self._listening is None:
            yield
        else:
            async with kept(self._settings.control, certs, self.folder, self._listening):
                yield

    def _is_over(self) -> bool:
        if self._stop:
            return True
        if self._users or not self._lock.acquire(blocking=False):  # whoever holds it may want to join us
            return False
        try:
            if not self._users and not readers():
                self._end()
        finally:
            self._lock.release()
        return self.ended

    def _end(self) -> None:
        self.ended = True
        if os.environ.get(VARIABLE) == str(self.path):
            del os.environ[VARIABLE]

    def _remove(self) -> None:
        atexit.unregister(self._remove)
        self.folder.__exit__()
        shutil.rmtree(self.folder.path, ignore_errors=True)


def _as_server(settings: Bootstrap) -> Bootstrap:
    """As one that takes mutual TLS at its ports, also in PERMISSIVE, where gRPC's servers can't take both."""
    labels = {TLS_MODE_LABEL: MUTUAL, **dict(settings.labels)}
    return replace(settings, labels=tuple(sorted(labels.items())))


def _sweep() -> None:
    """Removes folders of this user's that nobody has any more: their processes were killed."""
    places = {Path(tempfile.gettempdir()), Path(ELSEWHERE)}
    for folder in _of_ours(one for place in places for one in place.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _of_ours(found: Iterable[Path]) -> Iterable[Path]:
    for folder in found:
        with contextlib.suppress(OSError):
            of = folder.lstat()
            old = time.time() - of.st_mtime > _YOUNG
            if old and stat.S_ISDIR(of.st_mode) and of.st_uid == os.geteuid():
                yield folder
