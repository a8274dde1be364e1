"""A connection after `101 Switching Protocols`: bytes both ways, until one side has enough.

Rules:

- What came right after the head is read first.
- It keeps its place in the pool until it is closed, and then nobody has it again.
- One may read while another writes; who writes waits for others who do.
- The times of the route and of a try end with the 101, as for Envoy. Each operation has a limit of its own:
  TimeoutError.
- Errors are OSError, as of any socket. After `close` there is nothing: ConnectionError.
"""

import asyncio
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from meshlib.core.request import ResponseHead
from meshlib.dataplane.http import asynchronous, blocking
from meshlib.dataplane.http.connection import Connection as AsyncConnection
from meshlib.dataplane.http.connection_blocking import Connection
from meshlib.dataplane.http.lease import Lease
from meshlib.dataplane.http.limits import NO_TIMEOUTS, Limits

CHUNK = 64 * 1024


class Upgraded(blocking.Response):
    """One for threads."""

    __slots__ = (
        *("_connection", "_peer_ended", "_sealing", "_surplus", "_writing"),
        *("ended", "received", "sent"),
    )

    def __init__(self, head: ResponseHead, lease: Lease[Connection]) -> None:
        super().__init__(head, lease)
        self._connection = lease.kept.connection
        self._peer_ended = False
        self._surplus = self._connection.codec.surplus()
        self._sealing, self._writing = threading.Lock(), threading.Lock()
        self.sent = self.received = 0
        """Bytes of the application."""
        self.ended: Callable[[], None] | None = None
        """Called once, when it is closed."""
        if (session := self._connection.session) is not None:
            while part := session.next():  # what came with the head
                self._surplus += part
        # Who reads and who writes wait each as long as they like, which a socket's own timer can't do.
        self._connection.socket.setblocking(False)

    @property
    def socket(self) -> socket.socket:
        """What it goes through, to be asked and not to be used."""
        return self._connection.socket

    @property
    def tls(self) -> ssl.SSLObject | None:
        """How it is secured; None: it is not."""
        session = self._connection.session
        return None if session is None else session.tls

    def read(self, most: int = CHUNK, timeout: float | None = None) -> bytes:
        """What came; nothing at all: the peer has ended. TimeoutError; OSError."""
        until = None if timeout is None else time.monotonic() + timeout
        self._open()
        while not self._surplus and not self._peer_ended:
            self._wait(select.POLLIN, until)
            self._open()
            with contextlib.suppress(BlockingIOError):
                self._take(self._connection.socket.recv(CHUNK))
        return self.ready(most)

    def ready(self, most: int = CHUNK) -> bytes:
        """What came and was not read, perhaps nothing: after a `read` for all, that is all there is."""
        given, self._surplus = self._surplus[:most], self._surplus[most:]
        self.received += len(given)
        return given

    def _take(self, received: bytes) -> None:
        session = self._connection.session
        self._peer_ended = not received
        if session is None or not received:
            self._surplus = received
            return
        parts = []
        # An answer to a new key of the peer's leaves with what is written next.
        with self._sealing:
            session.receive(received)
            while part := session.next():
                parts.append(part)
        self._peer_ended = part is not None
        self._surplus = b"".join(parts)

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Sends all of it. TimeoutError; OSError."""
        until = None if timeout is None else time.monotonic() + timeout
        session = self._connection.session
        with self._writing:
            for start in range(0, len(data), CHUNK):
                piece = data[start : start + CHUNK]
                if session is not None:
                    with self._sealing:
                        piece = session.seal(piece)
                self._send(piece, until)
        self.sent += len(data)

    def _send(self, data: bytes, until: float | None) -> None:
        rest = memoryview(data)
        while rest:
            self._open()
            try:
                rest = rest[self._connection.socket.send(rest) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, until)

    def _wait(self, what: int, until: float | None) -> None:
        left = None if until is None else until - time.monotonic()
        if left is not None and left < 0:
            left = 0.0
        poll = select.poll()
        poll.register(self._connection.socket, what)
        if not poll.poll(None if left is None else left * 1000):
            raise TimeoutError("the peer was silent" if what == select.POLLIN else "the peer did not read")

    def _open(self) -> None:
        if not self._lease.open:
            raise ConnectionAbortedError("the connection was closed")

    def close(self) -> None:
        """Ends it, also under the hands of others; a second time does nothing."""
        if self._lease.open:
            with contextlib.suppress(OSError):
                self._connection.socket.shutdown(socket.SHUT_RDWR)  # who waits, wakes
            super().close()
        ended, self.ended = self.ended, None
        if ended is not None:
            ended()


class AsyncUpgraded(asynchronous.Response):
    """One for tasks."""

    __slots__ = ("_connection", "_surplus", "_writing", "ended", "received", "sent")

    def __init__(self, head: ResponseHead, lease: Lease[AsyncConnection]) -> None:
        super().__init__(head, lease)
        self._connection = connection = lease.kept.connection
        connection.limits = Limits(connection.limits.clock, NO_TIMEOUTS, None, None)
        self._surplus = connection.codec.surplus()
        self._writing = asyncio.Lock()
        self.sent = self.received = 0
        """Bytes of the application."""
        self.ended: Callable[[], None] | None = None
        """Called once, when it is closed."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """What it goes through, to be asked and not to be used."""
        return self._connection.transport

    async def read(self, most: int = CHUNK, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        """What came; nothing at all: the peer has ended. TimeoutError; OSError."""
        self._open()
        if not self._surplus:
            async with asyncio.timeout(timeout):
                self._surplus = await self._connection.read()
        given, self._surplus = self._surplus[:most], self._surplus[most:]
        self.received += len(given)
        return given

    async def write(self, data: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        """Sends all of it. TimeoutError; OSError."""
        async with asyncio.timeout(timeout), self._writing:
            self._open()
            await self._connection.write(data, listening=False)
        self.sent += len(data)

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Makes it the connection of a protocol; it ends with that."""
        relay = _Relay(self, protocol)
        transport, rest = self._connection.hand_over(relay)
        data, self._surplus = self._surplus + rest, b""
        transport.resume_reading()
        protocol.connection_made(_Counted(transport, self))  # type: ignore[arg-type]
        if data:
            relay.data_received(data)

    def _open(self) -> None:
        if not self._lease.open:
            raise ConnectionAbortedError("the connection was closed")

    def close(self) -> None:
        """Ends it; a second time does nothing."""
        super().close()
        ended, self.ended = self.ended, None
        if ended is not None:
            ended()


class _Relay(asyncio.Protocol):
    """Tells another protocol all, counts, and notices the end."""

    def __init__(self, upgraded: AsyncUpgraded, protocol: asyncio.Protocol) -> None:
        self._upgraded, self._protocol = upgraded, protocol

    def data_received(self, data: bytes) -> None:
        self._upgraded.received += len(data)
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._upgraded.close()
        self._protocol.connection_lost(error)


class _Counted:
    """A transport that counts what is written."""

    def __init__(self, transport: asyncio.Transport, upgraded: AsyncUpgraded) -> None:
        self._transport, self._upgraded = transport, upgraded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: "bytes | bytearray | memoryview") -> None:
        self._upgraded.sent += len(data)
        self._transport.write(data)

    def writelines(self, data: "Iterable[bytes | bytearray | memoryview]") -> None:
        self.write(b"".join(data))
