"""Exchanges for tasks of one event loop, and the pools of their connections."""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from meshlib.core.actions import Attempt
from meshlib.core.balance.cluster import Keepalive
from meshlib.core.request import Failed, ResponseHead
from meshlib.dataplane.http import local
from meshlib.dataplane.http.connection import Connection
from meshlib.dataplane.http.failures import (
    broken_off,
    closed,
    not_connected,
    overflowing,
    stale,
    without_head,
)
from meshlib.dataplane.http.lease import Lease
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Broken, Limits, OwnTimeouts, TooSlow
from meshlib.dataplane.http.options import set_options
from meshlib.dataplane.http.pool import SWEEP_SECONDS, Found, Kept, Pool
from meshlib.dataplane.http.response import LeasedResponse
from meshlib.dataplane.http.secure import MakeContexts, address_of, check, context_for, no_contexts
from meshlib.dataplane.http.syntax import SWITCHING, Malformed
from meshlib.dataplane.tls_session import Session
from meshlib.dataplane.tls_transport import Secured, shaken

if TYPE_CHECKING:
    from meshlib.dataplane.http.h2asynchronous import Streams

TURN = 256 * 1024
"""Bytes of a stream that are sent before the event loop turns."""
CHUNK_COST = 4096
"""What a chunk counts for beside its bytes: many small ones take their time too."""


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
