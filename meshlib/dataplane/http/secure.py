"""What TLS means for a connection of a pool: where it leads, by which context, and who answered.

Both kinds of I/O use it.
"""

import contextlib
import functools
import socket
import ssl
import time
from collections.abc import Callable

from meshlib.core.actions import Attempt
from meshlib.core.mtls import ClientTls
from meshlib.dataplane.http.pool import Address
from meshlib.dataplane.tls import Contexts
from meshlib.dataplane.tls_session import RECORD, Session
from meshlib.xds.names import split_authority

MakeContexts = Callable[[], Contexts | None]


_NOBODYS = Contexts(lambda: None)
"""Of a process without a certificate of the mesh: enough for TLS to servers outside of it."""


def no_contexts() -> None:
    """Of a client without a mesh identity."""


def address_of(attempt: Attempt) -> Address:
    """What an idle connection must be for, to be used for this attempt."""
    tls = attempt.tls
    return attempt.address, tls, server_name(attempt, tls) if tls is not None else ""


def server_name(attempt: Attempt, tls: ClientTls) -> str:
    """The SNI: the policy's own, else the request's host; empty if that is no name (RFC 6066, 3)."""
    return _server_name(tls.sni, attempt.head.authority)


@functools.lru_cache(maxsize=1024)
def _server_name(sni: str, authority: str) -> str:
    name = sni or split_authority(authority, 0)[0]
    plain = name.replace(".", "")
    return "" if ":" in name or not name.isascii() or plain.isdecimal() else name


def context_for(tls: ClientTls, contexts: Contexts | None) -> ssl.SSLContext:
    """The context to shake hands with. OSError: there is none."""
    return (contexts or _NOBODYS).client(tls)


def check(
    tls: ClientTls, contexts: Contexts | None, connection: "ssl.SSLSocket | ssl.SSLObject | None"
) -> str:
    """Who answered. OSError: nobody that may."""
    if connection is None:
        raise OSError("the connection is not encrypted")
    return (contexts or _NOBODYS).check(tls, connection)


def shown(tls: ClientTls, contexts: Contexts | None) -> tuple[bytes, bytes] | None:
    """Our chain and key, for a library that shakes hands itself; None: none is shown. OSError."""
    return (contexts or _NOBODYS).shown(tls)


def shake_hands(session: Session, made: socket.socket, deadline: float) -> None:
    """A client's handshake on a socket, until `deadline` on the monotonic clock. OSError: it failed."""
    done = False
    while not done:
        left = deadline - time.monotonic()
        if left <= 0:  # also of a peer that says a byte at a time
            raise TimeoutError("the handshake took too long")
        made.settimeout(left)
        try:
            done = session.shake()
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                made.send(session.outgoing())  # the alert, which says why
            raise
        made.sendall(session.outgoing())
        if not done:
            received = made.recv(RECORD)
            if not received:
                raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer closed the connection")
            session.receive(received)
