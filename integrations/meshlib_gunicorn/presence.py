"""A gunicorn server's place in the mesh, kept by its arbiter.

    first worker has booted ─► registered ─► … SIGTERM ─► draining ─► workers finish ─► end

Rules:

- The arbiter registers, once, whatever its workers do; it is it that lives as long as the server.
- What can be known to be wrong before a worker is forked (settings, what it is bound to) ends gunicorn.
  What fails later is an error in gunicorn's log, and is tried again for ever: the server serves meanwhile.
- Others hear that the server leaves before it stops taking requests: the first SIGTERM waits for that,
  on a thread; then gunicorn is told. A second one does not wait.
- gunicorn makes its workers in the arbiter, before it forks: that is where this begins.
- The arbiter forks at any time, also while the thread registers. A module that is being loaded then is
  locked for ever in the child; so all that the thread needs is loaded before there is one.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import meshlib
import meshlib.dataplane.certs
import meshlib.dataplane.register
from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.xds import pb

LONGEST_PAUSE = 30.0
"""Seconds between two tries to register; the first pause is one second, each other twice as long."""
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_present: "dict[int, Presence]" = {}
"""By process: a fork's child knows its parent's, and does not use it."""


class Presence:
    """Of one arbiter."""

    def __init__(
        self,
        listening: socket.socket,
        log: Any,
        register: Callable[..., meshlib.Registration] = meshlib.register,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`log` is gunicorn's. ConfigError: a setting can't be used."""
        self._process = os.getpid()
        self._settings = settings_of(listening)
        self._log, self._enter, self._sleep = log, register, sleep
        self._registration: meshlib.Registration | None = None
        self._leaving = False
        self._before: Any = None
        self._reader, self._writer = os.pipe()
        pb.pool()  # loads the last modules
        threading.Thread(target=self._register, name="meshlib-gunicorn", daemon=True).start()

    def booted(self) -> None:
        """A worker serves; it says so from its own process."""
        os.write(self._writer, b"1")

    def hear(self) -> None:
        """Hears SIGTERM before gunicorn does. On the arbiter's main thread."""
        if signal.getsignal(signal.SIGTERM) != self._term:
            self._before = signal.signal(signal.SIGTERM, self._term)

    def _register(self) -> None:
        os.read(self._reader, 1)
        settings, pause = self._settings, 1.0
        while True:
            try:
                self._registration = self._enter(
                    mutual_tls=not settings.allow_plaintext,
                    ports=dict(settings.ports),
                    address=settings.address or None,  # or the one that leads to the control service
                )
                return
            except Exception as error:  # noqa: BLE001 - it is told; from this thread nobody else would hear
                self._log.error("this server is not in the mesh, next try in %.0f s: %s", pause, error)
                self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _term(self, number: int, frame: Any) -> None:
        registration = self._registration
        if os.getpid() != self._process or self._leaving or registration is None:
            self._before(number, frame)
            return
        self._leaving = True
        threading.Thread(target=self._leave, args=(registration, number), daemon=True).start()

    def _leave(self, registration: meshlib.Registration, number: int) -> None:
        try:
            registration.drain()
        finally:
            self._before(number, None)


def present(sockets: Sequence[Any], log: Any) -> Presence:
    """The presence of this arbiter, whose sockets and log these are. ConfigError: it can't be in the mesh."""
    found = _present.get(os.getpid())
    if found is None:
        found = _present[os.getpid()] = Presence(listening(sockets), log)
    found.hear()
    return found


def listening(sockets: Sequence[Any]) -> socket.socket:
    """The listening socket of the server's port. ConfigError: there is none, or there are several ports."""
    opened: list[socket.socket] = [getattr(one, "sock", one) for one in sockets]
    ports = {one.getsockname()[1] for one in opened if one.family in (socket.AF_INET, socket.AF_INET6)}
    if len(ports) != 1 or any(one.family == socket.AF_UNIX for one in opened):
        raise meshlib.ConfigError(
            f"bind: found {[one.getsockname() for one in opened]}; needed is one TCP port"
        )
    return opened[0]


def settings_of(one: socket.socket) -> Bootstrap:
    """The environment's settings; where they do not say it, the address and the port are the socket's.

    `address` stays empty for a socket that is bound to every address.
    """
    host, port = one.getsockname()[:2]
    found = bootstrap()
    return bootstrap(
        ports=dict(found.ports) or {"http": port},
        address=found.address or (None if host in _ANYWHERE else host),
    )
