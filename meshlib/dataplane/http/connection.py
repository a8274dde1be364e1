"""One connection, for a task: an asyncio.Protocol that keeps bytes until they are asked for."""

import asyncio
import contextlib
import math
import os
from collections.abc import Callable
from typing import cast

from meshlib.core.request import ResponseHead
from meshlib.dataplane.http.codec import Codec
from meshlib.dataplane.http.limits import EARLY, Limits
from meshlib.dataplane.http.quiet import watch
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.tls_transport import Secured

HIGH_WATER = 256 * 1024
"""Bytes that may wait to be read before the peer is made to wait."""
MOST_SAVED = 4
"""How often as much is read of a connection that can't be written to any more."""


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
        if self._clogged:
            wake(self._writer)
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

    async def write(self, data: bytes, *, listening: bool = True) -> bool:
        """Sends all of it; False: or less, for the peer, if it is listened to, wants no more. Broken,
        TooSlow, OSError, Malformed.
        """
        if not data or self._transport is None:
            return True
        if listening and self._received and not self._listen():
            return False
        if self._ended or self._transport.is_closing():
            raise ConnectionResetError("the peer closed the connection")
        self._transport.write(data)
        self.written = True
        if self._transport.is_closing():
            save(self._transport, self._descriptor, self)
        while self._clogged and not self._ended:
            self._writer = self._loop.create_future()
            await self._wait(self._writer, "write", self.limits.own.write)
            if listening and self._received and not self._listen():
                return False
        return True

    def _listen(self) -> bool:
        """Takes what the peer says while it is sent to; False: it wants no more. Malformed."""
        if self.codec.held < HIGH_WATER:
            self.codec.receive(self._take())
        return not self.codec.answered()

    def _take(self) -> bytes:
        data = bytes(self._received)
        self._received.clear()
        if self._paused_reading and self._transport is not None:
            self._paused_reading = False
            self._transport.resume_reading()
        return data

    async def turn(self) -> None:
        """Lets the event loop do its other work. Broken: a limit has passed."""
        await asyncio.sleep(0)
        self.limits.left(None)

    async def read(self) -> bytes:
        """What the peer sent; nothing: it closed. Broken, TooSlow, OSError."""
        while not self._received and not self._ended:
            self._reader = self._loop.create_future()
            await self._wait(self._reader, "read", self.limits.own.read)
        if not self._received and self._error is not None:
            raise ConnectionResetError(str(self._error))
        return self._take()

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
