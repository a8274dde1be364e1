"""A server's port: each new connection is looked at, secured as the mesh asks, and given to a protocol.

    accepted ──► what `doorstep` decides, after at most a handshake ──► who is it? ──► protocol

Rules:

- A byte of a request is read only after the peer was checked. Who may not be served is cut off.
- Connections that say nothing, or shake hands slowly, are cut off after `patience` seconds, and there are
  at most `MOST_STRANGERS` of them at a time; then the oldest goes.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import cast

from meshlib.core.request import Peer
from meshlib.dataplane.doorstep import HTTP1, PATIENCE, Port, Refused, Terms, peer_of
from meshlib.dataplane.tls import words
from meshlib.dataplane.tls_session import Session
from meshlib.dataplane.tls_transport import Secured, shaken

log = logging.getLogger(__name__)

MOST_STRANGERS = 1000
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.1


MakeProtocol = Callable[[Peer], asyncio.Protocol]


class Acceptor:
    """Serves listening sockets on the running event loop. Has what asyncio.Server has of a server's end."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        port: Port,
        make: MakeProtocol,
        speaks: Sequence[str] = HTTP1,
        patience: float = PATIENCE,
    ) -> None:
        """Starts at once. `make` gives the protocol for a peer that may be served; `speaks` is its ALPN;
        `patience`: seconds for the first byte and the handshake.
        """
        self._patience = patience
        self._speaks = frozenset(speaks)
        self.sockets = tuple(sockets)
        self._port = port
        self._make = make
        self._strangers: dict[asyncio.Task[None], None] = {}
        self._loop = asyncio.get_running_loop()
        for one in self.sockets:
            one.setblocking(False)
            self._listen(one)

    def __repr__(self) -> str:
        return f"<Acceptor of {len(self.sockets)} sockets, {len(self._strangers)} strangers>"

    @property
    def strangers(self) -> int:
        """How many connections are being looked at."""
        return len(self._strangers)

    def stop(self) -> None:
        """Takes no more connections."""
        for one in self.sockets:
            if one.fileno() >= 0:
                self._loop.remove_reader(one)
                one.close()

    def close(self) -> None:
        """Takes no more connections; those that are being looked at are cut off."""
        self.stop()
        for task in self._strangers:
            task.cancel()

    async def wait_closed(self) -> None:
        """Waits until nothing of it is left."""
        if self._strangers:
            await asyncio.wait(tuple(self._strangers))

    def _listen(self, listening: socket.socket) -> None:
        # Not `loop.sock_accept`: what that has accepted when it is cancelled is lost.
        if listening.fileno() >= 0:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        """There is somebody, or was: others may listen there, too."""
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            log.warning("a connection can't be accepted: %s", error)
            if error.errno in _FULL:
                self._loop.remove_reader(listening)
                self._loop.call_later(_PAUSE, self._listen, listening)
            return
        if len(self._strangers) >= MOST_STRANGERS:
            next(iter(self._strangers)).cancel()
        task = asyncio.ensure_future(self._meet(accepted))
        self._strangers[task] = None
        task.add_done_callback(lambda done: self._strangers.pop(done, None))

    async def _meet(self, accepted: socket.socket) -> None:
        """One connection, until it has its protocol or is cut off."""
        try:
            accepted.setblocking(False)
            with contextlib.suppress(OSError):  # a socket of the file system
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._patience):
                await self._secure(accepted)
        except (TimeoutError, OSError) as error:
            log.debug(
                "a connection was cut off: %s", words(error) if isinstance(error, OSError) else "too slow"
            )
            accepted.close()
        except BaseException:
            accepted.close()
            raise

    async def _secure(self, accepted: socket.socket) -> None:
        loop, terms = asyncio.get_running_loop(), Terms(self._port, self._speaks)
        context = None
        if terms.look:
            first = await _first_byte(accepted)
            if not first:
                accepted.close()
                return
            try:
                context = terms.context(first)
            except Refused as error:
                log.info("a connection from %s is refused: %s", _name(accepted), error)
                accepted.close()  # what it sent is unread: the kernel resets the connection
                return
        if context is None:
            await loop.connect_accepted_socket(lambda: _Door(self._make, None), accepted)
            return
        secured = Secured(Session(context, server_side=True), _Door(self._make, terms), gathers=True)
        await loop.connect_accepted_socket(lambda: secured, accepted)
        await shaken(secured)


class _Door(asyncio.Protocol):
    """Stands before the real protocol until the peer is known; then it is out of the way."""

    def __init__(self, make: MakeProtocol, terms: Terms | None) -> None:
        """`terms` None: the connection is plain text."""
        self._make = make
        self._terms = terms

    def connection_made(self, below: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, below)  # uvloop's is none by inheritance
        try:
            secured = transport.get_extra_info("ssl_object")
            principal = "" if self._terms is None else self._terms.principal(secured)
            remote, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
            peer = peer_of(secured, principal, remote, local)
        except OSError as error:
            log.info("a connection is refused: %s", words(error))
            transport.abort()
            return
        protocol = self._make(peer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def _name(accepted: socket.socket) -> str:
    try:
        host, port = accepted.getpeername()[:2]
    except (OSError, ValueError):
        return "somebody"
    return f"{host}:{port}"


async def _first_byte(accepted: socket.socket) -> bytes:
    """Waits for the first byte and leaves it where it is; nothing: the peer closed."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return accepted.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            ready = asyncio.Event()
            loop.add_reader(accepted.fileno(), ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(accepted.fileno())
