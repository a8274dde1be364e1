"""Who is at the other end of an ASGI connection.

- A server of the mesh's own says it itself, in `scope["extensions"]["meshlib"]`.
- Of other servers the certificate is taken from ASGI's TLS extension, if they have it; its chain is
  checked once more, for it is not known by which roots they did.
- Nothing else counts: no header says who somebody is.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from meshlib.core.request import Peer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Principal = Callable[[str], str]
"""From a PEM chain, the leaf first, to the `spiffe://…` that the mesh vouches for; empty if it does not."""


class WithPeer:
    """An application as one connection sees it: every scope says who the peer is."""

    def __init__(self, app: Application, peer: Peer) -> None:
        self._app = app
        self._extension = {"meshlib": {"peer": peer}}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        scope["extensions"] = {**scope.get("extensions", {}), **self._extension}
        await self._app(scope, receive, send)


def peer_of(scope: Scope, principal: Principal) -> Peer:
    """The peer of a connection."""
    extensions = scope.get("extensions") or {}
    ours = extensions.get("meshlib")
    if ours is not None:
        found: Peer = ours["peer"]
        return found
    tls = extensions.get("tls")
    who = ""
    if tls:
        chain = tls.get("client_cert_chain") or ()
        who = principal("".join(chain)) if chain else ""
    encrypted = tls is not None or scope.get("scheme") in ("https", "wss")
    return Peer(_address(scope.get("client")), _address(scope.get("server")), who, "", encrypted)


def _address(found: Any) -> tuple[str, int]:
    """Of `(host, port)`; a socket of the file system has neither."""
    if not found:
        return "", 0
    return str(found[0]), int(found[1] or 0)
