"""One connection over HTTP/2, for tasks: an asyncio.Protocol that serves the streams of all who share it."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import cast

from meshlib.core.http2 import Http2
from meshlib.core.request import Failure
from meshlib.dataplane.http.connection import save, wake
from meshlib.dataplane.http.h2codec import Codec, Stream
from meshlib.dataplane.http.limits import Limits

MOST_UNSENT = 4 * 1024 * 1024
"""Bytes for a peer that does not read; more has no end."""


class Connection(asyncio.Protocol):
    """One connection to an endpoint."""

    def __init__(self, how: Http2, clock: Callable[[], float]) -> None:
        self.codec = Codec()
        self.changed: Callable[[], None] = lambda: None
        """Called when it takes more requests than before, or none any more."""
        self._how = how
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[Stream, asyncio.Future[bool]] = {}
        self._descriptor = -1
        self._clogged = False
        self._timer: asyncio.TimerHandle | None = None
        self._asking = False
        """Whether a ping waits for its answer."""

    def __repr__(self) -> str:
        return f"<Connection {self.codec!r}>"

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        made = transport.get_extra_info("socket")
        self._descriptor = made.fileno()
        if made.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flush()
        if self._how.keepalive_interval:
            self._ping_later()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._happened(self.codec.receive(data, self._clock()))

    def eof_received(self) -> None:
        """The peer closed its side."""
        self._happened(self.codec.receive(b"", self._clock()))

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._transport = None
        if error is not None:
            self._happened(self.codec.fail(Failure.RESET, f"connection lost: {error}"))
        else:
            self._happened(self.codec.receive(b"", self._clock()))

    def pause_writing(self) -> None:
        """The peer is slow to read."""
        self._clogged = True

    def resume_writing(self) -> None:
        """It has read again."""
        self._clogged = False
        self._wake(set(self._waiting))

    def _happened(self, news: set[Stream]) -> None:
        codec, transport = self.codec, self._transport
        was = codec.failed is None
        self.flush()
        if was and transport is not None and transport.get_write_buffer_size() > MOST_UNSENT:
            news |= codec.fail(Failure.PROTOCOL, "the peer asks, and does not read the answers")
        self._wake(news)
        if codec.failed is not None:
            self._hang_up()
        elif self._asking and not codec.pinged:
            self._ping_later()
        if codec.widened or not codec.usable:
            codec.widened = False
            self.changed()

    def _wake(self, news: set[Stream]) -> None:
        for stream in news:
            wake(self._waiting.get(stream))

    def _hang_up(self) -> None:
        """What is said last is said, if the peer takes it at once."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._transport.abort()

    # the exchange calls these

    @property
    def allowed(self) -> int | None:
        """Requests at a time that its peer takes; None: it has not said yet."""
        return self.codec.allowed

    def usable(self) -> bool:
        """Whether it takes requests."""
        return self.codec.usable and self._transport is not None and not self._transport.is_closing()

    @property
    def clogged(self) -> bool:
        """Whether the peer is slow to read."""
        return self._clogged

    def flush(self) -> None:
        """Sends what the codec has to say."""
        data = self.codec.outgoing()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
            if self._transport.is_closing():
                save(self._transport, self._descriptor, self)

    async def wait(self, stream: Stream, begun: float, operation: str, limits: Limits) -> None:
        """Until there is news of the stream. Broken, TooSlow."""
        own = limits.own.write if operation == "write" else limits.own.read
        left = limits.left_since(begun, operation, own)
        future = self._waiting[stream] = self._loop.create_future()
        timer = None if left is None else self._loop.call_later(left, wake, future, True)
        try:
            if await future:
                raise limits.passed(operation, own)
        finally:
            del self._waiting[stream]
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Closes at once; what was not sent is dropped."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._transport.abort()

    # pings

    def _ping_later(self) -> None:
        self._asking = False
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._how.keepalive_interval, self._ping)

    def _ping(self) -> None:
        self._asking = True
        self.codec.ping()
        self.flush()
        self._timer = self._loop.call_later(self._how.keepalive_timeout, self._unanswered)

    def _unanswered(self) -> None:
        why = f"no answer to a ping within {self._how.keepalive_timeout:g} s"
        self._happened(self.codec.fail(Failure.RESET, why))
        self.close()
