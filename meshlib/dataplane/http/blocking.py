"""Connections for threads: blocking sockets, one lock a cluster's pool."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, Failure, ResponseHead
from meshlib.dataplane.http.codec import Codec, Malformed, Need
from meshlib.dataplane.http.limits import Broken, Limits, OwnTimeouts
from meshlib.dataplane.http.pool import Kept, Overflow, Pool

CHUNK = 64 * 1024
NO_TIMEOUTS = OwnTimeouts()


class Connection:
    """One connection to an endpoint."""

    __slots__ = ("codec", "limits", "socket", "written")

    def __init__(self, made: socket.socket, limits: Limits) -> None:
        self.socket = made
        self.codec = Codec()
        self.limits = limits
        self.written = False

    def usable(self) -> bool:
        """Whether the peer has kept an idle connection open: an idle one has nothing to read."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)

    def write(self, data: bytes) -> None:
        """Sends all of it. Broken, TooSlow."""
        if not data:
            return
        own = self.limits.own.write
        try:
            self.socket.settimeout(_at_least_some(self.limits.left(own)))
            self.socket.sendall(data)
        except TimeoutError:
            raise self.limits.passed("write", own) from None
        self.written = True

    def read(self) -> bytes:
        """What the peer sent; nothing: it closed. Broken, TooSlow, OSError."""
        own = self.limits.own.read
        try:
            self.socket.settimeout(_at_least_some(self.limits.left(own)))
            return self.socket.recv(CHUNK)
        except TimeoutError:
            raise self.limits.passed("read", own) from None

    def next(self) -> ResponseHead | bytes | Need:
        """The next part of the response, waited for."""
        while (part := self.codec.next()) is Need.DATA:
            self.codec.receive(self.read())
        return part

    def close(self) -> None:
        """Closes the socket."""
        with contextlib.suppress(OSError):
            self.socket.close()


def _at_least_some(seconds: float | None) -> float | None:
    # A timeout of 0 would mean a socket that does not block.
    return None if seconds is None else max(seconds, 1e-4)


class Response:
    """A response whose head is here; iterate it once, and close it."""

    __slots__ = ("_closed", "_connection", "_done", "head", "reason", "version")

    def __init__(self, head: ResponseHead, connection: Connection, done: Callable[[bool], None]) -> None:
        self.head = head
        self.version = connection.codec.version
        self.reason = connection.codec.reason
        self._connection = connection
        self._done = done
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        """The body. Broken, TooSlow."""
        try:
            while isinstance(part := self._connection.next(), bytes):
                yield part
        except (Malformed, OSError) as error:
            self._finish(False)
            raise Broken(Failed(Failure.RESET, f"the body broke off: {error}")) from error
        except BaseException:
            self._finish(False)
            raise
        self._finish(True)

    def close(self) -> None:
        """Ends the exchange; a body that was not read to its end costs the connection."""
        self._finish(False)

    def _finish(self, whole: bool) -> None:
        if not self._closed:
            self._closed = True
            self._done(whole and self._connection.codec.reuse())


class Connections:
    """The pools of a mesh, for threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pools: dict[str, Pool[Connection]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Connections {self._pools!r}>"

    def send(
        self, attempt: Attempt, body: Iterable[bytes], own: OwnTimeouts = NO_TIMEOUTS
    ) -> Response | Failed:
        """One try. TooSlow: one of the application's own limits passed; else errors of `body` itself."""
        limits = Limits(self._clock, own, attempt.try_deadline, attempt.deadline)
        pool = self._pools.get(attempt.cluster)
        if pool is None:
            with self._lock:
                pool = self._pools.setdefault(attempt.cluster, Pool())
        try:
            kept, fresh = self._connection(pool, attempt, limits)
        except Broken as error:
            return error.failed
        return self._exchange(pool, kept, fresh, attempt, body)

    def _exchange(
        self,
        pool: Pool[Connection],
        kept: Kept[Connection],
        fresh: bool,
        attempt: Attempt,
        body: Iterable[bytes],
    ) -> Response | Failed:
        connection = kept.connection
        kept.uses += 1

        def done(reusable: bool) -> None:
            worn = 0 < attempt.max_requests_per_connection <= kept.uses
            if reusable and not worn and not self._closed:
                with self._lock:
                    pool.give_back(kept, self._clock())
            else:
                connection.close()
                with self._lock:
                    pool.gone()

        connection.written = False
        try:
            try:
                self._send_all(connection, attempt, body)
            except OSError:
                # The peer may have answered before it stopped reading.
                if not connection.written:
                    raise
            head = connection.next()
            if not isinstance(head, ResponseHead):
                raise Malformed("no response head")
        except Broken as error:
            done(False)
            return error.failed
        except (Malformed, OSError) as error:
            done(False)
            return failed_by(error, connection.written, connection.codec, fresh)
        except BaseException:
            done(False)
            raise
        connection.limits.try_deadline = None
        return Response(head, connection, done)

    def _send_all(self, connection: Connection, attempt: Attempt, body: Iterable[bytes]) -> None:
        codec = connection.codec
        pending = codec.request(attempt.head)
        for chunk in body:
            connection.write(pending + codec.data(chunk))
            pending = b""
        connection.write(pending + codec.end())

    def _connection(
        self, pool: Pool[Connection], attempt: Attempt, limits: Limits
    ) -> tuple[Kept[Connection], bool]:
        while True:
            if self._closed:
                raise Broken(Failed(Failure.CONNECT_FAILED, "the client is closed"))
            with self._lock:
                kept, closing = pool.take(attempt.address, attempt.idle_timeout, self._clock())
                room, more = (False, []) if kept else pool.room(attempt.max_connections, attempt.address)
            for old in (*closing, *more):
                old.close()
            if kept is not None:
                if kept.connection.usable():
                    kept.connection.limits = limits
                    return kept, False
                kept.connection.close()
                with self._lock:
                    pool.gone()
            elif room:
                return Kept(self._open(pool, attempt, limits), attempt.address), True
            else:
                self._wait(pool, attempt, limits)

    def _wait(self, pool: Pool[Connection], attempt: Attempt, limits: Limits) -> None:
        free = threading.Event()
        try:
            with self._lock:
                pool.wait(attempt.max_pending, free.set)
        except Overflow:
            raise Broken(
                Failed(Failure.OVERFLOW, f"{attempt.max_pending} requests wait for a connection")
            ) from None
        try:
            if not free.wait(limits.left(limits.own.pool)):
                raise limits.passed("pool", limits.own.pool)
        finally:
            with self._lock:
                pool.waited(free.set)

    def _open(self, pool: Pool[Connection], attempt: Attempt, limits: Limits) -> Connection:
        nearest = limits.left(limits.own.connect)
        seconds = attempt.connect_timeout if nearest is None else min(nearest, attempt.connect_timeout)
        try:
            made = socket.create_connection(attempt.address, timeout=max(seconds, 1e-4))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Connection(made, limits)
        except OSError as error:
            with self._lock:
                pool.gone()
            raise Broken(not_connected(error, limits, seconds)) from None
        except BaseException:
            with self._lock:
                pool.gone()
            raise

    def close(self) -> None:
        """Closes idle connections now, the others when they become idle."""
        self._closed = True
        with self._lock:
            idle = [connection for pool in self._pools.values() for connection in pool.clear()]
        for connection in idle:
            connection.close()


def not_connected(error: OSError, limits: Limits, seconds: float) -> Failed:
    """What a connection that was not made means."""
    if isinstance(error, TimeoutError) and error.errno is None:
        passed = limits.passed("connect", seconds)
        if isinstance(passed, Broken):
            return passed.failed
        return Failed(Failure.CONNECT_TIMED_OUT, f"no connection within {seconds:g} s")
    return Failed(Failure.CONNECT_FAILED, str(error))


def failed_by(error: Exception, written: bool, codec: Codec, fresh: bool) -> Failed:
    """What an exchange without a response head means: lost before it was sent, lost after, or not HTTP."""
    if isinstance(error, Malformed) and (codec.answered or not written):
        return Failed(Failure.PROTOCOL, str(error))
    if not written:
        return Failed(Failure.RESET_BEFORE_REQUEST, str(error))
    old = "" if fresh else ", which had been kept open"
    return Failed(Failure.RESET, f"the peer closed the connection{old} before a response")
