"""Connections for tasks of one event loop: an asyncio.Protocol that keeps bytes until they are asked for."""

import asyncio
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable

from meshlib.core.actions import Attempt
from meshlib.core.request import Failed, Failure, ResponseHead
from meshlib.dataplane.http.blocking import NO_TIMEOUTS, failed_by, not_connected
from meshlib.dataplane.http.codec import Codec, Malformed, Need
from meshlib.dataplane.http.limits import Broken, Limits, OwnTimeouts
from meshlib.dataplane.http.pool import Kept, Overflow, Pool

HIGH_WATER = 256 * 1024
"""Bytes that may wait to be read before the peer is made to wait."""


class Connection(asyncio.Protocol):
    """One connection to an endpoint."""

    def __init__(self, limits: Limits) -> None:
        self.codec = Codec()
        self.limits = limits
        self.written = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._paused_reading = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._clogged = False

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream's protocol
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._received += data
        if len(self._received) > HIGH_WATER and not self._paused_reading and self._transport:
            self._paused_reading = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> None:
        """The peer closed its side."""
        self._ended = True
        _wake(self._reader)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._ended = True
        self._error = error
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        """The peer is slow to read."""
        self._clogged = True

    def resume_writing(self) -> None:
        """It has read again."""
        self._clogged = False
        _wake(self._writer)

    # the exchange calls these

    def usable(self) -> bool:
        """Whether the peer has kept an idle connection open and quiet."""
        alive = self._transport is not None and not self._transport.is_closing()
        return alive and not self._ended and not self._received

    async def write(self, data: bytes) -> None:
        """Sends all of it. Broken, TooSlow, OSError."""
        if not data or self._transport is None:
            return
        if self._ended and self._error is not None:
            raise ConnectionResetError("the peer closed the connection")
        self._transport.write(data)
        self.written = True
        while self._clogged and not self._ended:
            self._writer = self._loop.create_future()
            await self._wait(self._writer, "write", self.limits.own.write)

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

    async def _wait(self, future: "asyncio.Future[None]", operation: str, own: float | None) -> None:
        left = self.limits.left(own)
        if left is None:
            await future
            return
        timer = self._loop.call_later(left, _wake, future, True)
        try:
            await future
        except TimeoutError:
            raise self.limits.passed(operation, own) from None
        finally:
            timer.cancel()

    def close(self) -> None:
        """Closes at once; what was not sent is dropped."""
        if self._transport is not None:
            self._transport.abort()


def _wake(future: "asyncio.Future[None] | None", late: bool = False) -> None:
    if future is None or future.done():
        return
    if late:
        future.set_exception(TimeoutError())
    else:
        future.set_result(None)


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

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body. Broken, TooSlow."""
        try:
            while isinstance(part := await self._connection.next(), bytes):
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
    """The pools of a mesh, for one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pools: dict[str, Pool[Connection]] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Connections {self._pools!r}>"

    async def send(
        self, attempt: Attempt, body: AsyncIterable[bytes], own: OwnTimeouts = NO_TIMEOUTS
    ) -> Response | Failed:
        """One try. TooSlow: one of the application's own limits passed; else errors of `body` itself."""
        limits = Limits(self._clock, own, attempt.try_deadline, attempt.deadline)
        pool = self._pools.get(attempt.cluster)
        if pool is None:
            pool = self._pools.setdefault(attempt.cluster, Pool())
        try:
            kept, fresh = await self._connection(pool, attempt, limits)
        except Broken as error:
            return error.failed
        return await self._exchange(pool, kept, fresh, attempt, body)

    async def _exchange(
        self,
        pool: Pool[Connection],
        kept: Kept[Connection],
        fresh: bool,
        attempt: Attempt,
        body: AsyncIterable[bytes],
    ) -> Response | Failed:
        connection = kept.connection
        kept.uses += 1

        def done(reusable: bool) -> None:
            worn = 0 < attempt.max_requests_per_connection <= kept.uses
            if reusable and not worn and not self._closed:
                pool.give_back(kept, self._clock())
            else:
                connection.close()
                pool.gone()

        connection.written = False
        try:
            try:
                await self._send_all(connection, attempt, body)
            except OSError:
                # The peer may have answered before it stopped reading.
                if not connection.written:
                    raise
            head = await connection.next()
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

    async def _send_all(self, connection: Connection, attempt: Attempt, body: AsyncIterable[bytes]) -> None:
        codec = connection.codec
        pending = codec.request(attempt.head)
        async for chunk in body:
            await connection.write(pending + codec.data(chunk))
            pending = b""
        await connection.write(pending + codec.end())

    async def _connection(
        self, pool: Pool[Connection], attempt: Attempt, limits: Limits
    ) -> tuple[Kept[Connection], bool]:
        while True:
            if self._closed:
                raise Broken(Failed(Failure.CONNECT_FAILED, "the client is closed"))
            kept, closing = pool.take(attempt.address, attempt.idle_timeout, self._clock())
            room, more = (False, []) if kept else pool.room(attempt.max_connections, attempt.address)
            for old in (*closing, *more):
                old.close()
            if kept is not None:
                if kept.connection.usable():
                    kept.connection.limits = limits
                    return kept, False
                kept.connection.close()
                pool.gone()
            elif room:
                return Kept(await self._open(pool, attempt, limits), attempt.address), True
            else:
                await self._wait(pool, attempt, limits)

    async def _wait(self, pool: Pool[Connection], attempt: Attempt, limits: Limits) -> None:
        free = asyncio.Event()
        wake = free.set
        try:
            pool.wait(attempt.max_pending, wake)
        except Overflow:
            raise Broken(
                Failed(Failure.OVERFLOW, f"{attempt.max_pending} requests wait for a connection")
            ) from None
        try:
            async with asyncio.timeout(limits.left(limits.own.pool)):
                await free.wait()
        except TimeoutError:
            raise limits.passed("pool", limits.own.pool) from None
        finally:
            pool.waited(wake)

    async def _open(self, pool: Pool[Connection], attempt: Attempt, limits: Limits) -> Connection:
        nearest = limits.left(limits.own.connect)
        seconds = attempt.connect_timeout if nearest is None else min(nearest, attempt.connect_timeout)
        loop = asyncio.get_running_loop()
        host, port = attempt.address
        try:
            async with asyncio.timeout(seconds):
                transport, connection = await loop.create_connection(lambda: Connection(limits), host, port)
        except OSError as error:
            pool.gone()
            raise Broken(not_connected(error, limits, seconds)) from None
        except BaseException:
            pool.gone()
            raise
        made = transport.get_extra_info("socket")
        if made is not None:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        """Closes idle connections now, the others when they become idle."""
        self._closed = True
        for pool in self._pools.values():
            for connection in pool.clear():
                connection.close()
