"""Connections for tasks of one event loop: an asyncio.Protocol that keeps bytes until they are asked for."""

import asyncio
import contextlib
import math
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from meshlib.core.actions import Attempt
from meshlib.core.balance.cluster import Keepalive
from meshlib.core.request import Failed, ResponseHead
from meshlib.dataplane.http import local
from meshlib.dataplane.http.codec import Codec
from meshlib.dataplane.http.failures import (
    broken_off,
    closed,
    not_connected,
    overflowing,
    stale,
    without_head,
)
from meshlib.dataplane.http.lease import Lease
from meshlib.dataplane.http.limits import EARLY, NO_TIMEOUTS, Broken, Limits, OwnTimeouts, TooSlow
from meshlib.dataplane.http.options import set_options
from meshlib.dataplane.http.pool import SWEEP_SECONDS, Found, Kept, Pool
from meshlib.dataplane.http.quiet import watch
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.http.response import LeasedResponse
from meshlib.dataplane.http.secure import MakeContexts, address_of, check, context_for, no_contexts
from meshlib.dataplane.http.syntax import SWITCHING, Malformed
from meshlib.dataplane.tls_session import Session
from meshlib.dataplane.tls_transport import Secured, shaken

if TYPE_CHECKING:
    from meshlib.dataplane.http.h2asynchronous import Streams

HIGH_WATER = 256 * 1024
"""Bytes that may wait to be read before the peer is made to wait."""
MOST_SAVED = 4
"""How often as much is read of a connection that can't be written to any more."""
TURN = 256 * 1024
"""Bytes of a stream that are sent before the event loop turns."""
CHUNK_COST = 4096
"""What a chunk counts for beside its bytes: many small ones take their time too."""


class Connection(asyncio.Protocol):
    """One connection to an endpoint."""

    def __init__(self, limits: Limits) -> None:
        self.codec = Codec()
        self.limits = limits
        self.written = False
        """Whether any byte of this request has left."""
        self._quiet: Callable[[], bool] = lambda: True
        self._descriptor = -1
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._ended = self._lost = False
        self._error: Exception | None = None
        self._paused_reading = False
        self._reader: asyncio.Future[bool] | None = None
        self._writer: asyncio.Future[bool] | None = None
        self._clogged = False
        self._waits: asyncio.Future[bool] | None = None
        self._until = self._rings = math.inf
        """When the time of who waits is over, and when a timer looks."""
        self._timer: asyncio.TimerHandle | None = None

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        made = transport.get_extra_info("socket")
        self._descriptor = made.fileno()
        self._quiet = watch(self._descriptor)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._received += data
        if len(self._received) > HIGH_WATER and not self._paused_reading and self._transport:
            self._paused_reading = True
            self._transport.pause_reading()
        wake(self._reader)

    def eof_received(self) -> None:
        """The peer closed its side."""
        self._ended = True
        wake(self._reader)
        wake(self._writer)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._ended = self._lost = True
        self._error = error
        wake(self._reader)
        wake(self._writer)
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """The peer is slow to read."""
        self._clogged = True

    def resume_writing(self) -> None:
        """It has read again."""
        self._clogged = False
        wake(self._writer)

    # the exchange calls these

    @property
    def keeps(self) -> float:
        """Seconds for which the peer says that it keeps the connection, or a bit less."""
        return self.codec.reader.keeps

    def usable(self) -> bool:
        """Whether the peer has kept it open and quiet while it was idle."""
        alive = self._transport is not None and not self._transport.is_closing()
        # What the loop has not had time to read counts too.
        return alive and not self._ended and not self._received and self._quiet()

    async def write(self, data: bytes) -> None:
        """Sends all of it. Broken, TooSlow, OSError."""
        if not data or self._transport is None:
            return
        if self._ended or self._transport.is_closing():
            raise ConnectionResetError("the peer closed the connection")
        self._transport.write(data)
        self.written = True
        if self._transport.is_closing():
            save(self._transport, self._descriptor, self)
        while self._clogged and not self._ended:
            self._writer = self._loop.create_future()
            await self._wait(self._writer, "write", self.limits.own.write)

    async def turn(self) -> None:
        """Lets the event loop do its other work. Broken: a limit has passed."""
        await asyncio.sleep(0)
        self.limits.left(None)

    async def read(self) -> bytes:
        """What the peer sent; nothing: it closed. Broken, TooSlow, OSError."""
        while not self._received and not self._ended:
            self._reader = self._loop.create_future()
            await self._wait(self._reader, "read", self.limits.own.read)
        data = bytes(self._received)
        self._received.clear()
        if not data and self._error is not None:
            raise ConnectionResetError(str(self._error))
        if self._paused_reading and self._transport is not None:
            self._paused_reading = False
            self._transport.resume_reading()
        return data

    async def next(self) -> ResponseHead | bytes | Need:
        """The next part of the response, waited for."""
        while (part := self.codec.next()) is Need.DATA:
            self.codec.receive(await self.read())
        return part

    def hand_over(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """Another protocol has the transport from now on, and hears of its end; also gives what was received
        and not read.
        """
        transport = self._transport
        assert transport is not None  # noqa: S101 - it has served a request
        data = bytes(self._received)
        self._received.clear()
        transport.set_protocol(protocol)
        if self._lost:
            self._loop.call_soon(protocol.connection_lost, self._error)
        return transport, data

    @property
    def transport(self) -> asyncio.Transport | None:
        """Between it and the peer."""
        return self._transport

    async def _wait(self, future: "asyncio.Future[bool]", operation: str, own: float | None) -> None:
        left = self.limits.left(own)
        if left is None:
            await future
            return
        self._waits, self._until = future, self._loop.time() + left
        if self._until < self._rings:
            self._set_timer()
        try:
            if await future:
                raise self.limits.passed(operation, own)
        finally:
            self._waits = None

    # One timer serves many waits: one that rings too early is set again, and one for each would cost more.

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings = self._until
        self._timer = self._loop.call_at(self._until, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings = None, math.inf
        if self._waits is None:
            return
        if self._loop.time() < self._until - EARLY:
            self._set_timer()
        else:
            wake(self._waits, late=True)

    def close(self) -> None:
        """Closes at once; what was not sent is dropped."""
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._transport.abort()


def save(transport: asyncio.Transport, descriptor: int, protocol: asyncio.Protocol) -> None:
    """Takes what the peer said before it went: after a write that failed the loop does not read it."""
    take = transport.take if isinstance(transport, Secured) else protocol.data_received
    with contextlib.suppress(OSError):
        for _ in range(MOST_SAVED):
            data = os.read(descriptor, HIGH_WATER)
            if not data:
                return
            take(data)


def wake(future: "asyncio.Future[bool] | None", late: bool = False) -> None:
    """Ends a wait; `late`: because its time has passed."""
    if future is not None and not future.done():
        future.set_result(late)


class Response(LeasedResponse[Connection]):
    """A response whose head is here; iterate it once, and close it."""

    __slots__ = ()

    # Not an asynchronous generator: an event loop keeps books of each of those.

    def __aiter__(self) -> "Response":
        """The body. Broken, TooSlow."""
        return self

    async def __anext__(self) -> bytes:
        if self.whole:
            whole, self.whole = self.whole, b""
            return whole
        lease, connection = self._lease, self._lease.kept.connection
        try:
            if lease.open and isinstance(part := await connection.next(), bytes):
                return part
        except (Malformed, OSError) as error:
            lease.end(False)
            raise Broken(broken_off(error, connection.codec.ended)) from error
        except BaseException:
            lease.end(False)
            raise
        if lease.open:
            lease.end(connection.codec.reuse())
        raise StopAsyncIteration

    async def more(self) -> None:
        """Waits until more has come for `ready`; a wait may be cancelled and begun again. Broken, TooSlow."""
        lease, connection = self._lease, self._lease.kept.connection
        try:
            connection.codec.receive(await connection.read())
        except OSError as error:
            lease.end(False)
            raise Broken(broken_off(error, connection.codec.ended)) from error
        except (Broken, TooSlow):
            lease.end(False)
            raise


class Connections:
    """The pools of a client, by cluster, for one event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        contexts: MakeContexts = no_contexts,
        longest_idle: float = math.inf,
    ) -> None:
        """`contexts` gives those of the workload, for endpoints that ask for TLS; `longest_idle`, in seconds,
        bounds the idle time-outs of all clusters.
        """
        self._clock = clock
        self._longest_idle = longest_idle
        self._contexts = contexts
        self._pools: dict[str, Pool[Connection]] = {}
        self._closed = False
        self._sweep_at = clock() + SWEEP_SECONDS
        self._busy: set[Connection] = set()
        """Held here too, that a dropped exchange is noticed before its socket is collected."""
        self._lost: deque[tuple[Pool[Connection], Connection]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: Streams | None = None

    def __repr__(self) -> str:
        return f"<Connections {self._pools!r}>"

    @property
    def streams(self) -> "Streams":
        """Those that several requests share. Made at the first: not every process speaks HTTP/2."""
        if self._streams is None:
            from meshlib.dataplane.http.h2asynchronous import Streams

            self._streams = Streams(self._clock, self._connect, self._longest_idle, self._closed)
        return self._streams

    async def send(
        self, attempt: Attempt, body: bytes | AsyncGenerator[bytes, None], own: OwnTimeouts = NO_TIMEOUTS
    ) -> Response | Failed:
        """One try. TooSlow: one of the application's own limits passed; Unsendable; errors of `body`."""
        limits = Limits(self._clock, own, attempt.try_deadline, attempt.deadline)
        if attempt.upstream.http2 is not None:
            return await self.streams.send(attempt, attempt.upstream.http2, body, limits)
        anew = False
        while True:
            try:
                lease = await self._lease(attempt, limits, anew)
            except Broken as error:
                return replace(error.failed, connected=False)
            connection = lease.kept.connection
            connection.limits = limits
            connection.written = False
            try:
                try:
                    await _send_all(connection, attempt, body)
                except OSError:
                    # The peer may have answered before it stopped reading.
                    if not connection.written:
                        raise
                head = await connection.next()
                if not isinstance(head, ResponseHead):
                    raise Malformed("no response head")
                limits.left(None)  # a head that has come too late is no answer
            except Broken as error:
                lease.end(False)
                return error.failed
            except (Malformed, OSError) as error:
                lease.end(False)
                if stale(attempt.head, body, connection.codec.silent, connection.written, lease.fresh):
                    anew = True
                    lease.pool.note_stale(lease.kept, self._clock())
                    continue
                return without_head(error, connection.written, connection.codec.ended, lease.fresh)
            except BaseException:
                lease.end(False)
                raise
            break
        limits.try_deadline = None
        if head.status == SWITCHING:
            from meshlib.dataplane.http.upgrade import AsyncUpgraded

            return AsyncUpgraded(head, lease)
        return Response(head, lease)

    async def _lease(self, attempt: Attempt, limits: Limits, anew: bool) -> Lease[Connection]:
        place = free = None
        address, upstream = address_of(attempt), attempt.upstream
        most = upstream.limits
        try:
            while True:
                pool = self._pool(attempt.cluster)
                found = pool.seek(
                    address, most.max_connections, self._clock(), place, most.max_pending, anew=anew
                )
                for old in found.closing:
                    old.close()
                if found.kept is not None or found.room:
                    return await self._leased(pool, found, attempt, limits)
                if found.overflow or not upstream.waits:
                    raise Broken(overflowing())
                if free is None:
                    free = asyncio.Event()
                    place = pool.join(free.set)
                if attempt.queue is not None:
                    attempt.queue.waits()
                await freed(free, limits)
        finally:
            if place is not None:
                pool.leave(place)

    async def _leased(
        self, pool: Pool[Connection], found: Found[Connection], attempt: Attempt, limits: Limits
    ) -> Lease[Connection]:
        kept = found.kept
        if kept is None:
            if attempt.queue is not None:
                attempt.queue.waits()
            kept = await self._made(pool, attempt, limits)
        self._busy.add(kept.connection)
        lease = Lease(self, pool, kept, attempt, fresh=found.kept is None)
        if attempt.queue is not None and not attempt.queue.goes_on(attempt.upstream.limits):
            lease.end(True)
            raise Broken(overflowing())
        return lease

    async def _made(self, pool: Pool[Connection], attempt: Attempt, limits: Limits) -> Kept[Connection]:
        try:
            made = await self._open(attempt, limits)
        except BaseException:
            pool.made()
            pool.gone()
            raise
        pool.made()
        dies = self._clock() + attempt.upstream.max_connection_duration
        return Kept(made, address_of(attempt), dies=dies)

    async def _open(self, attempt: Attempt, limits: Limits) -> Connection:
        seconds = limits.to_connect(attempt.upstream.connect_timeout)
        self._loop = asyncio.get_running_loop()
        connection = Connection(limits)
        try:
            async with asyncio.timeout(seconds):
                await self._connect(self._loop, connection, attempt)
        except (OSError, UnicodeError, ValueError) as error:
            connection.close()
            raise Broken(not_connected(error, limits, seconds)) from None
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connect(
        self, loop: asyncio.AbstractEventLoop, connection: asyncio.Protocol, attempt: Attempt
    ) -> None:
        _, tls, name = address_of(attempt)
        if tls is None:
            await _reach(loop, connection, attempt)
            return
        contexts = self._contexts()
        session = Session(context_for(tls, contexts), name=name)
        secured = Secured(session, connection, gathers=False)
        await _reach(loop, secured, attempt)
        await shaken(secured)
        check(tls, contexts, session.tls)

    def _pool(self, cluster: str) -> Pool[Connection]:
        if self._closed:
            raise Broken(closed())
        self._bury()
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            for name, pool in list(self._pools.items()):
                for old in pool.sweep(now):
                    old.close()
                if not pool.opened and not pool.waiting:
                    del self._pools[name]
        found = self._pools.get(cluster)
        if found is None:
            found = self._pools[cluster] = Pool()
        return found

    def _bury(self) -> None:
        while self._lost:
            pool, connection = self._lost.popleft()
            pool.gone()
            self._busy.discard(connection)
            connection.close()

    def take_back(self, lease: Lease[Connection], reusable: bool) -> None:
        """An exchange has ended."""
        self._busy.discard(lease.kept.connection)
        now = self._clock()
        idle = min(lease.idle_timeout, self._longest_idle)
        if reusable and idle > 0 and not self._closed and now < lease.kept.dies:
            lease.pool.give_back(lease.kept, now, idle)
        else:
            lease.kept.connection.close()
            lease.pool.gone()

    def note_lost(self, pool: Pool[Connection], connection: Connection) -> None:
        """An exchange was dropped; its connection is closed when the loop comes to it."""
        self._lost.append((pool, connection))
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._bury)

    def close(self) -> None:
        """Closes idle connections now, the others when their exchange ends; who waits fails."""
        self._closed = True
        self._bury()
        for pool in self._pools.values():
            for connection in pool.clear():
                connection.close()
        if self._streams is not None:
            self._streams.close()


async def freed(free: asyncio.Event, limits: Limits) -> None:
    """Waits for a word of the pool. Broken, TooSlow."""
    own = limits.own.pool
    try:
        async with asyncio.timeout(limits.left(own)):
            await free.wait()
    except TimeoutError:
        raise limits.passed("pool", own) from None
    free.clear()


class _Headed(asyncio.Protocol):
    """Sends the header on a new connection, which is another protocol's from then on."""

    def __init__(self, version: int, then: asyncio.BaseProtocol) -> None:
        self._version = version
        self._then = then

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        from meshlib.dataplane.proxy_protocol import proxy_header

        made = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        made.write(proxy_header(self._version, made.get_extra_info("socket")))
        made.set_protocol(self._then)
        self._then.connection_made(made)


async def _reach(loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, attempt: Attempt) -> None:
    if attempt.upstream.proxy_protocol:
        protocol = _Headed(attempt.upstream.proxy_protocol, protocol)
    address = attempt.at or attempt.address
    path = local.path_of(address)
    if path is None:
        transport, _ = await loop.create_connection(lambda: protocol, *address)
        _set_options(transport, attempt.upstream.keepalive)
    else:
        await loop.create_unix_connection(lambda: protocol, path)


def _set_options(transport: asyncio.Transport, keepalive: Keepalive | None) -> None:
    try:
        set_options(transport.get_extra_info("socket"), keepalive)
    except OSError:
        transport.abort()
        raise


async def _send_all(
    connection: Connection, attempt: Attempt, body: bytes | AsyncGenerator[bytes, None]
) -> None:
    codec = connection.codec
    if isinstance(body, bytes):
        await connection.write(codec.whole(attempt.head, body))
        return
    async with contextlib.aclosing(body):
        # The head goes first: what a stream gives may depend on what the peer does.
        await connection.write(codec.request(attempt.head))
        since = 0
        async for chunk in body:
            since += len(chunk) + CHUNK_COST
            if since >= TURN:
                since = 0
                await connection.turn()
            await connection.write(codec.data(chunk))
        await connection.write(codec.end())
