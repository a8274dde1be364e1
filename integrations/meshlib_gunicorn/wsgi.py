"""gunicorn's sync and gthread workers at a port that the mesh secures.

A connection is met (`accept_blocking`) where gunicorn would shake hands itself: of gthread on a thread of
its pool, of sync at the worker's poll, which serves nobody else while it serves one.

Rules:

- Connections that say nothing wait for their first byte at the worker's poll, and cost no thread and no turn.
- From then on a handshake has `patience` seconds, and so has the head of each request, however its bytes are
  spread over that time. They take a thread of gthread. With sync both wait at the poll, and together.
- A connection that is over is closed on the thread that served it: gunicorn waits up to two seconds for the
  peer to close its end, too, which must not be the time of the one thread that serves all others.
"""

import contextlib
import errno
import functools
import logging
import select
import socket
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gunicorn.workers.gthread import _DEFER
from gunicorn.workers.gthread import ThreadWorker as GunicornThreads
from gunicorn.workers.sync import SyncWorker as GunicornSync

from meshlib.core.request import Peer
from meshlib.dataplane.accept_blocking import Bounded, BoundedTls, Steps, begun, meet, meeting
from meshlib.dataplane.doorstep import Refused
from meshlib_gunicorn.worker import LINGER, Meshed
from meshlib_wsgi import PEER, MeshMiddleware

log = logging.getLogger(__name__)

_MOST_STRANGERS = 500
"""Connections of a sync worker whose request has not come yet; then the oldest goes."""
_AT_ONCE = 0.01
"""Seconds for gunicorn to read a head that is there."""


class _Blocking(Meshed):
    """What both have in common."""

    wsgi: Any

    def load_wsgi(self) -> None:
        """In the worker: the application, behind the mesh's policies."""
        super().load_wsgi()
        self._peers: weakref.WeakKeyDictionary[socket.socket, Peer] = weakref.WeakKeyDictionary()
        admitted = MeshMiddleware(self.wsgi, self.gate)

        def told(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            connection = environ["gunicorn.socket"]
            connection.bound(None)  # the head is there; for a body gunicorn has its own limits
            environ[PEER] = self._peers[connection]
            return admitted(environ, start_response)

        self.wsgi = told

    def run(self) -> None:
        """The worker's main loop."""
        self.presence.booted()
        super().run()  # type: ignore[misc]


class SyncMeshWorker(_Blocking, GunicornSync):  # type: ignore[misc]
    """gunicorn's sync worker, in the mesh.

    Not called `SyncWorker`: gunicorn replaces every class whose name ends so by its own gthread worker as
    soon as there are several threads, and with it the mesh.
    """

    wait_fds: Any
    alive: bool

    def __init__(self, *args: Any, **named: Any) -> None:
        """In the arbiter."""
        super().__init__(*args, **named)
        self._strangers: dict[socket.socket, _Stranger] = {}
        """By the socket from which more of the handshake or of the request's head has to come."""

    def accept(self, listener: Any) -> None:
        """Takes a connection, and leaves it alone until its request has come."""
        client, addr = listener.accept()
        if len(self._strangers) >= _MOST_STRANGERS:
            self._forget(next(iter(self._strangers)))
        self._go_on(_Stranger(listener, addr, time.monotonic() + self.patience, self._steps(client)))

    def wait(self, timeout: float) -> Any:
        """Until somebody comes. Who has said something goes on, and is served once that is a request."""
        now = time.monotonic()
        for client in [one for one, stranger in self._strangers.items() if stranger.until <= now]:
            self._forget(client)
        own = self.wait_fds
        if self._strangers:
            timeout = min(timeout, min(one.until for one in self._strangers.values()) - now)
        self.wait_fds = [*own, *self._strangers]
        try:
            ready = super().wait(timeout) or []
        finally:
            self.wait_fds = own
        for one in ready:
            if one in self._strangers:
                self._go_on(self._strangers.pop(one))
        return [one for one in ready if one in own]

    def run(self) -> None:
        """The worker's main loop; who has come by its end is still served."""
        super().run()
        until = time.monotonic() + LINGER
        while self._strangers and (left := until - time.monotonic()) > 0:
            self.notify()
            for one in select.select(list(self._strangers), [], [], left)[0]:
                self._go_on(self._strangers.pop(one))

    def _steps(self, client: socket.socket) -> Steps[Bounded | BoundedTls]:
        met = yield from meeting(client, self.gate)
        self._peers[met.connection] = met.peer
        yield from begun(met.connection)
        return met.connection

    def _go_on(self, stranger: "_Stranger") -> None:
        try:
            self._strangers[next(stranger.steps)] = stranger
        except StopIteration as end:
            end.value.bound(_AT_ONCE)
            self.notify()
            self.handle(stranger.listener, end.value, stranger.addr)
        except OSError as error:
            log.info("a connection from %s is refused: %s", stranger.addr, error)

    def _forget(self, client: socket.socket) -> None:
        stranger = self._strangers.pop(client)
        stranger.steps.close()
        log.info("a connection from %s is refused: too slow", stranger.addr)


@dataclass(frozen=True, slots=True)
class _Stranger:
    """A connection whose request has not come yet."""

    listener: Any
    addr: Any
    until: float
    steps: Steps[Bounded | BoundedTls]


class ThreadWorker(_Blocking, GunicornThreads):  # type: ignore[misc]
    """gunicorn's gthread worker, in the mesh."""

    def handle(self, conn: Any) -> Any:
        """A request of one connection, on a thread."""
        if not conn.initialized:
            if not conn.wait_for_data(0):
                return _DEFER  # to the poller, which has a limit of its own
            conn.init = functools.partial(self._init, conn)
        stays = super().handle(conn)
        if not stays:
            with contextlib.suppress(OSError):
                conn.close(graceful=True)
            conn.sock = socket.socket()  # for gunicorn to close
        return stays

    def _init(self, conn: Any) -> None:
        if not conn.initialized:
            try:
                met = meet(conn.sock, self.gate, self.patience)
            except Refused as error:
                log.info("a connection from %s is refused: %s", conn.client, error)
                conn.sock = socket.socket()  # gunicorn will close it, politely, and knows this error
                raise ConnectionResetError(errno.ECONNRESET, str(error)) from None
            conn.sock = met.connection
            self._peers[met.connection] = met.peer
        type(conn).init(conn)
        conn.sock.bound(self.patience)
