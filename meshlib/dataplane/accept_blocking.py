"""A new connection of a server that works in threads: looked at and secured as `doorstep` decides.

Rules:

- A byte of a request is read only after the peer was checked.
- Nobody waits here: whoever takes the steps (`meeting`, and `begun` for the head) waits for many at once, and
  cuts off who says nothing or is slow.
- A peer that sends a byte now and then is no quicker than one that sends nothing: reads of a connection that
  was met can be bounded together.
"""

import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from meshlib.core.request import Peer
from meshlib.dataplane.doorstep import HTTP1, Port, Refused, Terms, peer_of
from meshlib.dataplane.tls import words
from meshlib.values import dataclass

T = TypeVar("T")
Steps = Generator[socket.socket, None, T]
_SPEAKS = frozenset(HTTP1)
MOST_HEAD = 64 * 1024
"""Bytes that are waited for without a thread."""
_HEAD_ENDS = b"\n\r\n", b"\n\n"
"""Of loose line ends, too, for the parser to refuse."""
_MOST_BLANK = 16
"""Bytes of empty lines before a request; RFC 9112 asks for one line to be ignored."""
_CHUNK = 16 * 1024
_AT_ONCE = 0.001
"""Seconds that are as good as none; none would be a socket that does not block."""


@dataclass(frozen=True, slots=True)
class Met:
    """A connection that may be served."""

    connection: "Bounded | BoundedTls"
    """In place of the one that was given, which is not to be used any more."""
    peer: Peer


class _Reads:
    """Reads that may have to end by a moment all together, and that may have begun already."""

    _until: float | None = None
    _ahead = b""
    settimeout: Callable[[float | None], None]

    def bound(self, seconds: float | None) -> None:
        """All that is read from now on has to be there within `seconds`; None: it takes its time."""
        self._until = None if seconds is None else time.monotonic() + seconds
        self.settimeout(seconds)

    def unread(self, data: bytes) -> None:
        """What was read too early comes again."""
        self._ahead = data + self._ahead

    @property
    def ahead(self) -> bool:
        """Whether there is something to read that no poll shows."""
        return bool(self._ahead) or (isinstance(self, ssl.SSLSocket) and self.pending() > 0)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As a socket's. ConnectionResetError: the time is over."""
        if self._ahead:
            found, self._ahead = self._ahead[:buflen], self._ahead[buflen:]
            return found
        sockets: Any = super()
        try:
            if self._until is not None:
                self.settimeout(max(self._until - time.monotonic(), _AT_ONCE))
            found = bytes(sockets.recv(buflen, flags))
        except TimeoutError:
            if self._until is None:
                raise
            raise ConnectionResetError(errno.ECONNRESET, "too slow") from None
        return found


class Bounded(_Reads, socket.socket):
    """A connection in plain text."""


class BoundedTls(_Reads, ssl.SSLSocket):
    """A secured connection."""


def meeting(accepted: socket.socket, port: Port) -> Steps[Met]:
    """Secures a connection: yields the socket from which more has to come. Closed early it closes that.

    What it gives in the end does not block. Refused: it is cut off and closed; neither its socket nor another
    is left.
    """
    connection = accepted
    try:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # a socket of the file system
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        terms, principal = Terms(port, _SPEAKS), ""
        context = terms.context((yield from _first_byte(connection))) if terms.look else None
        if context is not None:
            context.sslsocket_class = BoundedTls  # it makes others for asyncio, which has objects
            secured: Any = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            connection = secured
            yield from _shaken_hands(secured)
            principal = terms.principal(secured)
            met: Bounded | BoundedTls = secured
        else:
            connection = met = Bounded(fileno=accepted.detach())
            met.setblocking(False)
        remote, local = met.getpeername(), met.getsockname()
        tls = met if isinstance(met, BoundedTls) else None
        return Met(met, peer_of(tls, principal, remote, local))
    except OSError as error:
        connection.close()  # of plain text that is unread the kernel makes a reset
        raise error if isinstance(error, Refused) else Refused(words(error)) from error
    except BaseException:
        connection.close()
        raise


def begun(connection: Bounded | BoundedTls) -> Steps[None]:
    """Yields in the same way until the head of a request is there, whole, and leaves it to be read.

    OSError: the connection is lost, or says nothing but empty lines, and is closed. What is too long for a
    head is left to the parser. So all that is read is bounded, however fast it comes.
    """
    head, searched, blank = bytearray(), 0, 0
    try:
        while all(head.find(end, searched) < 0 for end in _HEAD_ENDS) and len(head) < MOST_HEAD:
            searched = max(0, len(head) - 2)
            try:
                more = connection.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                yield connection
                continue
            if not more:
                break
            if not head:
                blank += len(more)
                more = more.lstrip(b"\r\n")
                blank -= len(more)
                if blank > _MOST_BLANK:
                    raise Refused("empty lines, and no request")
            head += more
        connection.unread(bytes(head))
    except BaseException:
        connection.close()
        raise


def _first_byte(connection: socket.socket) -> Steps[bytes]:
    """The first byte, which is left where it is."""
    while True:
        try:
            first = connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            yield connection
            continue
        if not first:
            raise Refused("it said nothing")
        return first


def _shaken_hands(secured: ssl.SSLSocket) -> Steps[None]:
    while True:
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            yield secured
        else:
            return
