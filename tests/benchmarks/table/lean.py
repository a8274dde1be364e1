"""httpx over the mesh's own connections, to a fixed address: no mesh, no rule, nothing counted."""

import time
from collections.abc import AsyncIterator

import httpx

from meshlib.core.actions import Attempt
from meshlib.core.balance.cluster import Upstream
from meshlib.core.request import Failed
from meshlib.dataplane.http import asynchronous
from meshlib_httpx.transports import _asked

_UPSTREAM = Upstream()


class LeanTransport(httpx.AsyncBaseTransport):
    """Sends each request once, to the host of its URL."""

    def __init__(self) -> None:
        self._connections = asynchronous.Connections(time.monotonic)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = _asked(request)
        attempt = Attempt("lean", asked.original, asked.head, _UPSTREAM, None, time.monotonic() + 15)
        sent = await self._connections.send(attempt, asked.body.acontent(), asked.own)
        assert not isinstance(sent, Failed), sent
        extensions = {"http_version": sent.version, "reason_phrase": sent.reason}
        headers = list(sent.head.headers)
        stream = _Stream(sent) if sent.whole is None else httpx.ByteStream(sent.whole)
        return httpx.Response(sent.head.status, headers=headers, stream=stream, extensions=extensions)

    async def aclose(self) -> None:
        self._connections.close()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, response: asynchronous.Response) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._response)

    async def aclose(self) -> None:
        self._response.close()
