"""One request of an application through the mesh: what every adapter of a client library does with it.

    Request in ─► what is known of its target ─► flow, driven ─► Answer out, or FlightFailed

Rules:

- The target's name is the host of the Host header (the URL's, unless the application set another) and the
  URL's port.
- An adapter translates its library's request, response and errors, and does nothing else.
- Connections are of one process and, for tasks, of one event loop: another begins with none.
- A sender that found its mesh by itself finds another one when that is closed.
- Telemetry is told here, and at the end of the body (`drive.Body`).
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from meshlib.core import outbound
from meshlib.core.actions import Attempt, Facts, Flow, Mirror
from meshlib.core.ledger import Ledger
from meshlib.core.request import Failed, Failure, Header, RequestHead
from meshlib.core.view import View
from meshlib.dataplane import context, fork, proxies
from meshlib.dataplane.body import RequestBody, Source
from meshlib.dataplane.drive import Answer, AsyncBody, AsyncHands, Body, FlightFailed, Hands, adrive, drive
from meshlib.dataplane.hedge_blocking import Feed, Threads, Tries
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.limits import NO_TIMEOUTS, OwnTimeouts
from meshlib.dataplane.http.syntax import Unsendable
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.mirroring import AsyncMirrors, Mirrors
from meshlib.dataplane.network import (
    SOCKETS,
    AsyncConnections,
    AsyncResponse,
    Connections,
    Response,
    Several,
    aconnections_of,
    connections_of,
)
from meshlib.dataplane.telemetry.outbound import Outbound, introduced, watch
from meshlib.dataplane.tls import Contexts
from meshlib.errors import ControlError
from meshlib.xds.names import ALLOW_ANY, BLOCK_ALL

if TYPE_CHECKING:
    import asyncio

    from meshlib.dataplane.hedge import AsyncTries

DEFAULT_PORTS = {"http": 80, "https": 443}

FindMesh = Callable[[], Mesh]
"""Gives the mesh at the first request; `meshlib.default` is one."""


class Request:
    """One request of the application, as core knows it."""

    __slots__ = ("body", "head", "name", "original", "own", "patience", "watched")

    def __init__(
        self,
        method: str,
        scheme: str,
        address: tuple[str, int],
        netloc: str,
        target: str,
        headers: Iterable[Header],
        body: Source | RequestBody = b"",
        own: OwnTimeouts = NO_TIMEOUTS,
        patience: float | None = None,
    ) -> None:
        """`address` is the URL's host and port, `netloc` both as a Host header says them; `target` is path
        and query, `headers` may have a Host. `patience`: seconds for which the application waits for the
        whole response, of a library that says so; None: as long as it takes.
        """
        self.head = RequestHead.sent(method, scheme, netloc, target, list(headers))
        self.name = f"{_host_of(self.head.authority)}:{address[1]}"
        self.original = address
        self.body = body if isinstance(body, RequestBody) else RequestBody(body)
        self.own = own
        self.patience = patience
        self.watched: Outbound | None = None

    def waited(self, seconds: float) -> None:
        """So long it took until it was known what to do with it: the application waits that much less."""
        if self.patience is not None:
            self.patience -= seconds

    def _is_known(self, view: View) -> bool:
        table = view.tables.get(self.name)
        host = None if table is None else table.find_host(self.head.authority)
        return host is not None and host.name != ALLOW_ANY

    def flow(self, mesh: Mesh, view: View, ledger: Ledger | None = None) -> Flow:
        """The decisions about it. It is made for the request that is being served here, if one is. `ledger`
        None: the mesh's.
        Unsendable: it asks for a tunnel, which Envoy refuses too where no route says otherwise.
        """
        if self.head.method == "CONNECT":
            raise Unsendable("CONNECT is not routed: meshlib.create_connection makes a connection")
        watched = self.watched = watch(mesh.telemetry, self.name, self.head, self.body)
        if watched is not None:
            self.head = watched.head
        patience = self.patience
        if context.current() is not None:
            left = context.time_left()
            if left is not None and (patience is None or left < patience):
                patience = left
            context.hand_on(self.head, self._is_known(view), traced=watched is not None and watched.traced)
        return outbound.flow(
            self.head,
            self.body,
            view,
            self.name,
            mesh.ledger if ledger is None else ledger,
            mesh.clock,
            mesh.dice,
            self.original,
            patience,
        )


def _host_of(authority: str) -> str:
    """`reviews` of `reviews:9080`; an IPv6 address keeps its brackets."""
    host, colon, port = authority.rpartition(":")
    return (host if colon and port.isdecimal() else authority).lower()


class _Asking:
    """What both senders have: the mesh, found at the first request."""

    def __init__(self, mesh: Mesh | FindMesh, longest_idle: float = math.inf) -> None:
        """`longest_idle`: the seconds for which a connection is kept at most that nobody uses."""
        self._mesh = None if callable(mesh) else mesh
        self._find = mesh if callable(mesh) else None
        self._longest_idle = longest_idle

    @property
    def mesh(self) -> Mesh:
        """The mesh that decides."""
        if self._mesh is None:
            assert self._find is not None  # noqa: S101 - one of both is given
            found = self._find()
            found.used_by(self)
            self._mesh = found
            return found
        return self._mesh

    def mesh_closed(self) -> None:
        """The next request finds a mesh again."""
        self._mesh = None

    def _contexts(self) -> Contexts | None:
        return self.mesh.contexts


class Sender(_Asking):
    """Sends requests for threads. Thread-safe."""

    def __init__(self, mesh: Mesh | FindMesh, longest_idle: float = math.inf) -> None:
        super().__init__(mesh, longest_idle)
        self._lock = threading.Lock()
        self._connections: Connections | None = None
        self._mirrors: Mirrors | None = None
        self.threads = Threads()
        """Those of hedged requests."""
        self._closed = False
        fork.watch(self)

    def __repr__(self) -> str:
        return f"<Sender {self._mesh!r}, {self._connections!r}>"

    def send(self, request: Request, hands: Hands | None = None) -> Answer:
        """Sends it. FlightFailed; TooSlow; Unsendable; ControlError; errors of its body. `hands`: what acts,
        of a library that has connections of its own.
        """
        mesh = self.mesh
        view = mesh.known(request.name)
        if view is None:
            begun = mesh.clock()
            view = mesh.prepare(request.name)
            request.waited(mesh.clock() - begun)
        flow = request.flow(mesh, view)
        return self.run(request, flow, hands or _Hands(self, request))

    def run(self, request: Request, flow: Flow, hands: Hands) -> Answer:
        """Runs the flow of a request to its answer; fails as `send`."""
        watched = request.watched
        if watched is None:
            return drive(flow, hands)
        try:
            answer = drive(flow, hands)
        except BaseException as error:
            _lost(watched, error)
            raise
        return _watched(watched, answer)

    def admit(self, request: Request) -> None:
        """Lets one pass that is not to be routed, because the application encrypts it. FlightFailed: the mesh
        does not know the host, and allows only known ones. A lost control service stops nobody.
        """
        try:
            view = self.mesh.prepare(request.name)
        except ControlError:
            return
        _refuse_if_blocked(view, request)

    def leaves(self, request: Request, *, told: bool = False) -> bool:
        """Whether a proxy that the client has for it may take it (see `proxies`). `told`: the application
        named that proxy, and hears if not. ControlError.
        """
        try:
            view = self.mesh.prepare(request.name)
        except ControlError:
            if request.head.scheme == "https":
                return True
            raise
        return _leaves(view, request, told=told)

    def connections(self) -> Connections:
        """Those of this process."""
        made = self._connections
        if made is None:
            with self._lock:
                made = self._connections = self._connections or self._connect()
        return made

    def mesh_closed(self) -> None:
        """The next request finds a mesh again, and opens connections of its own."""
        with self._lock:
            mirrors, connections = self._mirrors, self._connections
            self._mesh = self._mirrors = self._connections = None
        if mirrors is not None:
            mirrors.close()
        if connections is not None:
            connections.close()

    def _connect(self) -> Connections:
        made = connections_of(self.mesh, self._contexts, self._longest_idle)
        if self._closed:
            made.close()
        return made

    def mirror(self, mirror: Mirror, request: Request) -> None:
        """Sends a copy in the background."""
        network = self.mesh.network
        if network is not None and network.mirror is not None:
            network.mirror(mirror, request.body)
            return
        connections = self.connections()
        with self._lock:
            if self._mirrors is None:
                self._mirrors = Mirrors(connections, self.mesh.clock)
                if self._closed:
                    self._mirrors.close()
            mirrors = self._mirrors
        mirrors.add(mirror, request.body)

    def close(self) -> None:
        """Closes the connections; the mesh stays."""
        with self._lock:
            self._closed = True
            mirrors, connections = self._mirrors, self._connections
        if mirrors is not None:
            mirrors.close()
        if connections is not None:
            connections.close()

    # A child of a fork has its own connections; the parent's are the parent's.

    def before_fork(self) -> None:
        """Nothing to stop: no thread of ours holds anything that a child needs."""

    def after_fork_in_parent(self) -> None:
        """Goes on."""

    def after_fork_in_child(self) -> None:
        """New connections, new threads."""
        self._lock = threading.Lock()
        self.threads = Threads()
        if self._connections is not None:
            self._connections.abandon()
        self._connections = self._mirrors = None


class AsyncSender(_Asking):
    """Sends requests for tasks, on asyncio. One event loop at a time."""

    def __init__(self, mesh: Mesh | FindMesh, longest_idle: float = math.inf) -> None:
        # Which an application without tasks need not load, and no request shall wait for.
        from asyncio import get_running_loop

        from meshlib.dataplane.http import asynchronous  # noqa: F401

        super().__init__(mesh, longest_idle)
        self._running_loop = get_running_loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: AsyncConnections | None = None
        self._mirrors: AsyncMirrors | None = None

    def __repr__(self) -> str:
        return f"<AsyncSender {self._mesh!r}, {self._connections!r}>"

    async def send(self, request: Request, hands: AsyncHands | None = None) -> Answer:
        """As of `Sender`."""
        mesh = self.mesh
        view = mesh.known(request.name)
        if view is None:
            begun = mesh.clock()
            view = await mesh.aprepare(request.name)
            request.waited(mesh.clock() - begun)
        flow = request.flow(mesh, view)
        return await self.run(request, flow, hands or _AsyncHands(self, request))

    async def run(self, request: Request, flow: Flow, hands: AsyncHands) -> Answer:
        """As of `Sender`."""
        watched = request.watched
        if watched is None:
            return await adrive(flow, hands)
        try:
            answer = await adrive(flow, hands)
        except BaseException as error:
            _lost(watched, error)
            raise
        return _watched(watched, answer)

    async def admit(self, request: Request) -> None:
        """As of `Sender`."""
        try:
            view = await self.mesh.aprepare(request.name)
        except ControlError:
            return
        _refuse_if_blocked(view, request)

    async def leaves(self, request: Request, *, told: bool = False) -> bool:
        """As of `Sender`."""
        try:
            view = await self.mesh.aprepare(request.name)
        except ControlError:
            if request.head.scheme == "https":
                return True
            raise
        return _leaves(view, request, told=told)

    def connections(self) -> AsyncConnections:
        """Those of the running loop: a connection belongs to the loop that made it."""
        loop = self._running_loop()
        if self._connections is None or self._loop is not loop:
            mesh = self.mesh
            self._connections = self._connect()
            self._mirrors = AsyncMirrors(self._connections, mesh.clock)
            self._loop = loop
        return self._connections

    def _connect(self) -> AsyncConnections:
        return aconnections_of(self.mesh, self._contexts, self._longest_idle)

    def mirror(self, mirror: Mirror, request: Request) -> None:
        """Sends a copy in the background."""
        network = self.mesh.network
        if network is not None and network.mirror is not None:
            network.mirror(mirror, request.body)
            return
        self.connections()
        assert self._mirrors is not None  # noqa: S101 - made with the connections
        self._mirrors.add(mirror, request.body)

    def mesh_closed(self) -> None:
        """The next request finds a mesh again, and opens connections of its own."""
        connections, loop = self._connections, self._loop
        self._mesh = self._mirrors = self._connections = None
        if connections is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
                loop.call_soon_threadsafe(connections.close)

    async def aclose(self) -> None:
        """Gives up mirrors and closes the connections; the mesh stays."""
        if self._connections is not None:
            connections = self.connections()
            if self._mirrors is not None:
                await self._mirrors.close()
            connections.close()


class _Hands:
    """What the blocking driver acts with, for one request."""

    __slots__ = ("_request", "_sender")

    def __init__(self, sender: Sender, request: Request) -> None:
        self._sender = sender
        self._request = request

    def send(self, attempt: Attempt, cut: Cut | None = None, feed: Feed | None = None) -> Response | Failed:
        request, sender = self._request, self._sender
        if attempt.tls is not None:
            attempt = introduced(attempt, attempt.tls, sender.mesh.telemetry)
        if cut is not None:
            body = feed or request.body.content()
            return sender.connections().send(attempt, body, request.own, cut)
        return sender.connections().send(attempt, request.body.content(), request.own)

    def several(self) -> Several:
        request, sender = self._request, self._sender
        network = sender.mesh.network
        if network is not None and network.several is not None:
            return network.several(sender.connections(), request.body, request.own)
        return Tries(self.send, sender.threads, request.body.unread)

    def mirror(self, mirror: Mirror) -> None:
        self._sender.mirror(mirror, self._request)

    def sleep(self, seconds: float) -> None:
        with self._request.own.pausing(seconds) as longest:
            (self._sender.mesh.network or SOCKETS).sleep(longest)


class _AsyncHands:
    """What the asyncio driver acts with, for one request."""

    __slots__ = ("_request", "_sender")

    def __init__(self, sender: AsyncSender, request: Request) -> None:
        self._sender = sender
        self._request = request

    async def send(self, attempt: Attempt) -> AsyncResponse | Failed:
        request, sender = self._request, self._sender
        if attempt.tls is not None:
            attempt = introduced(attempt, attempt.tls, sender.mesh.telemetry)
        return await sender.connections().send(attempt, request.body.acontent(), request.own)

    def several(self) -> "AsyncTries":
        from meshlib.dataplane.hedge import AsyncTries

        return AsyncTries(self.send, (self._sender.mesh.network or SOCKETS).asleep)

    def mirror(self, mirror: Mirror) -> None:
        self._sender.mirror(mirror, self._request)

    async def sleep(self, seconds: float) -> None:
        with self._request.own.pausing(seconds) as longest:
            await (self._sender.mesh.network or SOCKETS).asleep(longest)


def _lost(watched: Outbound, error: BaseException) -> None:
    if isinstance(error, FlightFailed):
        watched.failed(error.failed, error.facts)
    else:
        watched.gave_up()


def _watched(watched: Outbound, answer: Answer) -> Answer:
    """Tells of the head; of a body that is whole there is nothing more to tell."""
    body = answer.body
    watched.answered(answer.status, answer.headers, answer.facts, answer.version, own=answer.own)
    if isinstance(body, Body | AsyncBody):
        body.watched = watched
    else:
        watched.received = len(body)
        watched.end()
    return answer


def _leaves(view: View, request: Request, *, told: bool) -> bool:
    if proxies.is_outside(view, request.name, request.head.authority):
        return True
    if told:
        proxies.tell(request.name)
    return False


def _refuse_if_blocked(view: View, request: Request) -> None:
    table = view.tables.get(request.name)
    host = None if table is None else table.find_host(request.head.authority)
    if host is not None and host.blocks:
        detail = f"{request.name} is unknown, and outboundTrafficPolicy is REGISTRY_ONLY"
        raise FlightFailed(Failed(Failure.CONNECT_FAILED, detail), Facts(route=BLOCK_ALL))
