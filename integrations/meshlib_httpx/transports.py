"""httpx transports that send through the mesh.

- `http://` URLs are the mesh's: the name is the host of the Host header (the URL's, unless the
  application set another), the port is the URL's.
- `https://` URLs are encrypted by the application, so there is no request to route: they go out
  through an ordinary httpx transport, unless outboundTrafficPolicy keeps unknown hosts in.
- `response.extensions["meshlib"]` holds the `Facts` of every response that the mesh routed.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from typing import Any

import httpx

import meshlib
from meshlib.core import outbound
from meshlib.core.actions import Attempt, Mirror
from meshlib.core.request import Failed, RequestHead
from meshlib.core.view import View
from meshlib.dataplane import context, fork
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.drive import Answer, AsyncBody, Body, FlightFailed, adrive, drive
from meshlib.dataplane.http import asynchronous, blocking
from meshlib.dataplane.http.limits import OwnTimeouts, TooSlow
from meshlib.dataplane.http.syntax import Unsendable
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.mirroring import AsyncMirrors, Mirrors
from meshlib.dataplane.telemetry.outbound import Outbound, introduced, watch
from meshlib.dataplane.tls import Contexts
from meshlib.errors import ControlError, Flight
from meshlib.xds.names import ALLOW_ANY, BLOCK_ALL
from meshlib_httpx.errors import ConnectFailed, of_control, of_failure, of_own

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Transport(httpx.BaseTransport):
    """For `httpx.Client(transport=…)`. Thread-safe."""

    def __init__(
        self,
        mesh: Mesh | None = None,
        https: httpx.BaseTransport | None = None,
        keepalive_expiry: float = math.inf,
    ) -> None:
        """`mesh` None: the process's own; `https` is what https:// URLs go through; `keepalive_expiry`: the
        seconds for which a connection is kept at most that nobody uses.
        """
        self._keepalive_expiry = keepalive_expiry
        self._mesh = mesh
        self._https = https
        self._https_is_ours = https is None
        self._connections = blocking.Connections(time.monotonic, self._contexts, self._keepalive_expiry)
        self._mirrors = Mirrors(self._connections, time.monotonic)
        fork.watch(self)

    @property
    def mesh(self) -> Mesh:
        """The mesh that decides."""
        if self._mesh is None:
            self._mesh = meshlib.default()
        return self._mesh

    def __repr__(self) -> str:
        return f"<Transport {self._mesh!r}, {self._connections!r}>"

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request. Errors: see `meshlib_httpx.errors`."""
        if request.url.scheme not in _DEFAULT_PORTS or not request.url.host:
            return self._plain().handle_request(request)  # which says what is wrong with it
        asked = _Asked(request)
        try:
            view = self.mesh.prepare(asked.name)
        except ControlError as error:
            if request.url.scheme != "http":
                # Nothing is to be decided but whether the host is known: a lost control service stops nobody.
                return self._plain().handle_request(request)
            raise of_control(error, request) from error
        if request.url.scheme != "http":
            refuse_if_blocked(view, asked, request)
            return self._plain().handle_request(request)
        flow = asked.flow(self.mesh, view)
        watched = asked.watched
        try:
            answer = drive(flow, _Hands(self, asked))
        except FlightFailed as error:
            if watched is not None:
                watched.failed(error.failed, error.facts)
            raise of_failure(error.failed, error.facts, request) from None
        except (TooSlow, Unsendable) as error:
            if watched is not None:
                watched.gave_up()
            raise of_own(error, request) from None
        except BaseException:
            if watched is not None:
                watched.gave_up()
            raise
        if isinstance(answer.body, Body):
            _answered(watched, answer)
            return _response(answer, _Stream(answer.body, request, watched))
        return _response(answer, _whole(answer, watched))

    def _contexts(self) -> Contexts | None:
        return self.mesh.contexts

    def _plain(self) -> httpx.BaseTransport:
        if self._https is None:
            self._https = httpx.HTTPTransport()
        return self._https

    def close(self) -> None:
        """Closes the connections; the mesh stays."""
        self._mirrors.close()
        self._connections.close()
        if self._https is not None:
            self._https.close()

    # A child of a fork has its own connections; the parent's are the parent's.

    def before_fork(self) -> None:
        """Nothing to stop: no thread of ours holds anything that a child needs."""

    def after_fork_in_parent(self) -> None:
        """Goes on."""

    def after_fork_in_child(self) -> None:
        """New connections, new threads."""
        if self._https_is_ours:
            self._https = None
        self._connections.abandon()
        self._connections = blocking.Connections(time.monotonic, self._contexts, self._keepalive_expiry)
        self._mirrors = Mirrors(self._connections, time.monotonic)


class AsyncTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient(transport=…)`, on asyncio. One event loop at a time."""

    def __init__(
        self,
        mesh: Mesh | None = None,
        https: httpx.AsyncBaseTransport | None = None,
        keepalive_expiry: float = math.inf,
    ) -> None:
        """As `Transport`."""
        self._keepalive_expiry = keepalive_expiry
        self._mesh = mesh
        self._https = https
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections = self._new_connections()
        self._mirrors = AsyncMirrors(self._connections, time.monotonic)

    @property
    def mesh(self) -> Mesh:
        """The mesh that decides."""
        if self._mesh is None:
            self._mesh = meshlib.default()
        return self._mesh

    def __repr__(self) -> str:
        return f"<AsyncTransport {self._mesh!r}, {self._connections!r}>"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request. Errors: see `meshlib_httpx.errors`."""
        self._settle()
        if request.url.scheme not in _DEFAULT_PORTS or not request.url.host:
            return await self._plain().handle_async_request(request)  # which says what is wrong with it
        asked = _Asked(request)
        try:
            view = await self.mesh.aprepare(asked.name)
        except ControlError as error:
            if request.url.scheme != "http":
                return await self._plain().handle_async_request(request)
            raise of_control(error, request) from error
        if request.url.scheme != "http":
            refuse_if_blocked(view, asked, request)
            return await self._plain().handle_async_request(request)
        flow = asked.flow(self.mesh, view)
        watched = asked.watched
        try:
            answer = await adrive(flow, _AsyncHands(self, asked))
        except FlightFailed as error:
            if watched is not None:
                watched.failed(error.failed, error.facts)
            raise of_failure(error.failed, error.facts, request) from None
        except (TooSlow, Unsendable) as error:
            if watched is not None:
                watched.gave_up()
            raise of_own(error, request) from None
        except BaseException:
            if watched is not None:
                watched.gave_up()
            raise
        if isinstance(answer.body, AsyncBody):
            _answered(watched, answer)
            return _response(answer, _AsyncStream(answer.body, request, watched))
        return _response(answer, _whole(answer, watched))

    def _new_connections(self) -> asynchronous.Connections:
        return asynchronous.Connections(time.monotonic, self._contexts, self._keepalive_expiry)

    def _settle(self) -> None:
        """A connection belongs to the loop that made it; another loop begins with none."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                self._connections = asynchronous.Connections(
                    time.monotonic, self._contexts, self._keepalive_expiry
                )
                self._mirrors = AsyncMirrors(self._connections, time.monotonic)
            self._loop = loop

    def _contexts(self) -> Contexts | None:
        return self.mesh.contexts

    def _plain(self) -> httpx.AsyncBaseTransport:
        if self._https is None:
            self._https = httpx.AsyncHTTPTransport()
        return self._https

    async def aclose(self) -> None:
        """Gives up mirrors and closes the connections; the mesh stays."""
        self._settle()
        await self._mirrors.close()
        self._connections.close()
        if self._https is not None:
            await self._https.aclose()


class _Asked:
    """One httpx request as core knows it."""

    __slots__ = ("body", "head", "name", "original", "own", "request", "watched")

    def __init__(self, request: httpx.Request) -> None:
        url = request.url
        scheme = url.scheme
        port = url.port or _DEFAULT_PORTS.get(scheme, 80)
        authority, headers = "", []
        for header in request.headers.raw:
            if header[0].lower() == b"host":
                authority = header[1].decode("latin-1") or authority
            else:
                headers.append(header)
        if not authority:
            authority = url.netloc.decode("ascii")
        target = request.extensions.get("target", url.raw_path)
        self.request = request
        self.watched: Outbound | None = None
        self.head = RequestHead(request.method, scheme, authority, target.decode("latin-1"), headers)
        host = _host_of(authority)
        self.name = f"{host}:{port}"
        self.original = (url.host, port)
        timeouts = request.extensions.get("timeout", {})
        self.own = OwnTimeouts(
            timeouts.get("connect"), timeouts.get("read"), timeouts.get("write"), timeouts.get("pool")
        )
        try:
            self.body = RequestBody(request.content)
        except httpx.RequestNotRead:
            self.body = RequestBody(request.stream)

    def _is_known(self, view: View) -> bool:
        table = view.tables.get(self.name)
        host = None if table is None else table.find_host(self.head.authority)
        return host is not None and host.name != ALLOW_ANY

    def flow(self, mesh: Mesh, view: View) -> outbound.Flow:
        """The decisions about it. It is made for the request that is being served here, if one is."""
        watched = self.watched = watch(mesh.telemetry, self.name, self.head, self.body)
        if watched is not None:
            self.head = watched.head
        if context.current() is not None:
            context.hand_on(self.head, self._is_known(view), traced=watched is not None and watched.traced)
        return outbound.flow(
            self.head,
            self.body,
            view,
            self.name,
            mesh.ledger,
            mesh.clock,
            mesh.dice,
            self.original,
            context.time_left(),
        )


def _host_of(authority: str) -> str:
    """`reviews` of `reviews:9080`; an IPv6 address keeps its brackets."""
    host, colon, port = authority.rpartition(":")
    return (host if colon and port.isdecimal() else authority).lower()


class _Hands:
    """What the blocking driver acts with, for one request."""

    __slots__ = ("_asked", "_transport")

    def __init__(self, transport: Transport, asked: _Asked) -> None:
        self._transport = transport
        self._asked = asked

    def send(self, attempt: Attempt) -> blocking.Response | Failed:
        asked, transport = self._asked, self._transport
        attempt = introduced(attempt, transport.mesh.telemetry)
        return transport._connections.send(attempt, asked.body.content(), asked.own)  # noqa: SLF001

    def mirror(self, mirror: Mirror) -> None:
        self._transport._mirrors.add(mirror, self._asked.body)  # noqa: SLF001

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class _AsyncHands:
    """What the asyncio driver acts with, for one request."""

    __slots__ = ("_asked", "_transport")

    def __init__(self, transport: AsyncTransport, asked: _Asked) -> None:
        self._transport = transport
        self._asked = asked

    async def send(self, attempt: Attempt) -> asynchronous.Response | Failed:
        asked, transport = self._asked, self._transport
        attempt = introduced(attempt, transport.mesh.telemetry)
        return await transport._connections.send(attempt, asked.body.acontent(), asked.own)  # noqa: SLF001

    def mirror(self, mirror: Mirror) -> None:
        self._transport._mirrors.add(mirror, self._asked.body)  # noqa: SLF001

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpx.SyncByteStream):
    """The body of a response, for threads."""

    def __init__(self, body: Body, request: httpx.Request, watched: Outbound | None) -> None:
        self._body = body
        self._request = request
        self._watched = watched

    def __iter__(self) -> Iterator[bytes]:
        watched = self._watched
        try:
            if watched is None:
                yield from self._body
                return
            for chunk in self._body:
                watched.received += len(chunk)
                yield chunk
            watched.end()
        except FlightFailed as error:
            if watched is not None:
                watched.failed(error.failed, error.facts)
            raise of_failure(error.failed, error.facts, self._request) from None
        except TooSlow as error:
            raise of_own(error, self._request) from None

    def close(self) -> None:
        self._body.close()
        if self._watched is not None:
            self._watched.gave_up()


class _AsyncStream(httpx.AsyncByteStream):
    """The body of a response, for tasks."""

    def __init__(self, body: AsyncBody, request: httpx.Request, watched: Outbound | None) -> None:
        self._body = body
        self._request = request
        self._watched = watched

    def __aiter__(self) -> "_AsyncStream":
        return self

    async def __anext__(self) -> bytes:
        watched = self._watched
        try:
            chunk = await anext(self._body)
        except StopAsyncIteration:
            if watched is not None:
                watched.end()
            raise
        except FlightFailed as error:
            if watched is not None:
                watched.failed(error.failed, error.facts)
            raise of_failure(error.failed, error.facts, self._request) from None
        except TooSlow as error:
            raise of_own(error, self._request) from None
        if watched is not None:
            watched.received += len(chunk)
        return chunk

    async def aclose(self) -> None:
        self._body.close()
        if self._watched is not None:
            self._watched.gave_up()


def _whole(answer: Answer, watched: Outbound | None) -> httpx.ByteStream:
    body = answer.body if isinstance(answer.body, bytes) else b""
    if watched is not None:
        _answered(watched, answer)
        watched.received = len(body)
        watched.end()
    return httpx.ByteStream(body)


def _answered(watched: Outbound | None, answer: Answer) -> None:
    if watched is not None:
        own = isinstance(answer.body, bytes)
        watched.answered(answer.status, answer.headers, answer.facts, answer.version, own=own)


def _response(answer: Answer, stream: Any) -> httpx.Response:
    headers = list(answer.headers)
    if isinstance(answer.body, bytes):
        headers.append((b"content-length", str(len(answer.body)).encode()))
    extensions: dict[str, Any] = {"http_version": answer.version, "meshlib": answer.facts}
    if answer.reason:
        extensions["reason_phrase"] = answer.reason
    return httpx.Response(answer.status, headers=headers, stream=stream, extensions=extensions)


def refuse_if_blocked(view: View, asked: _Asked, request: httpx.Request) -> None:
    """ConnectFailed: an https:// host that the mesh does not know, where only known ones are allowed."""
    table = view.tables.get(asked.name)
    host = None if table is None else table.find_host(asked.head.authority)
    if host is not None and host.blocks:
        message = f"{asked.name} is unknown, and outboundTrafficPolicy is REGISTRY_ONLY"
        raise ConnectFailed(message, Flight(route=BLOCK_ALL), request)
