"""HTTP/2 for tasks of one event loop: streams of shared connections, and their pools."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

from meshlib.core.actions import Attempt
from meshlib.core.http2 import Http2
from meshlib.core.request import Failed, Failure, ResponseHead
from meshlib.core.view import View
from meshlib.dataplane.http import asynchronous
from meshlib.dataplane.http.alarm import Alarm
from meshlib.dataplane.http.failures import closed, not_connected, overflowing
from meshlib.dataplane.http.h2codec import Reset, Stream
from meshlib.dataplane.http.h2connection import Connection
from meshlib.dataplane.http.h2pool import Overflow, Place, Shared, SharedPool, Terms, terms_of
from meshlib.dataplane.http.limits import Broken, Limits, TooSlow
from meshlib.dataplane.http.loan import Lent, Loan
from meshlib.dataplane.http.pools import Addresses, Pools, listed
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.http.secure import address_of

Connect: TypeAlias = Callable[[asyncio.AbstractEventLoop, asyncio.Protocol, Attempt], Awaitable[None]]


class StreamResponse(asynchronous.Response):
    """A response whose head is here; iterate it once, and close it."""

    __slots__ = ("_exchange",)

    def __init__(self, head: ResponseHead, exchange: "_Exchange") -> None:
        self.head = head
        self.version = b"HTTP/2"
        self.whole = None
        self.reason = b""
        self._exchange = exchange

    def __aiter__(self) -> "StreamResponse":
        """The body. Broken, TooSlow."""
        return self

    async def __anext__(self) -> bytes:
        exchange = self._exchange
        try:
            if exchange.loan.open and isinstance(part := await exchange.next(), bytes):
                return part
        except Reset as error:
            exchange.loan.end()
            raise Broken(error.failed) from error
        except BaseException:
            exchange.loan.end()
            raise
        exchange.loan.end()
        raise StopAsyncIteration

    def ready(self) -> bytes | Need:
        """The next part of the body, if it has come. Broken."""
        loan = self._exchange.loan
        if not loan.open:
            return Need.NOTHING
        try:
            part = self._exchange.ready()
        except Reset as error:
            loan.end()
            raise Broken(error.failed) from error
        if part is Need.NOTHING:
            loan.end()
        assert not isinstance(part, ResponseHead)  # noqa: S101 - it has come before
        return part

    async def more(self) -> None:
        """Waits until more has come for `ready`; a wait may be cancelled and begun again. Broken, TooSlow."""
        try:
            await self._exchange.more()
        except (Broken, TooSlow):
            self._exchange.loan.end()
            raise

    def close(self) -> None:
        """Ends the exchange; of a body that was not read to its end the peer is told to stop."""
        self._exchange.loan.end()


class _Exchange:
    """One request on a connection that others use, too."""

    __slots__ = ("_connection", "_limits", "loan")

    def __init__(self, loan: Loan[Connection], limits: Limits) -> None:
        self.loan = loan
        self._connection = loan.shared.connection
        self._limits = limits

    async def send(self, attempt: Attempt, body: bytes | AsyncGenerator[bytes, None]) -> None:
        """The whole request, or as much of it as the peer wants. Reset, Broken, TooSlow, Unsendable."""
        connection = self._connection
        codec = connection.codec
        if isinstance(body, bytes):
            stream = self.loan.stream = codec.open(attempt.head, whole=not body)
            if body:
                await self._write(stream, body, last=True)
            connection.flush()
            return
        async with contextlib.aclosing(body):
            stream = self.loan.stream = codec.open(attempt.head, whole=False)
            connection.flush()
            since = 0
            async for chunk in body:
                since += len(chunk) + asynchronous.CHUNK_COST
                if since >= asynchronous.TURN:
                    since = 0
                    await self._turn()
                if stream.over:
                    break
                if chunk:
                    await self._write(stream, chunk, last=False)
            codec.finish(stream)
            connection.flush()

    async def _write(self, stream: Stream, data: bytes, *, last: bool) -> None:
        connection, limits = self._connection, self._limits
        begun, rest = limits.clock(), memoryview(data)
        while True:
            sent = connection.codec.send(stream, rest, last=last)
            connection.flush()
            rest = rest[sent:]
            if sent:
                begun = limits.clock()
            while connection.clogged and not stream.over:
                await connection.wait(stream, begun, "write", limits)
            if stream.over or not rest:
                return
            if sent:
                await self._turn()
            else:
                await connection.wait(stream, begun, "write", limits)

    async def _turn(self) -> None:
        """Lets the event loop do its other work. Broken: a limit has passed."""
        await asyncio.sleep(0)
        self._limits.left(None)

    async def next(self) -> ResponseHead | bytes | Need:
        """The next part of the response, waited for. Reset, Broken, TooSlow."""
        connection, stream = self._connection, self.loan.stream
        assert stream is not None  # noqa: S101 - the request was sent
        if (part := connection.codec.next(stream)) is Need.DATA:
            begun = self._limits.clock()
            while part is Need.DATA:
                await connection.wait(stream, begun, "read", self._limits)
                part = connection.codec.next(stream)
        connection.flush()
        return part

    def ready(self) -> ResponseHead | bytes | Need:
        """The next part of the response, if it has come. Reset."""
        connection, stream = self._connection, self.loan.stream
        assert stream is not None  # noqa: S101 - the request was sent
        part = connection.codec.next(stream)
        connection.flush()
        return part

    async def more(self) -> None:
        """Waits for news of the response. Broken, TooSlow."""
        stream, limits = self.loan.stream, self._limits
        assert stream is not None  # noqa: S101 - the request was sent
        await self._connection.wait(stream, limits.clock(), "read", limits)


class Streams:
    """The pools of shared connections of a client, by cluster, for one event loop."""

    def __init__(
        self,
        clock: Callable[[], float],
        connect: Connect,
        longest_idle: float,
        most_idle: int,
        is_closed: bool,
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._longest_idle = longest_idle
        self._pools: Pools[SharedPool[Connection], Connection] = Pools(SharedPool, most_idle)
        self._alarm = Alarm(self._look)
        self._closed = is_closed
        self._lost: deque[Lent[Connection]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Streams {self._pools!r}>"

    async def send(
        self, attempt: Attempt, how: Http2, body: bytes | AsyncGenerator[bytes, None], limits: Limits
    ) -> StreamResponse | Failed:
        """One try. TooSlow: one of the application's own limits passed; Unsendable; errors of `body`."""
        before = 0
        while True:
            try:
                loan = await self._borrow(attempt, how, limits)
            except Broken as error:
                return replace(error.failed, connected=False)
            if attempt.queue is not None and not attempt.queue.goes_on(attempt.upstream.limits):
                loan.end()
                return replace(overflowing(), connected=False)
            exchange = _Exchange(loan, limits)
            try:
                await exchange.send(attempt, body)
                head = await exchange.next()
                limits.left(None)  # a head that has come too late is no answer
            except (Broken, Reset) as error:
                if loan.stale(error.failed):
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
        return StreamResponse(head, exchange)

    async def _borrow(self, attempt: Attempt, how: Http2, limits: Limits) -> Loan[Connection]:
        terms, address = terms_of(attempt, how), address_of(attempt)
        place: Place | None = None
        free: asyncio.Event | None = None
        try:
            while True:
                pool = self._pool(attempt.cluster)
                found = pool.seek(address, terms, self._clock(), place)
                for old in found.closing:
                    old.close()
                if found.shared is not None:
                    return Loan(self, pool, found.shared, attempt)
                if found.overflow or not (found.room or attempt.upstream.waits):
                    raise Overflow
                if attempt.queue is not None:
                    attempt.queue.waits()
                if found.room:
                    return await self._made(pool, attempt, how, terms, limits)
                if free is None:
                    free = asyncio.Event()
                    place = pool.join(address, terms.max_pending, free.set)
                await asynchronous.freed(free, limits)
                if place is not None and place.failed is not None:
                    raise Broken(place.failed)
        except Overflow:
            raise Broken(overflowing()) from None
        finally:
            if place is not None:
                pool.leave(place)

    async def _made(
        self, pool: SharedPool[Connection], attempt: Attempt, how: Http2, terms: Terms, limits: Limits
    ) -> Loan[Connection]:
        address = address_of(attempt)
        failed: Failed | None = None
        for old in self._pools.spare():
            old.close()
        try:
            seconds = limits.to_connect(attempt.upstream.connect_timeout)
            self._loop = asyncio.get_running_loop()
            made = Connection(how, self._clock)
            try:
                async with asyncio.timeout(seconds):
                    await self._connect(self._loop, made, attempt)
            except (OSError, UnicodeError, ValueError) as error:
                made.close()
                found = not_connected(error, limits, seconds)
                # Whose own time was short says nothing of the endpoint.
                if not isinstance(error, TimeoutError) or seconds == attempt.upstream.connect_timeout:
                    failed = found
                raise Broken(found) from None
            except BaseException:
                made.close()
                raise
        except BaseException:
            pool.not_made(address, failed)
            raise
        dies = self._clock() + attempt.upstream.max_connection_duration
        shared = Shared(made, address, dies=dies)
        made.changed = lambda: self._changed(pool, shared)
        pool.made(shared, terms)
        return Loan(self, pool, shared, attempt, fresh=True)

    def _changed(self, pool: SharedPool[Connection], shared: Shared[Connection]) -> None:
        for old in pool.changed(shared, self._clock()):
            old.close()

    def _pool(self, cluster: str) -> SharedPool[Connection]:
        if self._closed:
            raise Broken(closed())
        self._bury()
        return self._pools[cluster]

    def halve(self) -> bool:
        """There is no descriptor left: whether some of idle connections are about to be free."""
        closing = self._pools.halve()
        for old in closing:
            old.close()
        return bool(closing)

    def _look(self) -> None:
        """Closes what is of no use any more, and looks again when more is."""
        closing, seconds = self._pools.look(self._clock())
        for old in closing:
            old.close()
        if seconds is not None and not self._closed:
            self._alarm.set(seconds)

    def endpoints_changed(self, view: View, clusters: Iterable[str]) -> None:
        """As of `asynchronous.Connections`."""
        changed = listed(view, self._pools.leading_to(clusters))
        if changed and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._keep_to, changed)

    def _keep_to(self, changed: dict[str, Addresses | None]) -> None:
        for old in self._pools.keep_to(changed):
            old.close()

    def _bury(self) -> None:
        while self._lost:
            self.take_back(self._lost.popleft())

    def take_back(self, lent: Lent[Connection]) -> None:
        """An exchange has ended."""
        pool, shared, stream, idle_timeout = lent
        connection = shared.connection
        if stream is not None:
            connection.codec.release(stream)
            connection.flush()
        idle = min(idle_timeout, self._longest_idle)
        now = self._clock()
        if pool.release(shared, now, idle, worn=self._closed):
            connection.close()
        elif not shared.active and shared.until < self._pools.looks_at:
            self._alarm.set(self._pools.sooner(shared.until, now))

    def note_lost(self, lent: Lent[Connection]) -> None:
        """An exchange was dropped; it is ended when the loop comes to it."""
        self._lost.append(lent)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._bury)

    def close(self) -> None:
        """Closes idle connections now, the others when their last exchange ends; who waits fails."""
        self._closed = True
        self._alarm.cancel()
        self._bury()
        for pool in self._pools.values():
            for connection in pool.clear():
                connection.close()
