"""A new connection of a server that works in threads: looked at and secured as `doorstep` decides.

Rules:

- A byte of a request is read only after the peer was checked.
- Who says nothing, or shakes hands slowly, is cut off: the thread waits for `patience` seconds at most, for
  the first byte and the handshake together.
"""

import contextlib
import socket
import ssl
import time
from dataclasses import dataclass

from meshlib.core.request import Peer
from meshlib.dataplane.doorstep import HTTP1, PATIENCE, Port, Refused, Terms, peer_of
from meshlib.dataplane.tls import words

_SPEAKS = frozenset(HTTP1)


@dataclass(frozen=True, slots=True)
class Met:
    """A connection that may be served."""

    connection: socket.socket
    """In place of the one that was given, which is not to be used any more. It blocks, without a time-out."""
    peer: Peer


def meet(accepted: socket.socket, port: Port, patience: float = PATIENCE) -> Met:
    """Secures a connection. Refused: it is cut off and closed; neither its socket nor another is left."""
    connection = accepted
    try:
        until = time.monotonic() + patience
        connection.settimeout(patience)
        with contextlib.suppress(OSError):  # a socket of the file system
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        terms, principal = Terms(port, _SPEAKS), ""
        context = terms.context(_first_byte(connection)) if terms.look else None
        if context is not None:
            connection = secured = context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
            secured.settimeout(max(until - time.monotonic(), 0.001))
            secured.do_handshake()
            principal = terms.principal(secured)
        remote, local = connection.getpeername(), connection.getsockname()
        tls = connection if isinstance(connection, ssl.SSLSocket) else None
        found = Met(connection, peer_of(tls, principal, remote, local))
        connection.settimeout(None)
    except OSError as error:
        connection.close()  # of plain text that is unread the kernel makes a reset
        raise Refused("too slow" if isinstance(error, TimeoutError) else words(error)) from error
    except BaseException:
        connection.close()
        raise
    return found


def _first_byte(connection: socket.socket) -> bytes:
    """Waits for the first byte and leaves it where it is."""
    first = connection.recv(1, socket.MSG_PEEK)
    if not first:
        raise Refused("it said nothing")
    return first
