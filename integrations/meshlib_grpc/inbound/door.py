"""A port of the mesh before a gRPC server: each connection is looked at, secured, and led on to gRPC.

    accepted ──► `accept`: first byte, handshake, who is it? ──► bytes to and fro ──► gRPC, at a local socket

gRPC for Python takes no socket that somebody else has accepted, and no port of it takes both TLS and plain
text; so PERMISSIVE, and a policy that changes while the port is open, need somebody before it.

Rules:

- gRPC listens at a socket of the file system, in a folder that only this user can enter. Each connection to
  it is bound to a name that nobody can guess, which gRPC gives as its peer: by that it is known who is at the
  other end. Who connects there in another way is nobody, and is refused (`judging`).
- The name is known to the judge before a byte is led on, and forgotten when the connection has ended.
- Nothing is kept here: who is slow to read makes the other wait.
- When one end is gone the other is closed, once all is sent.
"""

import asyncio
import logging
import os
import shutil
import socket
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from meshlib.core.request import Peer
from meshlib.dataplane.accept import Acceptor
from meshlib.dataplane.doorstep import Port
from meshlib.errors import ConfigError
from meshlib.socket_folder import guessed_by_nobody, socket_folder
from meshlib_grpc.inbound.peers import Met

log = logging.getLogger(__name__)

SPEAKS = ("istio-http/2", "istio", "h2")
"""What HTTP/2 is called in ALPN."""
_SOCKET = "grpc"
_BUFFER = 64 * 1024


class Passage:
    """Where gRPC listens behind the ports of one server."""

    def __init__(self) -> None:
        self.met = Met()
        self._folder = Path()
        self._gone: Callable[[], object] = lambda: None

    def open(self) -> str:
        """Makes room for gRPC's socket; its address, for gRPC. ConfigError: there is none."""
        try:
            self._folder = folder = socket_folder()
        except OSError as error:
            raise ConfigError(f"there is no place for gRPC's socket: {error}") from None
        self._gone = weakref.finalize(self, _remove, str(folder), os.getpid())  # also at the process's end
        return f"unix:{folder / _SOCKET}"

    def connect(self, peer: Peer) -> tuple[socket.socket, str]:
        """A connection to gRPC for that peer, and its name. OSError: gRPC does not listen."""
        made, name = _named(self._folder)
        try:
            self.met.come(name, peer)
            made.connect(str(self._folder / _SOCKET))
        except BaseException:
            self.met.gone(name)
            made.close()
            raise
        return made, name

    def close(self) -> None:
        """Nothing is left of it."""
        self._gone()


def _named(folder: Path) -> tuple[socket.socket, str]:
    """A socket with a name that nobody can guess, and the name. OSError."""
    path = folder / guessed_by_nobody()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.bind(str(path))
        path.unlink()  # the name stays the socket's
    except BaseException:
        made.close()
        raise
    return made, f"unix:{path}"


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # a fork's child has no server
        shutil.rmtree(folder, ignore_errors=True)


class Door:
    """One port, on the running loop."""

    def __init__(
        self, listening: Sequence[socket.socket], port: Port, passage: Passage, patience: float
    ) -> None:
        """Takes connections at once. `patience`: see `Acceptor`."""
        self._passage = passage
        self._open: set[_End] = set()
        # For all connections: what was read is led on at once.
        self._buffer = memoryview(bytearray(_BUFFER))
        self._acceptor = Acceptor(listening, port, self._admit, SPEAKS, patience)

    def stop(self) -> None:
        """Takes no more connections; those that there are stay."""
        self._acceptor.close()

    async def close(self, patience: float) -> None:
        """Ends all connections; after `patience` seconds, those too that do not take the rest."""
        self.stop()
        await self._acceptor.wait_closed()
        ends = tuple(self._open)
        for end in ends:
            end.close()
        await _lost(ends, patience)
        for end in ends:
            end.abort()
        await _lost(ends, None)

    def _admit(self, peer: Peer) -> asyncio.Protocol:
        return cast(asyncio.Protocol, _Front(peer, self._passage, self._open, self._buffer))


async def _lost(ends: "Sequence[_End]", timeout: float | None) -> None:  # noqa: ASYNC109 - asyncio.wait's
    if ends:
        await asyncio.wait([end.lost for end in ends], timeout=timeout)


class _End(asyncio.BufferedProtocol):
    """One end of a connection that is led on."""

    def __init__(self, ends: "set[_End]", buffer: memoryview) -> None:
        self._ends = ends
        self._buffer = buffer
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        self.transport = cast(asyncio.Transport, transport)
        self._ends.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to put what comes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """The same; of TLS, one record."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        """This end is slow to read."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """It has read."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool | None:
        """This end has said all; HTTP/2 does not end half."""
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the other, too."""
        self.transport = None
        self._ends.discard(self)
        if not self.lost.done():
            self.lost.set_result(None)
        if self.other is not None:
            self.other.close()

    def close(self) -> None:
        """Once all is sent."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """At once."""
        if self.transport is not None:
            self.transport.abort()


class _Front(_End):
    """The caller's end."""

    def __init__(self, peer: Peer, passage: Passage, ends: set[_End], buffer: memoryview) -> None:
        super().__init__(ends, buffer)
        self._peer = peer
        self._passage = passage
        self._name = ""
        self._leading: asyncio.Task[None] | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Reads nothing before gRPC is reached, as far as the loop takes that."""
        super().connection_made(transport)
        assert self.transport is not None  # noqa: S101 - set above
        self.transport.pause_reading()
        self._leading = asyncio.ensure_future(self._lead())

    def data_received(self, data: bytes) -> None:
        """uvloop reads once, whatever it is told in `connection_made`."""
        if self.other is not None:
            super().data_received(data)
        elif self.transport is not None:
            self._early.append(data)
            self.transport.pause_reading()

    async def _lead(self) -> None:
        loop = asyncio.get_running_loop()
        back = _End(self._ends, self._buffer)
        back.other = self
        try:
            connection, self._name = self._passage.connect(self._peer)
            try:
                await loop.create_unix_connection(lambda: back, sock=connection)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            log.warning("a connection can't be led to gRPC: %s", error)
            self.abort()
            return
        self.other = back
        if self.transport is None:
            back.abort()
            return
        for data in self._early:
            super().data_received(data)
        self._early.clear()
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Its name is nobody's."""
        super().connection_lost(exc)
        if self._name:
            self._passage.met.gone(self._name)
