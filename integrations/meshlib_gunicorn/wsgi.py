"""gunicorn's sync and gthread workers at a port that the mesh secures.

A connection is met (`accept_blocking`) where gunicorn would shake hands itself: of gthread on a thread of
its pool, of sync in the worker, which serves nobody else meanwhile.
"""

import errno
import functools
import logging
import socket
import weakref
from collections.abc import Iterable
from typing import Any

from gunicorn.workers.gthread import ThreadWorker as GunicornThreads
from gunicorn.workers.sync import SyncWorker as GunicornSync

from meshlib.core.request import Peer
from meshlib.dataplane.accept_blocking import meet
from meshlib.dataplane.doorstep import PATIENCE, Refused
from meshlib_gunicorn.worker import Meshed
from meshlib_wsgi import PEER, MeshMiddleware

log = logging.getLogger(__name__)

_SYNC_PATIENCE = 2.0
"""Seconds: nobody else is served meanwhile."""


class _Blocking(Meshed):
    """What both have in common."""

    wsgi: Any
    patience = PATIENCE

    def load_wsgi(self) -> None:
        """In the worker: the application, behind the mesh's policies."""
        super().load_wsgi()
        self._peers: weakref.WeakKeyDictionary[socket.socket, Peer] = weakref.WeakKeyDictionary()
        admitted = MeshMiddleware(self.wsgi, self.gate)

        def told(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ[PEER] = self._peers[environ["gunicorn.socket"]]
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
        return met.connection


class SyncWorker(_Blocking, GunicornSync):  # type: ignore[misc]
    """gunicorn's sync worker, in the mesh."""

    patience = _SYNC_PATIENCE

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
