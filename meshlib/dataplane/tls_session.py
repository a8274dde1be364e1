"""One end of a TLS connection, without I/O: the peer's bytes in, the application's out, and the other way.

Rules:

- OpenSSL reads and writes memory. On a socket it makes two calls of the system for a record, for its head and
  for the rest; in memory a record costs as many as plain text does.
- OpenSSL is not asked for what is not there: the exception by which it says so costs as much as a record.
- What OpenSSL wants to say by itself is `outgoing`: to be sent after each part of a handshake, after an
  error, and when `next` has no more. An answer to a new key comes with what is sealed next (RFC 8446, 4.6.3).
"""

import contextlib
import ssl

RECORD = 16 * 1024
"""The most bytes of an application in a record (RFC 8446, 5.1)."""


class Session:
    """One end. Not thread-safe."""

    __slots__ = ("_incoming", "_outgoing", "tls")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool = False, name: str = "") -> None:
        """`name`: whom a client asks for (SNI); empty: nobody in particular. ValueError: it is no name."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side, name or None)
        """What is asked about the peer."""

    def shake(self) -> bool:
        """Goes on with the handshake; True: it is done. ssl.SSLError: it failed, and `outgoing` says why."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive(self, data: bytes | memoryview) -> None:
        """Takes bytes from the peer."""
        self._incoming.write(data)

    @property
    def quiet(self) -> bool:
        """Whether the peer has sent nothing that `next` has not given."""
        return not self._incoming.pending

    def next(self) -> bytes | None:
        """The application's next bytes; None: they are not here yet; none at all: the peer has ended.

        ssl.SSLError: what came is not from the peer, or the peer says that something is wrong.
        """
        if not self._incoming.pending:
            return None
        try:
            return self.tls.read(RECORD)
        except ssl.SSLWantReadError:
            return None

    def seal(self, data: bytes) -> bytes:
        """What to send for bytes of the application, one or more. ssl.SSLError: the connection is broken."""
        write = self.tls.write
        sent = write(data)
        if sent < len(data):
            rest = memoryview(data)[sent:]
            while rest:
                rest = rest[write(rest) :]
        return self._outgoing.read()

    def outgoing(self) -> bytes:
        """What OpenSSL wants to send by itself: of a handshake, an alert, an answer; none at all: nothing."""
        return self._outgoing.read()

    def farewell(self) -> bytes:
        """What to send before an end that is no accident (RFC 8446, 6.1)."""
        with contextlib.suppress(ssl.SSLError):  # it waits for the peer's, which nobody needs
            self.tls.unwrap()
        return self._outgoing.read()
