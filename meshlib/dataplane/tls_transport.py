"""TLS between a transport of asyncio and a protocol: a handshake, then records, in place.

    loop's transport ──► Secured ──► protocol            protocol ──► Secured ──► loop's transport

Rules:

- The protocol hears of the connection when the handshake is done, and not at all when it fails. How long it
  may take is the business of who waits for `shaken`.
- What a protocol writes in one turn of the loop leaves as one record, where it `gathers`: a head and its body
  are often written apart. What fills a record does not wait.
- Flow control is that of the transport beneath: nothing is kept here but what one read brought.
- An end says so to the peer, and does not wait for an answer. A peer that does not take the rest is cut off
  after `patience` seconds.
"""

import asyncio
import ssl
import threading
from typing import Any, cast

from meshlib.dataplane.tls_session import RECORD, Session

FAREWELL = 3.0
"""Seconds for the rest of an answer."""
_NOBODY = asyncio.Protocol()
_BUFFER = 256 * 1024
_of_thread = threading.local()


def _buffer() -> memoryview:
    """Where a loop's transports put what they read, to be taken at once: one for all of a thread.

    Without it the loop makes an object of this size for each read, which the system maps and unmaps.
    """
    found: memoryview | None = getattr(_of_thread, "buffer", None)
    if found is None:
        found = _of_thread.buffer = memoryview(bytearray(_BUFFER))
    return found


class Secured(asyncio.Transport, asyncio.BufferedProtocol):
    """The transport of a protocol, and the protocol of a transport."""

    def __init__(
        self, session: Session, protocol: asyncio.Protocol, *, gathers: bool, patience: float = FAREWELL
    ) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._buffer = _buffer()
        self._session = session
        self._protocol: asyncio.BaseProtocol = protocol
        self._gathers = gathers
        self._patience = patience
        self._below: asyncio.Transport | None = None
        self._open = False
        """Whether the protocol knows of the connection."""
        self._ended = False
        """Whether nothing is to be sent or given any more."""
        self._paused = False
        self._error: Exception | None = None
        self._unsent: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self.shaken: asyncio.Future[None] = self._loop.create_future()
        """Done when the protocol has the connection. OSError: there is none."""

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open" if self._open else "shaking hands"
        return f"<Secured {state} of {self._protocol!r}>"

    # the transport beneath calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._below = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._shake(self._below)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to put what comes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Records came, or parts of them."""
        self.take(self._buffer[:nbytes])

    def take(self, data: "bytes | memoryview") -> None:
        """The same, of bytes that somebody else has read."""
        if self._ended or self._below is None:
            return
        self._session.receive(data)
        if self._open:
            self._deliver()
        else:
            self._shake(self._below)

    def data_received(self, data: bytes) -> None:
        """The same, from another of this kind beneath: TLS of an application within the mesh's."""
        self.take(data)

    def eof_received(self) -> None:
        """The peer left without a word, as many do."""
        self._peer_ended(farewell=False)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        self._ended = True
        self._below = None
        self._unsent.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._fail(error or ConnectionResetError("the peer closed the connection"))
        protocol, self._protocol = self._protocol, _NOBODY
        if self._open:
            self._open = False
            protocol.connection_lost(error or self._error)

    def pause_writing(self) -> None:
        """The peer is slow to read."""
        if self._open:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """It has read again."""
        if self._open:
            self._protocol.resume_writing()

    def _shake(self, below: asyncio.Transport) -> None:
        try:
            done = self._session.shake()
        except ssl.SSLError as error:
            self._break(error)
            return
        below.write(self._session.outgoing())
        if done:
            self._open = True
            self._protocol.connection_made(self)
            if not self.shaken.done():
                self.shaken.set_result(None)
            self._deliver()

    def _deliver(self) -> None:
        """Gives the protocol what is here."""
        while not self._paused and not self._ended and self._below is not None:
            try:
                data = self._session.next()
            except ssl.SSLError as error:
                self._break(error)
                return
            if data is None:
                if said := self._session.outgoing():
                    self._below.write(said)
                return
            if not data:
                self._peer_ended(farewell=True)
                return
            self._protocol.data_received(data)  # type: ignore[attr-defined]

    def _peer_ended(self, farewell: bool) -> None:
        if self._open and not self._ended:
            self._protocol.eof_received()  # type: ignore[attr-defined]
        self._end(farewell)

    def _break(self, error: Exception) -> None:
        """Ends at once. The peer is told why, if it takes that."""
        self._ended = True
        self._error = error
        self._fail(error)
        if self._below is not None:
            self._below.write(self._session.outgoing())
            self._hang_up(self._below, 0.0)

    def _fail(self, error: Exception) -> None:
        if not self.shaken.done():
            self.shaken.set_exception(error)
            self.shaken.exception()  # who waited may be gone

    def _hang_up(self, below: asyncio.Transport, patience: float) -> None:
        below.close()
        if below.get_write_buffer_size():
            self._timer = self._loop.call_later(patience, below.abort)

    # the protocol calls these

    def write(self, data: "bytes | bytearray | memoryview") -> None:
        """Sends bytes of the application. After the end nothing happens, as with asyncio's own."""
        if not data or self._ended:
            return
        self._unsent.append(bytes(data))
        self._size += len(data)
        if not self._gathers or self._size >= RECORD:
            self._flush()
        elif len(self._unsent) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self._unsent or self._below is None:
            return
        data = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
        self._unsent.clear()
        self._size = 0
        try:
            sealed = self._session.seal(data)
        except ssl.SSLError as error:
            self._break(error)
            return
        self._below.write(sealed)

    def close(self) -> None:
        """Ends the connection once all is sent."""
        self._end(farewell=True)

    def _end(self, farewell: bool) -> None:
        if not self._open:
            self.abort()
            return
        self._flush()
        if self._ended or self._below is None:
            return
        self._ended = True
        if farewell:
            self._below.write(self._session.farewell())
        self._hang_up(self._below, self._patience)

    def abort(self) -> None:
        """Ends the connection at once."""
        self._ended = True
        self._unsent.clear()
        if self._below is not None:
            self._below.abort()

    def is_closing(self) -> bool:
        """Whether it has ended, or will."""
        return self._ended or (self._below is not None and self._below.is_closing())

    def can_write_eof(self) -> bool:
        """TLS has no half of a connection."""
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Another protocol from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is given what comes."""
        return self._protocol

    def is_reading(self) -> bool:
        """Whether what comes is given at once."""
        return not self._paused and not self._ended

    def pause_reading(self) -> None:
        """Gives nothing until `resume_reading`, and lets the peer wait."""
        if not self._paused and not self._ended and self._below is not None:
            self._paused = True
            self._below.pause_reading()

    def resume_reading(self) -> None:
        """Goes on, with the next turn of the loop."""
        if self._paused and not self._ended:
            self._paused = False
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        try:
            self._deliver()
        except BaseException:
            self.abort()
            raise
        if not self._paused and not self._ended and self._below is not None:
            self._below.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Bytes that have not left yet."""
        return self._size + (self._below.get_write_buffer_size() if self._below is not None else 0)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Of the transport beneath."""
        return self._below.get_write_buffer_limits() if self._below is not None else (0, 0)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Of the transport beneath."""
        if self._below is not None:
            self._below.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, `sslcontext`, `peercert`, `cipher`, and what the transport beneath knows."""
        match name:
            case "ssl_object":
                return self._session.tls
            case "sslcontext":
                return self._session.tls.context
            case "peercert":
                return self._session.tls.getpeercert()
            case "cipher":
                return self._session.tls.cipher()
            case _:
                return default if self._below is None else self._below.get_extra_info(name, default)


async def shaken(secured: Secured) -> None:
    """Waits for the handshake; who does not wait any longer has no connection. OSError: it failed."""
    try:
        await secured.shaken
    except BaseException:
        secured.abort()
        raise
