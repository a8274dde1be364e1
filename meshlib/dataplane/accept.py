"""A server's port: each new connection is looked at, secured as the mesh asks, and given to a protocol.

    accepted ──► first byte ──► TLS (22, RFC 8446 5.1)  ──► handshake ──► who is it? ──► protocol
                           └──► anything else           ──► plain text, if it is allowed ──► protocol

Rules:

- PERMISSIVE takes both, STRICT resets plain text, DISABLE looks at nothing.
- The policy and the certificate are those of the moment: a change counts for the next connection.
- A byte of a request is read only after the peer was checked. Who may not be served is cut off.
- Connections that say nothing, or shake hands slowly, are cut off after `PATIENCE` seconds, and there are
  at most `MOST_STRANGERS` of them at a time; then the oldest goes.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from meshlib.core.mtls import InboundMode, ServerTls
from meshlib.core.request import Peer
from meshlib.dataplane.tls import Contexts, asked_name, words

log = logging.getLogger(__name__)

PATIENCE = 10.0
MOST_STRANGERS = 1000
HTTP1 = ("istio-http/1.1", "istio-http/1.0", "istio", "http/1.1", "http/1.0")
"""What HTTP/1.1 is called in ALPN, by sidecars and by everybody else."""
_HANDSHAKE = b"\x16"
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.1


class Port(Protocol):
    """What a port asks of its callers now."""

    @property
    def tls(self) -> ServerTls:
        """The policy."""
        ...

    @property
    def contexts(self) -> Contexts | None:
        """The workload's certificate; None: it has none, and nothing but plain text can be taken."""
        ...


MakeProtocol = Callable[[Peer], asyncio.Protocol]


class Acceptor:
    """Serves listening sockets on the running event loop. Has what asyncio.Server has of a server's end."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        port: Port,
        make: MakeProtocol,
        speaks: Sequence[str] = HTTP1,
    ) -> None:
        """Starts at once. `make` gives the protocol for a peer that may be served; `speaks` is its ALPN."""
        self._speaks = frozenset(speaks)
        self.sockets = tuple(sockets)
        self._port = port
        self._make = make
        self._strangers: dict[asyncio.Task[None], None] = {}
        self._accepting = [asyncio.ensure_future(self._accept(one)) for one in self.sockets]

    def __repr__(self) -> str:
        return f"<Acceptor of {len(self.sockets)} sockets, {len(self._strangers)} strangers>"

    def close(self) -> None:
        """Takes no more connections; those that are being looked at are cut off."""
        for task in (*self._accepting, *self._strangers):
            task.cancel()
        for one in self.sockets:
            one.close()

    async def wait_closed(self) -> None:
        """Waits until nothing of it is left."""
        tasks = (*self._accepting, *self._strangers)
        if tasks:
            await asyncio.wait(tasks)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return
                log.warning("a connection can't be accepted: %s", error)
                await asyncio.sleep(_PAUSE if error.errno in _FULL else 0)
                continue
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
            async with asyncio.timeout(PATIENCE):
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
        loop, policy, contexts = asyncio.get_running_loop(), self._port.tls, self._port.contexts
        if policy.mode is InboundMode.DISABLE:
            encrypted = False
        else:
            first = await _first_byte(accepted)
            if not first:
                accepted.close()
                return
            encrypted = first == _HANDSHAKE
        if not encrypted:
            if policy.mode is InboundMode.STRICT:
                log.info("plain text from %s is refused: mutual TLS is STRICT", _name(accepted))
                accepted.close()  # what it sent is unread: the kernel resets the connection
                return
            await loop.connect_accepted_socket(lambda: _Door(self._make, None), accepted)
            return
        if contexts is None:
            log.warning("a TLS connection from %s is refused: there is no certificate", _name(accepted))
            accepted.close()
            return
        policy = replace(policy, alpn=tuple(name for name in policy.alpn if name in self._speaks))
        check = _Check(contexts, policy)
        context = contexts.server(policy)
        await loop.connect_accepted_socket(
            lambda: _Door(self._make, check), accepted, ssl=context, ssl_handshake_timeout=PATIENCE
        )


class _Check:
    """Who a TLS peer is."""

    def __init__(self, contexts: Contexts, policy: ServerTls) -> None:
        self._contexts = contexts
        self._policy = policy

    def principal(self, transport: asyncio.BaseTransport) -> str:
        return self._contexts.caller(self._policy, transport.get_extra_info("ssl_object"))


class _Door(asyncio.Protocol):
    """Stands before the real protocol until the peer is known; then it is out of the way."""

    def __init__(self, make: MakeProtocol, check: _Check | None) -> None:
        self._make = make
        self._check = check

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream's
        try:
            principal = "" if self._check is None else self._check.principal(transport)
            peer = peer_of(transport, principal)
        except OSError as error:
            log.info("a connection is refused: %s", words(error))
            transport.abort()
            return
        protocol = self._make(peer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def peer_of(transport: asyncio.BaseTransport, principal: str) -> Peer:
    """The peer of a connection, whose certificate was checked and said `principal`."""
    secured = transport.get_extra_info("ssl_object")
    shown = secured.getpeercert(binary_form=True) if principal else None
    return Peer(
        _address(transport.get_extra_info("peername")),
        _address(transport.get_extra_info("sockname")),
        principal,
        asked_name(secured),
        secured is not None,
        hashlib.sha256(shown).hexdigest() if shown else "",
        dns=tuple(name for kind, name in secured.getpeercert()["subjectAltName"] if kind == "DNS")
        if shown
        else (),
    )


def _address(found: object) -> tuple[str, int]:
    if isinstance(found, tuple) and len(found) >= 2:
        return str(found[0]), int(found[1])
    return "", 0


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
