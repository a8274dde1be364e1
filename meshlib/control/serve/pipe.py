"""One connection of the front: a client's TLS outside, gRPC inside, and the bytes between them.

Neither side is read from while the other doesn't take what was read. What either wrote before it closed is
delivered.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from meshlib.control.serve.tls import BUFFER, Secured
from meshlib.control.serve.unfinished import Unfinished
from meshlib.identity.chain import BadCertificate

if TYPE_CHECKING:
    from meshlib.control.serve.front import Front, Peer

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
"""How long a client may take what was written before a connection was closed."""


class Inside(asyncio.Protocol):
    """The end at gRPC: what it reads, the other writes."""

    def __init__(self, outside: Secured, told: Callable[[bytes], None]) -> None:
        self._outside = outside
        self._told = told
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=BUFFER)
        self._outside.join(self.transport)

    def data_received(self, data: bytes) -> None:
        self._told(data)
        self._outside.write(data)

    def eof_received(self) -> bool:
        self._outside.write_eof()
        return False

    def pause_writing(self) -> None:
        self._outside.pause_reading()

    def resume_writing(self) -> None:
        self._outside.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._outside.close()


class Pipe:
    """One connection, from the handshake until both ends are closed."""

    def __init__(self, front: "Front", accepted: socket.socket, peer: "Peer") -> None:
        self.peer = peer
        peer.close = self.abort
        peer.known = lambda: front.strangers.known(self)
        self._front = front
        self._accepted: socket.socket | None = accepted
        self._outside: Secured | None = None
        self._unfinished = Unfinished()
        self._refused = False
        self.name = ""
        """How gRPC calls this peer; empty before it does."""
        self.task = asyncio.create_task(self._run(accepted))

    def abort(self) -> None:
        """Ends it now."""
        if self._outside is not None:
            self._outside.abort()
        if not self.name:
            self.task.cancel()

    def ended(self) -> None:
        """The task is over."""
        if self._accepted is not None:
            self._accepted.close()

    async def _run(self, accepted: socket.socket) -> None:
        front = self._front
        try:
            offer = front.credentials.offer()
            outside = self._outside = Secured(offer.context, FLUSH_SECONDS, self._heard)
            self._accepted = None  # from here on the transport closes it
            await asyncio.get_running_loop().connect_accepted_socket(lambda: outside, accepted)
            async with asyncio.timeout(front.limits.handshake_seconds):
                await outside.shaken
            self._identify(outside.chain(), offer.roots)
            front.shaken(self)
            if self.peer.shown is None:
                front.strangers.came(self, self.abort)
            inside = Inside(outside, self._told)
            self.name = await front.connect(self.peer, inside)
        except OSError as error:  # TimeoutError is one of them
            log.info("%s: no connection: %s", self.peer.address, str(error) or "the handshake took too long")
        except Exception:
            log.exception("%s: no connection", self.peer.address)
        else:
            await outside.lost.wait()
            await inside.lost.wait()
        finally:
            if self._outside is not None and not self._outside.lost.is_set():
                self._outside.end()

    def _identify(self, chain: Sequence[bytes], roots: frozenset[str]) -> None:
        if not chain:
            return
        try:
            self.peer.shown = self._front.credentials.identify(chain, roots)
        except BadCertificate as error:
            self.peer.refusal = str(error)

    def _heard(self, data: bytes) -> None:
        self._front.strangers.said(self, len(data))
        self._holds(self._unfinished.heard(data))

    def _told(self, data: bytes) -> None:
        self._holds(self._unfinished.told(data))

    def _holds(self, size: int) -> None:
        if not self._refused:
            self._front.budget.holds(self, self.peer.caller, size, self._refuse)

    def _refuse(self, why: str) -> None:
        self._refused = True
        log.warning("%s, %s is refused: %s", self.peer.address, self.peer.caller, why)
        if self._outside is not None:
            self._outside.stop_reading()
        self._front.refused(self.name, why)
        self.peer.hang_up()
