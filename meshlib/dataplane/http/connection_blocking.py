"""One connection, for a thread: a blocking socket."""

import contextlib
import socket

from meshlib.core.request import ResponseHead
from meshlib.dataplane.http.codec import Codec
from meshlib.dataplane.http.limits import Limits
from meshlib.dataplane.http.patience import Patience
from meshlib.dataplane.http.quiet import watch
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.tls_session import Session

CHUNK = 64 * 1024


class Connection:
    """One connection to an endpoint."""

    __slots__ = ("_quiet", "_reading", "_writing", "codec", "limits", "session", "socket", "written")

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
        self._writing = Patience(made, socket.SO_SNDTIMEO, "write")

    @property
    def keeps(self) -> float:
        """Seconds for which the peer says that it keeps the connection, or a bit less."""
        return self.codec.reader.keeps

    def usable(self) -> bool:
        """Whether the peer has kept it open and quiet while it was idle."""
        return (self.session is None or self.session.quiet) and self._quiet()

    def write(self, data: bytes) -> None:
        """Sends all of it. Broken, TooSlow, OSError."""
        session = self.session
        if session is None or not data:
            self._send(data)
        elif len(data) <= CHUNK:
            self._send(session.seal(data))
        else:
            self._send_sealed(session, data)

    def _send_sealed(self, session: Session, data: bytes) -> None:
        """A piece at a time: what is long is not held twice."""
        for start in range(0, len(data), CHUNK):
            self._send(session.seal(data[start : start + CHUNK]))

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

    def _send(self, data: bytes) -> None:
        limits, own = self.limits, self.limits.own.write
        rest, left = memoryview(data), own
        while rest:
            self._writing.allow(limits.left(left), own)
            try:
                rest, left = rest[self.socket.send(rest) :], own
                self.written = True
            except BlockingIOError:
                left = self._writing.rest(limits, own, left)

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
