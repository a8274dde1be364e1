"""gunicorn's sync and gthread workers at a port that the mesh secures.

A connection is met (`accept_blocking`) where gunicorn would shake hands itself, at the worker's poll.

Rules:

- A connection costs no thread and no turn until the head of its request is there: silence, handshake and
  head wait at the poll, and have `patience` seconds together. So have the heads of later requests of a
  connection of gthread.
- A connection that is over is closed on the thread that served it: gunicorn waits up to two seconds for the
  peer to close its end, too, which must not be the time of the one thread that serves all others.
"""

import contextlib
import functools
import logging
import select
import selectors
import socket
import time
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from gunicorn.workers.gthread import TConn
from gunicorn.workers.gthread import ThreadWorker as GunicornThreads
from gunicorn.workers.sync import SyncWorker as GunicornSync

from meshlib.core.request import Peer
from meshlib.dataplane.accept_blocking import Bounded, BoundedTls, Steps, begun, meeting
from meshlib.values import dataclass
from meshlib_gunicorn.worker import LINGER, Meshed
from meshlib_wsgi import PEER, MeshMiddleware

log = logging.getLogger(__name__)

_MOST_STRANGERS = 500
"""Connections of a worker whose request has not come yet; then the oldest goes."""
_AT_ONCE = 0.01
"""Seconds for gunicorn to read a head that is there."""


class _Blocking(Meshed):
    """What both have in common."""

    wsgi: Any

    def __init__(self, *args: Any, **named: Any) -> None:
        """In the arbiter."""
        super().__init__(*args, **named)
        self._strangers: dict[socket.socket, _Stranger] = {}
        """By the socket from which more of the handshake or of the request's head has to come."""

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

    def _meet(self, listener: Any, client: socket.socket, addr: Any, most: int) -> None:
        """Begins with a new connection."""
        if len(self._strangers) >= most:
            self._forget(next(iter(self._strangers)))
        until = time.monotonic() + self.patience
        self._go_on(_Stranger(listener, addr, until, self._steps(client)))

    def _steps(self, client: socket.socket) -> Steps[Bounded | BoundedTls]:
        met = yield from meeting(client, self.gate)
        self._peers[met.connection] = met.peer
        yield from begun(met.connection)
        return met.connection

    def _go_on(self, stranger: "_Stranger") -> None:
        try:
            client = next(stranger.steps)
        except StopIteration as end:
            self._come(stranger, end.value)
        except OSError as error:
            self._gone(stranger, str(error))
        else:
            self._strangers[client] = stranger
            self._watch(client)

    def _forget(self, client: socket.socket) -> None:
        stranger = self._strangers.pop(client)
        self._ignore(client)
        stranger.steps.close()
        self._gone(stranger, "too slow")

    def _forget_slow(self) -> None:
        now = time.monotonic()
        for client in [one for one, stranger in self._strangers.items() if stranger.until <= now]:
            self._forget(client)

    def _within(self, timeout: float) -> float:
        """That time, or what the first of them has left."""
        if not self._strangers:
            return timeout
        first = min(one.until for one in self._strangers.values())
        return min(timeout, max(0.0, first - time.monotonic()))

    def _come(self, stranger: "_Stranger", connection: Bounded | BoundedTls) -> None:
        """The head of a request is there."""
        raise NotImplementedError

    def _gone(self, stranger: "_Stranger", why: str) -> None:
        log.info("a connection from %s is refused: %s", stranger.addr, why)

    def _watch(self, client: socket.socket) -> None:
        """To be called when more comes from it."""

    def _ignore(self, client: socket.socket) -> None:
        """Not any more."""


class SyncMeshWorker(_Blocking, GunicornSync):  # type: ignore[misc]
    """gunicorn's sync worker, in the mesh.

    Not called `SyncWorker`: gunicorn replaces every class whose name ends so by its own gthread worker as
    soon as there are several threads, and with it the mesh.
    """

    wait_fds: Any
    alive: bool

    def accept(self, listener: Any) -> None:
        """Takes a connection, and leaves it alone until its request has come."""
        client, addr = listener.accept()
        self._meet(listener, client, addr, _MOST_STRANGERS)

    def wait(self, timeout: float) -> Any:
        """Until somebody comes. Who has said something goes on, and is served once that is a request."""
        self._forget_slow()
        own, timeout = self.wait_fds, self._within(timeout)
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

    def _come(self, stranger: "_Stranger", connection: Bounded | BoundedTls) -> None:
        connection.bound(_AT_ONCE)
        self.notify()
        self.handle(stranger.listener, connection, stranger.addr)


@dataclass(frozen=True, slots=True)
class _Stranger:
    """A connection whose request has not come yet."""

    listener: Any
    addr: Any
    until: float
    steps: Steps[Bounded | BoundedTls]
    conn: Any = None
    """gunicorn's, if this is not its first request."""


class ThreadWorker(_Blocking, GunicornThreads):  # type: ignore[misc]
    """gunicorn's gthread worker, in the mesh."""

    poller: Any
    alive: bool

    def accept(self, listener: Any) -> None:
        """Takes a connection, for which there is a thread once its request has come."""
        try:
            client, addr = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.nr_conns += 1
        most = min(_MOST_STRANGERS, max(1, self.worker_connections // 2))
        self._meet(listener, client, addr, most)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """The next request of a connection begins."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._again(conn)

    def enqueue_req(self, conn: Any) -> None:
        """A thread for a connection; but what came behind its last request has to become a head first."""
        if conn.parser is not None and (early := conn.parser.unreader.take_buffered()):
            conn.sock.unread(early)
            conn.sock.setblocking(False)
            self._again(conn)
        else:
            super().enqueue_req(conn)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """After a request. What was read of the next one already wakes no poll."""
        super().finish_request(conn, fs)
        kept = self.keepalived_conns
        if kept and kept[-1] is conn and conn.sock.ahead:
            self.on_client_socket_readable(conn, conn.sock)

    def handle(self, conn: Any) -> Any:
        """A request of one connection, on a thread."""
        stays = super().handle(conn)
        if not stays:
            with contextlib.suppress(OSError):
                conn.close(graceful=True)
            conn.sock = socket.socket()  # for gunicorn to close
        return stays

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Until something happens."""
        super().wait_for_and_dispatch_events(self._within(timeout))
        self._forget_slow()

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)  # the worker stops
        for client, one in self._strangers.items():
            self._strangers[client] = replace(one, until=min(one.until, deadline))

    def _again(self, conn: Any) -> None:
        until = time.monotonic() + self.patience
        self._go_on(_Stranger(None, conn.client, until, self._next(conn.sock), conn))

    def _next(self, connection: Bounded | BoundedTls) -> Steps[Bounded | BoundedTls]:
        yield from begun(connection)
        return connection

    def _come(self, stranger: "_Stranger", connection: Bounded | BoundedTls) -> None:
        conn = stranger.conn
        if conn is None:
            conn = TConn(self.cfg, connection, stranger.addr, stranger.listener.getsockname())
            conn.data_ready = True
            conn.init = functools.partial(self._init, conn)
        self.enqueue_req(conn)

    def _init(self, conn: Any) -> None:
        whole = self.cfg.http_protocols == ["h1"]  # of HTTP/2 more than a head is read before the application
        conn.sock.bound(_AT_ONCE if whole else self.patience)
        type(conn).init(conn)

    def _gone(self, stranger: "_Stranger", why: str) -> None:
        self.nr_conns -= 1
        super()._gone(stranger, why)

    def _watch(self, client: socket.socket) -> None:
        self.poller.register(client, selectors.EVENT_READ, self._woken)

    def _ignore(self, client: socket.socket) -> None:
        self.poller.unregister(client)

    def _woken(self, client: socket.socket) -> None:
        if (stranger := self._strangers.pop(client, None)) is not None:
            self._ignore(client)
            self._go_on(stranger)
