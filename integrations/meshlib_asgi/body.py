"""A request's body that somebody else is shown before the application reads it, over ASGI."""

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

from meshlib.core.authz.body import SECONDS, Beginning, BodyWanted, Found, Unread, announced
from meshlib_asgi.peers import Receive, Scope


class Body:
    """Its beginning is kept, in one piece; `receive` gives the application all of it."""

    __slots__ = ("_beginning", "_receive", "_scope", "_seconds", "_told", "_until")

    def __init__(self, scope: Scope, receive: Receive, seconds: float = SECONDS) -> None:
        """`seconds` for all that is shown, from the first look on."""
        self._scope = scope
        self._receive = receive
        self._seconds = seconds
        self._until = 0.0
        self._beginning: Beginning | None = None
        self._told = False

    async def read(self, wanted: BodyWanted) -> Found:
        """As much as is wanted."""
        scope = self._scope
        length = next((value for name, value in scope["headers"] if name == b"content-length"), None)
        coded = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        plain = scope.get("http_version", "1.1") in ("1.0", "1.1")
        if scope["type"] != "http" or (plain and length is None and not coded):
            return None
        found = self._beginning = self._beginning or Beginning(announced(length))
        self._until = self._until or time.monotonic() + self._seconds
        while not found.enough(wanted):
            message = await self._next()
            if isinstance(message, Unread):
                return message
            found.add(message.get("body", b""), last=not message.get("more_body", False))
        return found.shown(wanted) if found.size or coded or not found.ended else None

    async def _next(self) -> MutableMapping[str, Any] | Unread:
        left = self._until - time.monotonic()
        if left <= 0:
            return Unread.TOO_SLOW
        try:
            async with asyncio.timeout(left):
                message = await self._receive()
        except TimeoutError:
            return Unread.TOO_SLOW
        return message if message["type"] == "http.request" else Unread.GONE

    @property
    def begun(self) -> bool:
        """Whether something was read of it."""
        return self._beginning is not None

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI's, for the application: what was read, in one piece, then what comes."""
        found = self._beginning
        if found is None or self._told or not (found.size or found.last):
            return await self._receive()
        self._told = True
        return {"type": "http.request", "body": found.taken(), "more_body": not found.last}
