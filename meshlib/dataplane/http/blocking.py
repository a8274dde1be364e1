"""Exchanges for threads, and the pools of their connections, which one lock guards."""

import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, ResponseHead
from meshlib.core.view import View
from meshlib.dataplane.http import local
from meshlib.dataplane.http.connection_blocking import Connection
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.dropped import undertaker
from meshlib.dataplane.http.failures import (
    broken_off,
    closed,
    not_connected,
    overflowing,
    stale,
    without_head,
)
from meshlib.dataplane.http.lease import Lease
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Broken, Limits, OwnTimeouts
from meshlib.dataplane.http.options import set_options
from meshlib.dataplane.http.pool import Found, Kept, Pool
from meshlib.dataplane.http.pools import MOST_IDLE, NO_DESCRIPTOR, Pools, listed
from meshlib.dataplane.http.response import LeasedResponse
from meshlib.dataplane.http.secure import (
    MakeContexts,
    address_of,
    check,
    context_for,
    no_contexts,
    shake_hands,
)
from meshlib.dataplane.http.syntax import SWITCHING, Malformed
from meshlib.dataplane.http.upkeep import caretaker
from meshlib.dataplane.tls_session import Session

if TYPE_CHECKING:
    from meshlib.dataplane.http.h2blocking import Streams


class Response(LeasedResponse[Connection]):
    """A response whose head is here; iterate it once, and close it."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        """The body. Broken, TooSlow."""
        if self.whole:
            yield self.whole
            return
        lease, connection = self._lease, self._lease.kept.connection
        try:
            while lease.open and isinstance(part := connection.next(), bytes):
                yield part
        except (Malformed, OSError) as error:
            lease.end(False)
            raise Broken(broken_off(error, connection.codec.ended)) from error
        except BaseException:
            lease.end(False)
            raise
        if lease.open:
            lease.end(connection.codec.reuse())


class Connections:
    """The pools of a client, by cluster. Thread-safe."""

    def __init__(
        self,
        clock: Callable[[], float],
        contexts: MakeContexts = no_contexts,
        longest_idle: float = math.inf,
        most_idle: int = MOST_IDLE,
    ) -> None:
        """`contexts` gives those of the workload, for endpoints that ask for TLS; `longest_idle`, in seconds,
        bounds the idle time-outs of all clusters; `most_idle`: how many stay idle where another is made.
        """
        self._clock = clock
        self._longest_idle = longest_idle
        self._contexts = contexts
        self._pools: Pools[Pool[Connection], Connection] = Pools(Pool, most_idle)
        self._lock = threading.Lock()
        self._closed = False
        self._busy: set[Connection] = set()
        """Held here too, that a dropped exchange is noticed before its socket is collected."""
        self._lost: deque[tuple[Pool[Connection], Connection]] = deque()
        self._undertaker = undertaker
        self._streams: Streams | None = None

    def __repr__(self) -> str:
        return f"<Connections {self._pools!r}>"

    @property
    def streams(self) -> "Streams":
        """Those that several requests share. Made at the first: not every process speaks HTTP/2."""
        if self._streams is None:
            from meshlib.dataplane.http.h2blocking import Streams

            with self._lock:
                if self._streams is None:
                    self._streams = Streams(
                        self._clock, self._connect, self._longest_idle, self._pools.most_idle, self._closed
                    )
        return self._streams

    def send(
        self,
        attempt: Attempt,
        body: bytes | Iterable[bytes],
        own: OwnTimeouts = NO_TIMEOUTS,
        cut: Cut | None = None,
    ) -> Response | Failed:
        """One try. TooSlow: one of the application's own limits passed; Unsendable; errors of `body`."""
        limits = Limits(self._clock, own, attempt.try_deadline, attempt.deadline, cut)
        if attempt.upstream.http2 is not None:
            return self.streams.send(attempt, attempt.upstream.http2, body, limits)
        anew = False
        while True:
            try:
                lease = self._lease(attempt, limits, anew)
            except Broken as error:
                return replace(error.failed, connected=False)
            connection = lease.kept.connection
            connection.limits = limits
            connection.written = False
            try:
                try:
                    if cut is not None:
                        cut.during(limits, connection.cut_off)
                    try:
                        _send_all(connection, attempt, body)
                    except OSError:
                        # The peer may have answered before it stopped reading.
                        if not connection.written:
                            raise
                    head = connection.next()
                    if not isinstance(head, ResponseHead):
                        raise Malformed("no response head")
                    limits.left(None)  # a head that has come too late is no answer
                finally:
                    if cut is not None:
                        cut.over()
            except Broken as error:
                lease.end(False)
                return error.failed
            except (Malformed, OSError) as error:
                lease.end(False)
                silent = connection.codec.silent
                if silent and not lease.fresh:
                    with self._lock:
                        lease.pool.note_stale(lease.kept, self._clock())
                if stale(attempt.head, body, silent, connection.written, lease.fresh):
                    anew = True
                    continue
                return without_head(error, connection.written, connection.codec.ended, lease.fresh)
            except BaseException:
                lease.end(False)
                raise
            break
        limits.try_deadline = None
        return self._response(head, lease)

    def _response(self, head: ResponseHead, lease: Lease[Connection]) -> Response:
        response: Response
        if head.status == SWITCHING:
            from meshlib.dataplane.http.upgrade import Upgraded

            response = Upgraded(head, lease)
        else:
            response = Response(head, lease)
            if response.whole is not None:
                return response
        self._undertaker.expect(self)
        return response

    def _lease(self, attempt: Attempt, limits: Limits, anew: bool) -> Lease[Connection]:
        place = free = None
        address, upstream = address_of(attempt), attempt.upstream
        most = upstream.limits
        try:
            while True:
                with self._lock:
                    pool, closing = self._pool(attempt.cluster)
                    found = pool.seek(
                        address, most.max_connections, self._clock(), place, most.max_pending, anew=anew
                    )
                    served = found.kept is not None or found.room
                    overflow = found.overflow or not (served or upstream.waits)
                    if free is None and not served and not overflow:
                        free = threading.Event()
                        place = pool.join(free.set)
                for old in (*closing, *found.closing):
                    old.close()
                if overflow:
                    raise Broken(overflowing())
                if served:
                    return self._leased(pool, found, attempt, limits)
                if attempt.queue is not None:
                    attempt.queue.waits()
                assert free is not None  # noqa: S101 - made with the place
                freed(free, limits)
        finally:
            if place is not None:
                with self._lock:
                    pool.leave(place)

    def _leased(
        self, pool: Pool[Connection], found: Found[Connection], attempt: Attempt, limits: Limits
    ) -> Lease[Connection]:
        kept = found.kept
        if kept is None:
            if attempt.queue is not None:
                attempt.queue.waits()
            kept = self._made(pool, attempt, limits)
        self._busy.add(kept.connection)
        lease = Lease(self, pool, kept, attempt, fresh=found.kept is None)
        if attempt.queue is not None and not attempt.queue.goes_on(attempt.upstream.limits):
            lease.end(True)
            raise Broken(overflowing())
        return lease

    def _made(self, pool: Pool[Connection], attempt: Attempt, limits: Limits) -> Kept[Connection]:
        self._spare()
        try:
            made = self._open(attempt, limits)
        except BaseException:
            with self._lock:
                pool.made()
                pool.gone()
            raise
        with self._lock:
            pool.made()
        dies = self._clock() + attempt.upstream.max_connection_duration
        return Kept(made, address_of(attempt), dies=dies)

    def _open(self, attempt: Attempt, limits: Limits) -> Connection:
        made, session = self._connect(attempt, limits)
        return Connection(made, limits, session)

    def _connect(self, attempt: Attempt, limits: Limits) -> tuple[socket.socket, Session | None]:
        """A socket, and how it is secured. Broken."""
        seconds = limits.to_connect(attempt.upstream.connect_timeout)
        deadline = time.monotonic() + seconds
        session = None
        try:
            address = attempt.at or attempt.address
            path = local.path_of(address)
            if path is None:
                made = socket.create_connection(address, timeout=max(seconds, 1e-4))
            else:
                made = local.connect(path, max(seconds, 1e-4))
            try:
                if path is None:
                    set_options(made, attempt.upstream.keepalive)
                if attempt.upstream.proxy_protocol:
                    from meshlib.dataplane.proxy_protocol import proxy_header

                    made.sendall(proxy_header(attempt.upstream.proxy_protocol, made))
                if attempt.tls is not None:
                    session = self._encrypt(made, attempt, deadline)
            except BaseException:
                made.close()
                raise
        except (OSError, UnicodeError, ValueError) as error:
            if getattr(error, "errno", None) in NO_DESCRIPTOR and self._halve():
                return self._connect(attempt, limits)
            raise Broken(not_connected(error, limits, seconds)) from None
        return made, session

    def _encrypt(self, made: socket.socket, attempt: Attempt, deadline: float) -> Session:
        """Shakes hands within the time to connect, and looks who answered."""
        _, tls, name = address_of(attempt)
        assert tls is not None  # noqa: S101 - asked before
        contexts = self._contexts()
        session = Session(context_for(tls, contexts), name=name)
        shake_hands(session, made, deadline)
        check(tls, contexts, session.tls)
        return session

    def _pool(self, cluster: str) -> tuple[Pool[Connection], list[Connection]]:
        """The pool of a cluster, and connections that came to nothing, to be closed. Under the lock."""
        if self._closed:
            raise Broken(closed())
        return self._pools[cluster], self._bury()

    def _spare(self) -> None:
        """Another connection is to be made: too many idle ones are closed."""
        with self._lock:
            closing = self._pools.spare()
        for old in closing:
            old.close()

    def _halve(self) -> bool:
        """There is no descriptor left: whether some of idle connections are free now."""
        with self._lock:
            closing = self._pools.halve()
        for old in closing:
            old.close()
        streams = self._streams
        return bool(closing) or (streams is not None and streams.halve())

    def look(self) -> float | None:
        """Closes what is of no use any more; gives the seconds after which to look again, if it is so."""
        with self._lock:
            closing = self._bury()
            old, seconds = self._pools.look(self._clock())
        for connection in closing + old:
            connection.close()
        return None if self._closed else seconds

    def endpoints_changed(self, view: View, clusters: Iterable[str]) -> None:
        """On any thread: closes connections to endpoints of these clusters that are not listed any more."""
        with self._lock:
            closing = self._pools.keep_to(listed(view, self._pools.leading_to(clusters)))
        for old in closing:
            old.close()
        if self._streams is not None:
            self._streams.endpoints_changed(view, clusters)

    def _bury(self) -> list[Connection]:
        """Those of dropped exchanges, to be closed. Under the lock."""
        closing = []
        while self._lost:
            pool, connection = self._lost.popleft()
            pool.gone()
            self._busy.discard(connection)
            closing.append(connection)
        return closing

    def _end_dropped(self) -> None:
        with self._lock:
            closing = self._bury()
        for connection in closing:
            connection.close()

    def take_back(self, lease: Lease[Connection], reusable: bool) -> None:
        """An exchange has ended."""
        self._busy.discard(lease.kept.connection)
        with self._lock:
            now = self._clock()
            idle = min(lease.idle_timeout, self._longest_idle)
            if reusable and idle > 0 and not self._closed and lease.pool.wants(lease.kept, now):
                lease.pool.give_back(lease.kept, now, idle)
                if lease.kept.until < self._pools.looks_at:
                    caretaker.expect(self, self._pools.sooner(lease.kept.until, now))
                return
            lease.pool.gone()
        lease.kept.connection.close()

    def note_lost(self, pool: Pool[Connection], connection: Connection) -> None:
        """An exchange was dropped; its connection is closed soon, or with the next request."""
        self._lost.append((pool, connection))
        self._undertaker.note(self._end_dropped)

    def close(self) -> None:
        """Closes idle connections now, the others when their exchange ends; who waits fails."""
        self._end()
        caretaker.forget(self)
        if not self._busy:
            self._undertaker.forget(self)
        if self._streams is not None:
            self._streams.close()

    def _end(self) -> None:
        with self._lock:
            self._closed = True
            closing = self._bury()
            for pool in self._pools.values():
                closing += pool.clear()
        for connection in closing:
            connection.close()

    def abandon(self) -> None:
        """In the child of a fork: closes the copies of the sockets. Nobody holds the lock or waits here, and
        the caretaker, whose lock may still be held, forgets by itself.
        """
        self._lock = threading.Lock()
        for pool in self._pools.values():
            pool.abandon()
        for connection in list(self._busy):
            connection.close()
        if self._streams is not None:
            self._streams.abandon()
        self._end()


def freed(free: threading.Event, limits: Limits) -> None:
    """Waits for a word of the pool. Broken, TooSlow."""
    own, cut = limits.own.pool, limits.cut
    if cut is not None:
        cut.during(limits, free.set)
    if not free.wait(limits.left(own)):
        raise limits.passed("pool", own)
    free.clear()
    if cut is not None:
        cut.during(limits, free.clear)


def _send_all(connection: Connection, attempt: Attempt, body: bytes | Iterable[bytes]) -> None:
    codec = connection.codec
    if isinstance(body, bytes):
        connection.write(codec.whole(attempt.head, body))
        return
    # The head goes first: what a stream gives may depend on what the peer does.
    wanted = connection.write(codec.request(attempt.head))
    for chunk in body:
        if not wanted:
            return
        wanted = connection.write_on(codec.data(chunk))
    if wanted:
        connection.write(codec.end())
