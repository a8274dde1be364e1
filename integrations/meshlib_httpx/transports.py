"""httpx transports that send through the mesh.

- `http://` URLs are the mesh's: the name is the host of the Host header (the URL's, unless the
  application set another), the port is the URL's.
- `https://` URLs are encrypted by the application, so there is no request to route: they go out
  through an ordinary httpx transport, unless outboundTrafficPolicy keeps unknown hosts in. Its
  connections follow the mesh's `tls` rules, as a sidecar's do.
- A proxy of the client's takes what goes to hosts that the mesh does not know, and nothing else.
- `response.extensions["meshlib"]` holds the `Facts` of every response that the mesh routed.
- `response.extensions["network_stream"]` is httpcore's, where a 101 made another protocol of the connection.
"""

import math
from collections.abc import Iterator
from typing import Any

import httpx

import meshlib
from meshlib.dataplane.drive import Answer, AsyncBody, Body, FlightFailed
from meshlib.dataplane.exchange import DEFAULT_PORTS, AsyncSender, Request, Sender
from meshlib.dataplane.http.limits import OwnTimeouts, TooSlow
from meshlib.dataplane.http.syntax import SWITCHING, Unsendable
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ConnectFailed, ControlError
from meshlib_httpx.errors import of_connection, of_control, of_failure, of_own
from meshlib_httpx.proxies import AsyncProxies, Proxies
from meshlib_httpx.secure import Secure


class Transport(httpx.BaseTransport):
    """For `httpx.Client(transport=…)`. Thread-safe."""

    def __init__(
        self,
        mesh: Mesh | None = None,
        https: httpx.BaseTransport | dict[str, Any] | None = None,
        keepalive_expiry: float = math.inf,
        proxies: Proxies | None = None,
    ) -> None:
        """`mesh` None: the process's own; `https` is what https:// URLs go through, or arguments of
        httpx.HTTPTransport for one whose connections follow the mesh's `tls` rules; `keepalive_expiry`: the
        seconds for which a connection is kept at most that nobody uses; `proxies`: those of the client.
        """
        self._proxies = proxies
        self._sender = sender = Sender(mesh or meshlib.default, keepalive_expiry)
        if https is None or isinstance(https, dict):
            https = Secure(https or {}, lambda: sender.mesh)
        self._https = https

    def __repr__(self) -> str:
        return f"<Transport {self._sender!r}>"

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request. Errors: see `meshlib_httpx.errors`."""
        if request.url.scheme not in DEFAULT_PORTS or not request.url.host:
            return self._https.handle_request(request)  # which says what is wrong with it
        asked, proxies = _asked(request), self._proxies
        try:
            if proxies is not None:
                leaves = self._sender.leaves(asked, told=proxies.named)
                if leaves and proxies.wants(request.url):
                    return proxies.handle_request(request)
            if request.url.scheme == "http":
                answer = self._sender.send(asked)
                body = answer.body
                if isinstance(body, Body):
                    response = _response(answer, _Stream(body, request))
                    if answer.status == SWITCHING:
                        from meshlib_httpx.upgrade import NetworkStream  # httpcore takes long to load

                        response.extensions["network_stream"] = NetworkStream(body.upgraded())
                    return response
                return _response(answer, httpx.ByteStream(body if isinstance(body, bytes) else b""))
            self._sender.admit(asked)
            return self._https.handle_request(request)
        except FlightFailed as error:
            raise of_failure(error, request) from None
        except (TooSlow, Unsendable) as error:
            raise of_own(error, request) from None
        except ControlError as error:
            raise of_control(error, request) from error
        except ConnectFailed as error:
            raise of_connection(error, request) from error

    def close(self) -> None:
        """Closes the connections; the mesh stays."""
        self._sender.close()
        for other in (self._https, self._proxies):
            if other is not None:
                other.close()


class AsyncTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient(transport=…)`, on asyncio. One event loop at a time."""

    def __init__(
        self,
        mesh: Mesh | None = None,
        https: httpx.AsyncBaseTransport | dict[str, Any] | None = None,
        keepalive_expiry: float = math.inf,
        proxies: AsyncProxies | None = None,
    ) -> None:
        """As `Transport`."""
        self._proxies = proxies
        self._sender = sender = AsyncSender(mesh or meshlib.default, keepalive_expiry)
        if https is None or isinstance(https, dict):
            from meshlib_httpx.secure_tasks import AsyncSecure

            https = AsyncSecure(https or {}, lambda: sender.mesh)
        self._https = https

    def __repr__(self) -> str:
        return f"<AsyncTransport {self._sender!r}>"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request. Errors: see `meshlib_httpx.errors`."""
        if request.url.scheme not in DEFAULT_PORTS or not request.url.host:
            return await self._https.handle_async_request(request)  # which says what is wrong with it
        asked, proxies = _asked(request), self._proxies
        try:
            if proxies is not None:
                leaves = await self._sender.leaves(asked, told=proxies.named)
                if leaves and proxies.wants(request.url):
                    return await proxies.handle_async_request(request)
            if request.url.scheme == "http":
                answer = await self._sender.send(asked)
                body = answer.body
                if isinstance(body, AsyncBody):
                    response = _response(answer, _AsyncStream(body, request))
                    if answer.status == SWITCHING:
                        from meshlib_httpx.upgrade import AsyncNetworkStream

                        response.extensions["network_stream"] = AsyncNetworkStream(body.upgraded())
                    return response
                return _response(answer, _Whole(body if isinstance(body, bytes) else b""))
            await self._sender.admit(asked)
            return await self._https.handle_async_request(request)
        except FlightFailed as error:
            raise of_failure(error, request) from None
        except (TooSlow, Unsendable) as error:
            raise of_own(error, request) from None
        except ControlError as error:
            raise of_control(error, request) from error
        except ConnectFailed as error:
            raise of_connection(error, request) from error

    async def aclose(self) -> None:
        """Gives up mirrors and closes the connections; the mesh stays."""
        await self._sender.aclose()
        for other in (self._https, self._proxies):
            if other is not None:
                await other.aclose()


def _asked(request: httpx.Request) -> Request:
    """What core knows of it."""
    url = request.url
    scheme = url.scheme
    limit = request.extensions.get("timeout", {}).get
    body: Any
    try:
        body = request.content
    except httpx.RequestNotRead:
        body = request.stream
    return Request(
        request.method,
        scheme,
        (url.host, url.port or DEFAULT_PORTS[scheme]),
        url.netloc.decode("ascii"),
        request.extensions.get("target", url.raw_path).decode("latin-1"),
        request.headers.raw,
        body,
        OwnTimeouts(limit("connect"), limit("read"), limit("write"), limit("pool")),
    )


class _Stream(httpx.SyncByteStream):
    """The body of a response, for threads."""

    def __init__(self, body: Body, request: httpx.Request) -> None:
        self._body = body
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except FlightFailed as error:
            raise of_failure(error, self._request) from None
        except TooSlow as error:
            raise of_own(error, self._request) from None

    def close(self) -> None:
        self._body.close()


class _AsyncStream(httpx.AsyncByteStream):
    """The body of a response, for tasks."""

    def __init__(self, body: AsyncBody, request: httpx.Request) -> None:
        self._body = body
        self._request = request

    def __aiter__(self) -> "_AsyncStream":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._body)
        except FlightFailed as error:
            raise of_failure(error, self._request) from None
        except TooSlow as error:
            raise of_own(error, self._request) from None

    async def aclose(self) -> None:
        self._body.close()


class _Whole(httpx.AsyncByteStream):
    """A body that came with its head, for tasks. Not a generator: a loop keeps books of each of those."""

    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> "_Whole":
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def _response(answer: Answer, stream: Any) -> httpx.Response:
    extensions: dict[str, Any] = {"http_version": answer.version, "meshlib": answer.facts}
    if answer.reason:
        extensions["reason_phrase"] = answer.reason
    return httpx.Response(answer.status, headers=answer.wire_headers(), stream=stream, extensions=extensions)
