"""Exchanges for tasks of one event loop, and the pools of their connections."""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, ResponseHead
from meshlib.core.view import View
from meshlib.dataplane.http.alarm import Alarm
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
from meshlib.dataplane.http.pool import Found, Kept, Pool
from meshlib.dataplane.http.pools import MOST_IDLE, Addresses, Pools, listed
from meshlib.dataplane.http.reach import reach
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
        most_idle: int = MOST_IDLE,
    ) -> None:
        """`contexts` gives those of the workload, for endpoints that ask for TLS; `longest_idle`, in seconds,
        bounds the idle time-outs of all clusters; `most_idle`: how many stay idle where another is made.
        """
        self._clock = clock
        self._longest_idle = longest_idle
        self._contexts = contexts
        self._pools: Pools[Pool[Connection], Connection] = Pools(Pool, most_idle)
        self._closed = False
        self._alarm = Alarm(self._look)
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

            self._streams = Streams(
                self._clock, self._connect, self._longest_idle, self._pools.most_idle, self._closed
            )
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
                silent = connection.codec.silent
                if silent and not lease.fresh:
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
        for old in self._pools.spare():
            old.close()
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
            await reach(loop, connection, attempt, self._halve)
            return
        contexts = self._contexts()
        session = Session(context_for(tls, contexts), name=name)
        secured = Secured(session, connection, gathers=False)
        await reach(loop, secured, attempt, self._halve)
        await shaken(secured)
        check(tls, contexts, session.tls)

    def _pool(self, cluster: str) -> Pool[Connection]:
        if self._closed:
            raise Broken(closed())
        self._bury()
        return self._pools[cluster]

    def _halve(self) -> bool:
        """There is no descriptor left: whether some of idle connections are about to be free."""
        closing = self._pools.halve()
        for old in closing:
            old.close()
        return bool(closing) or (self._streams is not None and self._streams.halve())

    def _look(self) -> None:
        """Closes what is of no use any more, and looks again when more is."""
        old, seconds = self._pools.look(self._clock())
        for connection in old:
            connection.close()
        if seconds is not None and not self._closed:
            self._alarm.set(seconds)

    def endpoints_changed(self, view: View, clusters: Iterable[str]) -> None:
        """On any thread: closes connections to endpoints of these clusters that are not listed any more."""
        changed = listed(view, self._pools.leading_to(clusters))
        if changed and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._keep_to, changed)
        if self._streams is not None:
            self._streams.endpoints_changed(view, clusters)

    def _keep_to(self, changed: dict[str, Addresses | None]) -> None:
        for old in self._pools.keep_to(changed):
            old.close()

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
        if reusable and idle > 0 and not self._closed and lease.pool.wants(lease.kept, now):
            lease.pool.give_back(lease.kept, now, idle)
            if lease.kept.until < self._pools.looks_at:
                self._alarm.set(self._pools.sooner(lease.kept.until, now))
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
        self._alarm.cancel()
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


async def _send_all(
    connection: Connection, attempt: Attempt, body: bytes | AsyncGenerator[bytes, None]
) -> None:
    codec = connection.codec
    if isinstance(body, bytes):
        await connection.write(codec.whole(attempt.head, body))
        return
    async with contextlib.aclosing(body):
        # The head goes first: what a stream gives may depend on what the peer does.
        wanted = await connection.write(codec.request(attempt.head))
        since = 0
        async for chunk in body:
            if not wanted:
                return
            since += len(chunk) + CHUNK_COST
            if since >= TURN:
                since = 0
                await connection.turn()
            wanted = await connection.write(codec.data(chunk))
        if wanted:
            await connection.write(codec.end())
