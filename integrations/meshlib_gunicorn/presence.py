"""A gunicorn server's place in the mesh, kept by its arbiter.

    first worker has booted ─► registered ─► … SIGTERM ─► draining ─► workers finish ─► end

Rules:

- The arbiter registers, once, whatever its workers do; it is it that lives as long as the server.
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
from collections.abc import Sequence
from typing import Any

import meshlib
import meshlib.dataplane.certs
import meshlib.dataplane.register
from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.xds import pb

_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_present: "dict[int, Presence]" = {}
"""By process: a fork's child knows its parent's, and does not use it."""


class Presence:
    """Of one arbiter."""

    def __init__(self, listening: socket.socket) -> None:
        self._process = os.getpid()
        self._listening = listening
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
        settings = settings_of(self._listening)
        self._registration = meshlib.register(
            mutual_tls=not settings.allow_plaintext, ports=dict(settings.ports), address=settings.address
        )

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


def present(sockets: Sequence[Any]) -> Presence:
    """The presence of this arbiter, whose sockets these are."""
    found = _present.get(os.getpid())
    if found is None:
        found = _present[os.getpid()] = Presence(listening(sockets))
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
    """The environment's settings; where they do not say it, the address and the port are the socket's."""
    host, port = one.getsockname()[:2]
    found = bootstrap()
    return bootstrap(
        ports=dict(found.ports) or {"http": port},
        address=found.address or (None if host in _ANYWHERE else host),
    )
