"""One connection, for a thread: a blocking socket.

While a request is sent the peer is listened to: it may answer before it has read all, and read no further.
"""

import contextlib
import socket

from meshlib.core.request import ResponseHead
from meshlib.dataplane.http.codec import Codec
from meshlib.dataplane.http.limits import Limits
from meshlib.dataplane.http.patience import Patience
from meshlib.dataplane.http.quiet import wait, watch
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.tls_session import Session

CHUNK = 64 * 1024
HIGH_WATER = 256 * 1024
"""Bytes of an early answer that are kept; the peer waits with more until the request is sent."""


class Connection:
    """One connection to an endpoint."""

    __slots__ = ("_quiet", "_reading", "codec", "limits", "session", "socket", "written")

    def __init__(self, made: socket.socket, limits: Limits, session: Session | None = None) -> None:
        """`session`: how it is secured, after the handshake; None: plain text."""
        self.socket = made
        self.codec = Codec()
        self.limits = limits
        self.written = False
        """Whether any byte of this request has left."""
        self._quiet = watch(made.fileno())
        self.session = session
        made.settimeout(None)
        self._reading = Patience(made, socket.SO_RCVTIMEO, "read")

    @property
    def keeps(self) -> float:
        """Seconds for which the peer says that it keeps the connection, or a bit less."""
        return self.codec.reader.keeps

    def usable(self) -> bool:
        """Whether the peer has kept it open and quiet while it was idle."""
        return (self.session is None or self.session.quiet) and self._quiet()

    def write(self, data: bytes) -> bool:
        """Sends all of it; False: or less, the peer wants no more. Broken, TooSlow, OSError, Malformed."""
        session = self.session
        if session is None or not data:
            return self._send(data)
        if len(data) <= CHUNK:
            return self._send(session.seal(data))
        return self._send_sealed(session, data)

    def write_on(self, data: bytes) -> bool:
        """As `write`, after a part that was sent before: the peer may have answered since."""
        self.limits.left(None)
        if not self._quiet() and self.codec.held < HIGH_WATER and not self._listen():
            return False
        return self.write(data)

    def _send_sealed(self, session: Session, data: bytes) -> bool:
        """A piece at a time: what is long is not held twice."""
        for start in range(0, len(data), CHUNK):
            self.limits.left(None)
            if not self._send(session.seal(data[start : start + CHUNK])):
                return False
        return True

    def read(self) -> bytes:
        """What the peer sent; nothing: it closed. Broken, TooSlow, OSError."""
        session = self.session
        if session is None:
            return self._receive()
        while (data := session.next()) is None:
            if said := session.outgoing():
                self._send(said)
            if not (received := self._receive()):
                return b""
            session.receive(received)
        return data

    def _send(self, data: bytes) -> bool:
        try:
            sent = self.socket.send(data, socket.MSG_DONTWAIT) if data else 0
            self.written = self.written or bool(sent)
        except BlockingIOError:
            sent = 0
        return sent == len(data) or self._send_slowly(memoryview(data)[sent:])

    def _send_slowly(self, rest: memoryview) -> bool:
        """As much as the peer takes whenever it does."""
        limits = self.limits
        begun = limits.clock()
        while rest:
            left = limits.left_since(begun, "write", limits.own.write)
            wait(self.socket, left, writing=True, reading=self.codec.held < HIGH_WATER)
            if self.codec.held < HIGH_WATER and not self._quiet() and not self._listen():
                return False
            with contextlib.suppress(BlockingIOError):
                rest = rest[self.socket.send(rest, socket.MSG_DONTWAIT) :]
                self.written = True
                begun = limits.clock()
        return True

    def _listen(self) -> bool:
        """Takes what the peer says while it is sent to; False: it wants no more. OSError, Malformed."""
        codec, session = self.codec, self.session
        data = self.socket.recv(CHUNK, socket.MSG_DONTWAIT)
        if session is None or not data:
            codec.receive(data)
        else:
            session.receive(data)
            while opened := session.next():
                codec.receive(opened)
            if opened is not None:
                codec.receive(opened)
        return not (codec.answered() or codec.ended)

    def _receive(self) -> bytes:
        limits, own = self.limits, self.limits.own.read
        left = own
        while True:
            self._reading.allow(limits.left(left), own)
            try:
                return self.socket.recv(CHUNK)
            except BlockingIOError:
                left = self._reading.rest(limits, own, left)

    def next(self) -> ResponseHead | bytes | Need:
        """The next part of the response, waited for."""
        while (part := self.codec.next()) is Need.DATA:
            self.codec.receive(self.read())
        return part

    def cut_off(self) -> None:
        """Ends what a thread waits for here. To be called while it is sure that the socket is open."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket."""
        with contextlib.suppress(OSError):
            self.socket.close()
