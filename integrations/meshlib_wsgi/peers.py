"""Who is at the other end of a WSGI request's connection, and who was let in.

- A server of the mesh's own says it itself, in `environ["meshlib.peer"]`.
- Other servers show their socket, some of them (gunicorn, werkzeug): the certificate is taken from it, and
  its chain is checked once more, for it is not known by which roots they did.
- Nothing else counts: no header says who somebody is. A header is under `HTTP_…` in the environ, so none
  of these names can be sent.
"""

import socket
import ssl
from collections.abc import Callable, MutableMapping
from typing import Any

from meshlib.core.caller import Caller
from meshlib.core.request import Peer

Environ = MutableMapping[str, Any]
Principal = Callable[[str], str]
"""From a PEM chain, the leaf first, to the `spiffe://…` that the mesh vouches for; empty if it does not."""

PEER = "meshlib.peer"
CALLER = "meshlib.caller"
_SOCKETS = ("gunicorn.socket", "werkzeug.socket")


def peer_of(environ: Environ, principal: Principal) -> Peer:
    """The peer of the connection."""
    ours: Peer | None = environ.get(PEER)
    if ours is not None:
        return ours
    connection = socket_of(environ)
    if connection is None:
        client = str(environ.get("REMOTE_ADDR") or ""), _number(environ.get("REMOTE_PORT"))
        server = str(environ.get("SERVER_NAME") or ""), _number(environ.get("SERVER_PORT"))
        return Peer(client, server, tls=environ.get("wsgi.url_scheme") == "https")
    who = ""
    if isinstance(connection, ssl.SSLSocket):
        chain = _chain(connection)
        who = principal(chain) if chain else ""
    client, server = _address(connection.getpeername()), _address(connection.getsockname())
    return Peer(client, server, who, "", isinstance(connection, ssl.SSLSocket))


def port_of(environ: Environ) -> int:
    """The port at which the request arrived; 0: it is not known.

    Of a socket of the file system servers take the port from the Host header, which is the caller's word.
    """
    ours: Peer | None = environ.get(PEER)
    if ours is not None:
        return ours.local[1]
    connection = socket_of(environ)
    if connection is not None:
        return _address(connection.getsockname())[1]
    return _number(environ.get("SERVER_PORT"))


def caller_of(environ: Environ) -> Caller | None:
    """Who was let in already: by this middleware, or by the ASGI one around a2wsgi; None: nobody yet."""
    found = environ.get(CALLER)
    if found is None:
        found = (environ.get("asgi.scope") or {}).get(CALLER)
    return found if isinstance(found, Caller) else None


def socket_of(environ: Environ) -> socket.socket | None:
    """The connection, if the server shows it."""
    for name in _SOCKETS:
        found = environ.get(name)
        if isinstance(found, socket.socket):
            return found
    return None


def _chain(connection: ssl.SSLSocket) -> str:
    """What the peer has shown, in PEM, the leaf first; empty: nothing."""
    # Public since Python 3.13; the object below it has it since 3.10.
    found: Any = getattr(connection, "get_unverified_chain", None)
    if found is not None:
        return "".join(ssl.DER_cert_to_PEM_cert(one) for one in found())
    below: Any = connection._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
    return "".join(one.public_bytes() for one in below.get_unverified_chain() or ())


def _address(found: Any) -> tuple[str, int]:
    """Of `(host, port, …)`; a socket of the file system has neither."""
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else ("", 0)


def _number(said: Any) -> int:
    return int(said) if said and str(said).isdigit() else 0
