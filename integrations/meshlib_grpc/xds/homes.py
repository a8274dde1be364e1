"""The home of gRPC's own xDS in this process: one at a time, and whose.

Rules:

- A process has one home, of one identity, for as long as a channel or server of it lives. Another identity
  comes when all of the first are gone, and gRPC has let go of its bootstrap.
- What the application put into the environment, or had gRPC read, is not replaced: that is an error.
- Programs that this one starts inherit the environment; one that makes a home knows ours by its name.
- A fork's child makes a home of its own. The channels that it inherited are closed for that: as long as they
  live gRPC takes the parent's bootstrap.
- Once gRPC looks at certificates in files a fork hangs in it, in the parent: it waits for the thread that
  looks, which never ends (grpcio 1.85). Nobody can help that; it is told.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from meshlib.dataplane import fork
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ConfigError
from meshlib_grpc.xds.home import Home, Identity
from meshlib_grpc.xds.reading import VARIABLE, foreign, readers

User = TypeVar("User")
log = logging.getLogger(__name__)

FORKS = "GRPC_ENABLE_FORK_SUPPORT"
PATIENCE = 1.0
"""Seconds that gRPC may take to let go of what it has read."""


class Homes:
    """The one that there is now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._home: Home | None = None
        self._inherited: list[Any] = []
        """Of a parent's home."""
        fork.watch(self)

    def __repr__(self) -> str:
        return f"<Homes {self._home!r}>"

    def enter(self, mesh: Mesh, make: Callable[[], User], target: str | None = None) -> User:
        """Makes what lives there from now on, when gRPC will find the bootstrap. `target`: what it calls.

        ConfigError: the application has a bootstrap of its own, or another identity's is in use.
        """
        identity = Identity.of(mesh)
        with self._lock:
            home = self._home
            if home is None or home.ended or home.identity != identity:
                self._leave(home, identity)
                home = self._home = Home(identity, mesh.bootstrap, self._lock)
                home.start()
            elif os.environ.get(VARIABLE) != str(home.path):
                raise ConfigError(
                    foreign() or f"{VARIABLE} is not what it was set to; channels live by {home.path}"
                )
            user = make()
            home.add(user, mesh, target)
            return user

    def _leave(self, before: Home | None, identity: Identity) -> None:
        """So that gRPC will read the bootstrap of a new home. ConfigError: it will not."""
        if before is not None and not before.ended:
            if before.users:
                raise ConfigError(
                    f"gRPC's own xDS is one workload in a process: {before.identity} has channels, and "
                    f"{identity} is asked for"
                )
            before.close()
        if why := foreign():
            raise ConfigError(why)
        while self._inherited:
            _closed(self._inherited.pop())
        until = time.monotonic() + PATIENCE
        while found := readers():
            if time.monotonic() > until:
                raise ConfigError(
                    f"gRPC works by another bootstrap in this process, of node {', '.join(sorted(found))}, "
                    "until the last channel and server that was made by it has ended"
                )
            time.sleep(0.002)

    def before_fork(self) -> None:
        """Nobody moves during a fork."""
        self._lock.acquire()
        home = self._home
        if home is not None and home.identity.certs is not None and _waits() and readers():
            log.error(
                "this process forks, and hangs in gRPC if that looks at certificates: fork before the first "
                "call of an xDS channel, start programs in another way (spawn), or set %s=0 and use no "
                "gRPC in the child",
                FORKS,
            )

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """A child has none yet."""
        home, self._home, self._lock = self._home, None, threading.Lock()
        if home is not None:
            home.disown()
            self._inherited.extend(home.users)


def _waits() -> bool:
    """Whether gRPC does something about forks."""
    return os.environ.get(FORKS, "").lower() not in ("0", "f", "false", "n", "no")


def _closed(inherited: Any) -> None:
    """Those of threads; gRPC's tasks do not survive a fork."""
    if isinstance(inherited, grpc.Channel):
        inherited.close()


homes = Homes()
