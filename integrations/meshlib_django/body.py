"""A request's body that somebody else is shown before Django's views read it.

Behind an ASGI server Django has read it whole, into a file, before its middleware is called. Behind a WSGI
server it is read here; Django has bound its stream to the server's by then, so it is given another one.
"""

import os
from typing import Any

from django.core.handlers.wsgi import LimitedStream
from django.http import HttpRequest

from meshlib.core.authz.body import BodyWanted, Found, Shown, Unread
from meshlib_wsgi.body import Body as WsgiBody


class Body:
    """The body of one request."""

    def __init__(self, request: HttpRequest) -> None:
        """Reads nothing yet."""
        self._request: Any = request
        self._wsgi = None if hasattr(request, "scope") else WsgiBody(request.META)

    def read(self, wanted: BodyWanted) -> Found:
        """As much as is wanted."""
        return _beginning(self._request, wanted) if self._wsgi is None else self._wsgi.read(wanted)

    async def aread(self, wanted: BodyWanted) -> Found:
        """The same for a task; there it is a file."""
        return self.read(wanted)

    def restore(self) -> None:
        """Gives the views the body back, from its beginning."""
        if self._wsgi is not None and self._wsgi.restore():
            meta = self._request.META
            length = int(meta.get("CONTENT_LENGTH") or 0)
            self._request._stream = LimitedStream(meta["wsgi.input"], length)  # noqa: SLF001 - no other way


def _beginning(request: Any, wanted: BodyWanted) -> Found:
    file = request._stream  # noqa: SLF001 - `read` of the request would keep views from its body
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    data = bytes(file.read(wanted.most))
    file.seek(place)
    if not size and "HTTP_TRANSFER_ENCODING" not in request.META:
        return None
    if size > wanted.most and not wanted.partial:
        return Unread.TOO_LARGE
    return Shown(data, size <= wanted.most, size)
