"""`open_connection`: asyncio's StreamReader and StreamWriter on a connection of the mesh.

    loop's transport ──► (mesh's TLS) ──► (application's TLS) ──► StreamReaderProtocol

A connection that ends, by whichever side, gives its slot back when asyncio says so. One that is idle or open
for too long is aborted by a timer of its loop.
"""

import asyncio
import math
import socket
import ssl
from collections.abc import Iterable
from typing import Any, cast

from meshlib.core.request import Failed
from meshlib.core.tcp import Connect, Linked, Lookup, Refuse
from meshlib.core.tunnel import Tunnel
from meshlib.dataplane.http.local import path_of
from meshlib.dataplane.http.options import set_options
from meshlib.dataplane.http.secure import check, context_for
from meshlib.dataplane.proxy_protocol import proxy_header
from meshlib.dataplane.tcp.asked import Asked, Meshed, failed, seconds_of, unspoken
from meshlib.dataplane.tcp.errors import of_mesh, of_refusal
from meshlib.dataplane.tcp.link import Link
from meshlib.dataplane.tcp.sockets import connected
from meshlib.dataplane.tcp.tunnel import Answer, asking
from meshlib.dataplane.tls_session import Session
from meshlib.dataplane.tls_transport import Secured, shaken
from meshlib.errors import Closed, ControlError

HANDSHAKE_SECONDS = 60.0
"""For TLS of the application's own, as in asyncio."""
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Waiting(asyncio.Protocol):
    """Holds a transport until it is known who has it: nothing that the peer says is lost."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing is read yet."""
        cast(asyncio.Transport, transport).pause_reading()  # uvloop's is none by inheritance


class _Protocol(asyncio.StreamReaderProtocol):
    """Counts, notices the end, and ends what is idle or old."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._of = loop
        self._link: Link | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._began = self._moved = loop.time()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._moved = self._of.time()
        if self._link is not None:
            self._link.received += len(data)
        super().data_received(data)

    def wrote(self, count: int) -> None:
        """The application has written."""
        self._moved = self._of.time()
        if self._link is not None:
            self._link.sent += count

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        if self._timer is not None:
            self._timer.cancel()
        if self._link is not None:
            self._link.end()
        super().connection_lost(exc)

    def start(self, link: Link, transport: asyncio.Transport) -> None:
        """It is the application's from now on."""
        self._link = link
        _on_top(transport, self)
        self._look(transport)

    def _look(self, transport: asyncio.Transport) -> None:
        link, now = self._link, self._of.time()
        if link is None or not link.open:
            return
        idle, longest = link.linked.idle_timeout, link.linked.max_duration
        quiet_until = self._moved + idle if idle else math.inf
        until = self._began + longest if longest else math.inf
        nearest = min(quiet_until, until)
        if now >= nearest:
            link.end("DT" if now >= until else "-")
            transport.abort()
        elif nearest < math.inf:
            self._timer = self._of.call_at(nearest, self._look, transport)


class _Writer(asyncio.StreamWriter):
    """Counts."""

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: _Protocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._wrote = protocol.wrote

    def write(self, data: "bytes | bytearray | memoryview") -> None:
        """As of any StreamWriter."""
        self._wrote(len(data))
        super().write(data)

    def writelines(self, data: "Iterable[bytes | bytearray | memoryview]") -> None:
        """As of any StreamWriter."""
        self.write(b"".join(data))


async def open_connection(
    mesh: Meshed,
    host: str,
    port: int,
    limit: int,
    context: ssl.SSLContext | bool | None,
    server_hostname: str | None,
) -> _Streams:
    """See `meshlib.open_connection`."""
    loop = asyncio.get_running_loop()
    asked = Asked.of(host, port, server_hostname)
    own = _own_tls(context, asked, server_hostname)
    try:
        view = await mesh.aprepare(asked.called.target)
    except (ControlError, Closed) as error:
        raise of_mesh(error) from error
    flow = asked.flow(mesh, view, None)
    watched = asked.watched(mesh)
    transport: asyncio.Transport | None = None
    event: Any = None
    try:
        while True:
            match flow.send(event):
                case Lookup():
                    event = await _lookup(loop, asked)
                case Connect() as connect:
                    found = await _try(mesh, asked, connect, last=own is None)
                    transport = None if isinstance(found, Failed) else found
                    event = found if isinstance(found, Failed) else None
                case Refuse(why, facts):
                    if watched is not None:
                        watched.refused(facts)
                    raise of_refusal(why, facts)
                case Linked() as linked:
                    assert transport is not None  # noqa: S101 - after a Connect
                    if own is not None:
                        transport = await _secured(transport, own, last=True)
                    reader = asyncio.StreamReader(limit, loop)
                    protocol = _Protocol(reader, loop)
                    protocol.start(Link(flow, linked, watched), transport)
                    return reader, _Writer(transport, protocol, reader, loop)
    except BaseException:
        flow.close()
        if transport is not None:
            transport.abort()
        raise


def _own_tls(context: ssl.SSLContext | bool | None, asked: Asked, name: str | None) -> Session | None:
    """The application's own TLS, between it and its server."""
    if context is None or context is False:
        if name:
            raise ValueError("server_hostname is for ssl")
        return None
    made = ssl.create_default_context() if isinstance(context, bool) else context
    return Session(made, name=asked.called.host if name is None else name)


async def _lookup(loop: asyncio.AbstractEventLoop, asked: Asked) -> tuple[str, ...]:
    try:
        found = await loop.getaddrinfo(asked.called.host, asked.called.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(str(one[4][0]) for one in found)


async def _try(mesh: Meshed, asked: Asked, connect: Connect, *, last: bool) -> asyncio.Transport | Failed:
    """A transport that is not read yet. `last`: no other TLS comes on top."""
    if connect.tunnel is not None and connect.tunnel.post:
        return await _posted(mesh, asked, connect)
    if (failure := unspoken(connect)) is not None:
        return failure
    seconds = seconds_of(connect, mesh.clock)
    made: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(seconds):
            path, loop = path_of(connect.address), asyncio.get_running_loop()
            if path is None:
                made, _ = await loop.create_connection(_Waiting, *connect.address)
                set_options(made.get_extra_info("socket"), connect.upstream.keepalive)
            else:
                made, _ = await loop.create_unix_connection(_Waiting, path)
            if connect.upstream.proxy_protocol:
                made.write(proxy_header(connect.upstream.proxy_protocol, made.get_extra_info("socket")))
            if connect.tls is not None:
                contexts = mesh.contexts
                session = Session(context_for(connect.tls, contexts), name=asked.server_name(connect.tls))
                made = await _secured(made, session, last=last and connect.tunnel is None)
                check(connect.tls, contexts, session.tls)
            if connect.tunnel is not None:
                await _lead(made, connect.tunnel)
            return made
    except (OSError, UnicodeError, ValueError) as error:
        if made is not None:
            made.abort()
        return failed(error, seconds)
    except BaseException:
        if made is not None:
            made.abort()
        raise


async def _posted(mesh: Meshed, asked: Asked, connect: Connect) -> asyncio.Transport | Failed:
    """Through a tunnel of chunks: a thread makes it, and another moves its bytes."""
    loop = asyncio.get_running_loop()
    task = loop.run_in_executor(None, connected, mesh, asked, connect)
    try:
        found = await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close)
        raise
    if isinstance(found, Failed):
        return found
    found.setblocking(False)
    made, _ = await loop.create_connection(_Waiting, sock=found)
    return made


def _close(task: "asyncio.Future[socket.socket | Failed]") -> None:
    if not task.cancelled() and isinstance(found := task.result(), socket.socket):
        found.close()


class _Led(asyncio.Protocol):
    """Asks for a tunnel, and keeps what comes through it until it is known who has it."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._answer = Answer()
        self._tunnel = tunnel
        self._transport: asyncio.Transport | None = None
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def rest(self) -> bytes:
        return self._answer.rest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(asking(self._tunnel))

    def data_received(self, data: bytes) -> None:
        if self.open.done():  # a transport that had read more than it was to give
            self._answer.rest += data
            return
        try:
            done = self._answer.receive(data)
        except OSError as error:
            self.open.set_exception(error)
            return
        if done:
            assert self._transport is not None  # noqa: S101 - it has given bytes
            self._transport.pause_reading()
            self.open.set_result(None)

    def eof_received(self) -> None:
        if not self.open.done():
            self.data_received(b"")

    def connection_lost(self, error: Exception | None) -> None:
        if not self.open.done():
            self.open.set_exception(error or ConnectionResetError("the proxy closed the connection"))


async def _lead(made: asyncio.Transport, tunnel: Tunnel) -> None:
    led = _Led(tunnel)
    _on_top(made, led)
    await led.open


async def _secured(below: asyncio.Transport, session: Session, *, last: bool) -> Secured:
    made = Secured(session, _Waiting(), gathers=last)
    _on_top(below, made)
    async with asyncio.timeout(HANDSHAKE_SECONDS):
        await shaken(made)
    return made


def _on_top(below: asyncio.Transport, above: asyncio.Protocol | Secured) -> None:
    """What waits is that protocol's from now on. OSError: there is nothing any more."""
    if below.is_closing():
        raise ConnectionResetError("the peer closed the connection")
    before = below.get_protocol()
    below.set_protocol(above)
    above.connection_made(below)
    if isinstance(before, _Led) and before.rest:
        above.data_received(before.rest)
    below.resume_reading()
