"""gunicorn's sync and gthread workers at a port that the mesh secures.

A connection is met (`accept_blocking`) where gunicorn would shake hands itself: of gthread on a thread of
its pool, of sync in the worker, which serves nobody else meanwhile.

Rules:

- Connections that say nothing wait for their first byte at the worker's poll, and cost no thread and no turn.
- From then on a handshake has `patience` seconds, and so has each wait for more of a request's head.
"""

import errno
import functools
import logging
import select
import socket
import time
import weakref
from collections.abc import Iterable
from typing import Any

from gunicorn.workers.gthread import _DEFER
from gunicorn.workers.gthread import ThreadWorker as GunicornThreads
from gunicorn.workers.sync import SyncWorker as GunicornSync

from meshlib.core.request import Peer
from meshlib.dataplane.accept_blocking import meet
from meshlib.dataplane.doorstep import Refused
from meshlib_gunicorn.worker import Meshed
from meshlib_wsgi import PEER, MeshMiddleware

log = logging.getLogger(__name__)

_MOST_SILENT = 500
"""Connections of a sync worker that have said nothing yet; then the oldest goes."""


class _Blocking(Meshed):
    """What both have in common."""

    wsgi: Any
    patience = 5.0
    """Seconds for a handshake, and for each piece of a request's head."""

    def load_wsgi(self) -> None:
        """In the worker: the application, behind the mesh's policies."""
        super().load_wsgi()
        self._peers: weakref.WeakKeyDictionary[socket.socket, Peer] = weakref.WeakKeyDictionary()
        admitted = MeshMiddleware(self.wsgi, self.gate)

        def told(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            connection = environ["gunicorn.socket"]
            connection.settimeout(None)  # the request is there; its body has gunicorn's own limits
            environ[PEER] = self._peers[connection]
            return admitted(environ, start_response)

        self.wsgi = told

    def run(self) -> None:
        """The worker's main loop."""
        self.presence.booted()
        super().run()  # type: ignore[misc]

    def meet(self, accepted: socket.socket) -> socket.socket:
        """The connection to go on with. Refused: it was closed."""
        met = meet(accepted, self.gate, self.patience)
        self._peers[met.connection] = met.peer
        met.connection.settimeout(self.patience)
        return met.connection


class SyncMeshWorker(_Blocking, GunicornSync):  # type: ignore[misc]
    """gunicorn's sync worker, in the mesh.

    Not called `SyncWorker`: gunicorn replaces every class whose name ends so by its own gthread worker as
    soon as there are several threads, and with it the mesh.
    """

    patience = 2.0
    wait_fds: Any
    alive: bool

    def __init__(self, *args: Any, **named: Any) -> None:
        """In the arbiter."""
        super().__init__(*args, **named)
        self._silent: dict[socket.socket, tuple[Any, Any, float]] = {}
        """Connections without a first byte: their listener, their address, until when they may wait."""

    def accept(self, listener: Any) -> None:
        """Takes a connection, and leaves it alone until it says something."""
        client, addr = listener.accept()
        client.setblocking(True)
        self._silent[client] = listener, addr, time.monotonic() + self.patience
        if len(self._silent) > _MOST_SILENT:
            self._forget(next(iter(self._silent)))

    def wait(self, timeout: float) -> Any:
        """Until somebody comes, or a connection has said something, which is then served."""
        self._expire()
        own = self.wait_fds
        if self._silent:
            timeout = min(timeout, self.patience)
        self.wait_fds = [*own, *self._silent]
        try:
            ready = super().wait(timeout) or []
        finally:
            self.wait_fds = own
        self._serve([one for one in ready if one in self._silent])
        return [one for one in ready if one in own]

    def run(self) -> None:
        """The worker's main loop; who has spoken by its end is still served."""
        super().run()
        self._serve(select.select(list(self._silent), [], [], 0)[0])

    def _serve(self, clients: Iterable[socket.socket]) -> None:
        for client in clients:
            listener, addr, _ = self._silent.pop(client)
            self.notify()
            self.handle(listener, client, addr)

    def _expire(self) -> None:
        now = time.monotonic()
        for client in [one for one, (_, _, until) in self._silent.items() if until <= now]:
            self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        del self._silent[client]
        client.close()

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """One connection."""
        try:
            client = self.meet(client)
        except Refused as error:
            log.info("a connection from %s is refused: %s", addr, error)
            return
        super().handle(listener, client, addr)


class ThreadWorker(_Blocking, GunicornThreads):  # type: ignore[misc]
    """gunicorn's gthread worker, in the mesh."""

    def handle(self, conn: Any) -> Any:
        """A request of one connection, on a thread."""
        if not conn.initialized:
            if not conn.wait_for_data(0):
                return _DEFER  # to the poller, which has a limit of its own
            conn.init = functools.partial(self._init, conn)
        return super().handle(conn)

    def _init(self, conn: Any) -> None:
        if not conn.initialized:
            try:
                conn.sock = self.meet(conn.sock)
            except Refused as error:
                log.info("a connection from %s is refused: %s", conn.client, error)
                conn.sock = socket.socket()  # gunicorn will close it, politely, and knows this error
                raise ConnectionResetError(errno.ECONNRESET, str(error)) from None
        type(conn).init(conn)
        conn.sock.settimeout(self.patience)
