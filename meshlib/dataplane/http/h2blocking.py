"""HTTP/2 for threads: streams of shared connections, and their pools.

The lock of the pools is taken before that of a connection, never after.
"""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from meshlib.core.actions import Attempt
from meshlib.core.http2 import Http2
from meshlib.core.request import Failed, Failure, ResponseHead
from meshlib.core.view import View
from meshlib.dataplane.http import blocking
from meshlib.dataplane.http.dropped import undertaker
from meshlib.dataplane.http.failures import closed, overflowing
from meshlib.dataplane.http.h2codec import Reset
from meshlib.dataplane.http.h2connection_blocking import Connection
from meshlib.dataplane.http.h2pool import Found, Overflow, Place, Shared, SharedPool, Terms, terms_of
from meshlib.dataplane.http.limits import Broken, Limits
from meshlib.dataplane.http.loan import Lent, Loan
from meshlib.dataplane.http.pools import Pools, listed
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.http.secure import address_of
from meshlib.dataplane.http.upkeep import caretaker
from meshlib.dataplane.tls_session import Session

Open = Callable[[Attempt, Limits], tuple[socket.socket, Session | None]]


def _exchange(
    loan: Loan[Connection], attempt: Attempt, body: bytes | Iterable[bytes], limits: Limits
) -> ResponseHead | bytes | Need:
    """Sends the request and waits for the head of the response. Reset, Broken, TooSlow, Unsendable."""
    cut, connection = limits.cut, loan.shared.connection
    if cut is not None:
        connection.hang_bell()
        cut.during(limits, lambda: connection.cut_off(loan.stream))
    try:
        _send(loan, attempt, body, limits)
        head = _next(loan, limits)
        limits.left(None)  # a head that has come too late is no answer
        return head
    finally:
        if cut is not None:
            cut.over()


def _send(loan: Loan[Connection], attempt: Attempt, body: bytes | Iterable[bytes], limits: Limits) -> None:
    """The whole request, or as much of it as the peer wants to hear. Reset, Broken, TooSlow, Unsendable."""
    connection = loan.shared.connection
    codec = connection.codec
    with connection.lock:
        stream = loan.stream = codec.open(attempt.head, whole=isinstance(body, bytes) and not body)
        if isinstance(body, bytes) and body:
            connection.write(stream, body, limits, last=True)
        else:
            connection.drain(stream, limits)
    if isinstance(body, bytes):
        return
    for chunk in body:
        if stream.over:
            return
        if chunk:
            with connection.lock:
                connection.write(stream, chunk, limits, last=False)
    with connection.lock:
        codec.finish(stream)
        connection.drain(stream, limits)


def _next(loan: Loan[Connection], limits: Limits) -> ResponseHead | bytes | Need:
    """The next part of the response, waited for. Reset, Broken, TooSlow."""
    connection, stream = loan.shared.connection, loan.stream
    assert stream is not None  # noqa: S101 - the request was sent
    with connection.lock:
        return connection.next(stream, limits)


class StreamResponse(blocking.Response):
    """A response whose head is here; iterate it once, and close it."""

    __slots__ = ("_limits", "_loan")

    def __init__(self, head: ResponseHead, loan: Loan[Connection], limits: Limits) -> None:
        self.head = head
        self.version = b"HTTP/2"
        self.whole = None
        self.reason = b""
        self._loan = loan
        self._limits = limits

    def __iter__(self) -> Iterator[bytes]:
        """The body. Broken, TooSlow."""
        loan = self._loan
        try:
            while loan.open and isinstance(part := _next(loan, self._limits), bytes):
                yield part
        except Reset as error:
            raise Broken(error.failed) from error
        finally:
            loan.end()

    def ready(self) -> bytes | Need:
        """The next part of the body, if it has come. Broken."""
        loan = self._loan
        stream, connection = loan.stream, loan.shared.connection
        if not loan.open or stream is None:
            return Need.NOTHING
        try:
            with connection.lock:
                part = connection.codec.next(stream)
                connection.flush()
        except Reset as error:
            loan.end()
            raise Broken(error.failed) from error
        if part is Need.NOTHING:
            loan.end()
        assert not isinstance(part, ResponseHead)  # noqa: S101 - it has come before
        return part

    def close(self) -> None:
        """Ends the exchange; of a body that was not read to its end the peer is told to stop."""
        self._loan.end()


class Streams:
    """The pools of shared connections of a client, by cluster. Thread-safe."""

    def __init__(
        self,
        clock: Callable[[], float],
        open_socket: Open,
        longest_idle: float,
        most_idle: int,
        is_closed: bool,
    ) -> None:
        self._clock = clock
        self._open_socket = open_socket
        self._longest_idle = longest_idle
        self._pools: Pools[SharedPool[Connection], Connection] = Pools(SharedPool, most_idle)
        self._lock = threading.Lock()
        self._closed = is_closed
        self._lost: deque[Lent[Connection]] = deque()
        self._undertaker = undertaker
        self._all: set[Connection] = set()

    def __repr__(self) -> str:
        return f"<Streams {self._pools!r}>"

    def send(
        self, attempt: Attempt, how: Http2, body: bytes | Iterable[bytes], limits: Limits
    ) -> StreamResponse | Failed:
        """One try. TooSlow: one of the application's own limits passed; Unsendable; errors of `body`."""
        before = 0
        while True:
            try:
                loan = self._borrow(attempt, how, limits)
            except Broken as error:
                return replace(error.failed, connected=False)
            if attempt.queue is not None and not attempt.queue.goes_on(attempt.upstream.limits):
                loan.end()
                return replace(overflowing(), connected=False)
            try:
                head = _exchange(loan, attempt, body, limits)
            except (Broken, Reset) as error:
                if loan.stale(error.failed):
                    with self._lock:
                        loan.pool.note_stale(loan.shared, self._clock())
                loan.end()
                if isinstance(error, Reset) and loan.unseen(error.failed, attempt.head, body, before):
                    before += 1
                    continue
                return error.failed
            except BaseException:
                loan.end()
                raise
            break
        if not isinstance(head, ResponseHead):
            loan.end()
            return Failed(Failure.PROTOCOL, "the stream ended without a response")
        limits.try_deadline = None
        loan.shared.rested = 0.0
        self._undertaker.expect(self)
        return StreamResponse(head, loan, limits)

    def _borrow(self, attempt: Attempt, how: Http2, limits: Limits) -> Loan[Connection]:
        terms, address = terms_of(attempt, how), address_of(attempt)
        place: Place | None = None
        free: threading.Event | None = None
        self._bury()
        try:
            while True:
                with self._lock:
                    if self._closed:
                        raise Broken(closed())
                    pool = self._pools[attempt.cluster]
                    found: Found[Connection] = pool.seek(address, terms, self._clock(), place)
                    served = found.shared is not None or found.room
                    turned = found.overflow or not (served or attempt.upstream.waits)
                    if free is None and not served and not turned:
                        free = threading.Event()
                        place = pool.join(address, terms.max_pending, free.set)
                self._close(found.closing)
                if found.shared is not None:
                    return Loan(self, pool, found.shared, attempt)
                if turned:
                    raise Overflow
                if attempt.queue is not None:
                    attempt.queue.waits()
                if found.room:
                    return self._made(pool, attempt, how, terms, limits)
                assert free is not None  # noqa: S101 - made with the place
                blocking.freed(free, limits)
                if place is not None and place.failed is not None:
                    raise Broken(place.failed)
        except Overflow:
            raise Broken(overflowing()) from None
        finally:
            if place is not None:
                with self._lock:
                    pool.leave(place)

    def _made(
        self, pool: SharedPool[Connection], attempt: Attempt, how: Http2, terms: Terms, limits: Limits
    ) -> Loan[Connection]:
        address = address_of(attempt)
        failed: Failed | None = None
        with self._lock:
            closing = self._pools.spare()
        self._close(closing)
        try:
            longest = attempt.upstream.connect_timeout
            short = limits.to_connect(longest) < longest
            try:
                made = Connection(*self._open_socket(attempt, limits), how)
            except Broken as error:
                # Whose own time was short says nothing of the endpoint.
                if error.failed.how is Failure.CONNECT_FAILED or not short:
                    failed = error.failed
                raise
        except BaseException:
            with self._lock:
                pool.not_made(address, failed)
            raise
        dies = self._clock() + attempt.upstream.max_connection_duration
        shared = Shared(made, address, dies=dies)
        made.changed = lambda: self._changed(pool, shared)
        with self._lock:
            self._all.add(made)
            pool.made(shared, terms)
        return Loan(self, pool, shared, attempt, fresh=True)

    def halve(self) -> bool:
        """There is no descriptor left: whether some of idle connections are free now."""
        with self._lock:
            closing = self._pools.halve()
        self._close(closing)
        return bool(closing)

    def look(self) -> float | None:
        """Closes what is of no use any more; gives the seconds after which to look again, if it is so."""
        self._bury()
        with self._lock:
            closing, seconds = self._pools.look(self._clock())
        self._close(closing)
        return None if self._closed else seconds

    def endpoints_changed(self, view: View, clusters: Iterable[str]) -> None:
        """As of `blocking.Connections`."""
        with self._lock:
            closing = self._pools.keep_to(listed(view, self._pools.leading_to(clusters)))
        self._close(closing)

    def _close(self, closing: list[Connection]) -> None:
        for old in closing:
            self._all.discard(old)
            old.close()

    def _bury(self) -> None:
        """Ends the dropped exchanges."""
        while self._lost:
            with contextlib.suppress(IndexError):  # another thread was faster
                self.take_back(self._lost.popleft())

    def take_back(self, lent: Lent[Connection]) -> None:
        """An exchange has ended."""
        pool, shared, stream, idle_timeout = lent
        connection = shared.connection
        if stream is not None:
            with connection.lock:
                connection.codec.release(stream)
                connection.flush()
        idle = min(idle_timeout, self._longest_idle)
        with self._lock:
            now = self._clock()
            done = pool.release(shared, now, idle, worn=self._closed)
            if not done and not shared.active and shared.until < self._pools.looks_at:
                caretaker.expect(self, self._pools.sooner(shared.until, now))
        if done:
            self._close([connection])

    def _changed(self, pool: SharedPool[Connection], shared: Shared[Connection]) -> None:
        with self._lock:
            closing = pool.changed(shared, self._clock())
        self._close(closing)

    def note_lost(self, lent: Lent[Connection]) -> None:
        """An exchange was dropped; it is ended soon, or with the next request."""
        self._lost.append(lent)
        self._undertaker.note(self._bury)

    def close(self) -> None:
        """Closes idle connections now, the others when their last exchange ends; who waits fails."""
        self._closed = True
        self._bury()
        caretaker.forget(self)
        with self._lock:
            closing = [connection for pool in self._pools.values() for connection in pool.clear()]
        self._close(closing)
        if not self._all:
            self._undertaker.forget(self)

    def abandon(self) -> None:
        """In the child of a fork: closes the copies of the sockets. Nobody holds a lock or waits here."""
        self._closed = True
        self._lock = threading.Lock()
        for connection in list(self._all):
            connection.lock = threading.Lock()
            connection.close()
        self._all.clear()
