"""The TLS end of a piped connection, over asyncio's plain sockets.

asyncio's own TLS closes both directions as soon as one ends, and a client whose certificate is refused sees
a broken connection instead of the alert that says why. Rules:

- A failed handshake sends its alert before the connection closes.
- The peer's end of sending ends that direction only; so does ours.
- What is decrypted is handed on at once, or stays encrypted and unread while the other end is full.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Protocol, cast

from meshlib.identity.pem import to_der

CHUNK = 64 * 1024
BUFFER = 256 * 1024
"""Bytes that wait in each direction before the sender is no longer read."""


class Writable(Protocol):
    """The other end of a pipe, as an `asyncio.Transport` has it."""

    def write(self, data: bytes, /) -> None:
        """Takes it all; whoever writes too much is paused."""

    def write_eof(self) -> None:
        """No more will be written."""

    def close(self) -> None:
        """Delivers what was written, then closes."""

    def pause_reading(self) -> None:
        """Nothing is read from it."""

    def resume_reading(self) -> None:
        """It is read again."""


class Secured(asyncio.Protocol):
    """One accepted connection. Read from only once `join` says where to."""

    def __init__(self, context: ssl.SSLContext, flush: float, heard: Callable[[bytes], None]) -> None:
        """`flush`: the seconds that the peer has to take what was written before `close`. `heard` is told
        what was read, before it is handed on; it may call `abort`, or `stop_reading`, and it is not.
        """
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._flush_seconds = flush
        self._heard = heard
        self._raw: asyncio.Transport | None = None
        self._other: Writable | None = None
        self._paused = True
        self._stopped = False
        self._heard_all = False
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        self.shaken: asyncio.Future[None] = loop.create_future()
        """Done when the handshake is; OSError: it failed."""
        self.lost = asyncio.Event()

    def chain(self) -> tuple[bytes, ...]:
        """From the peer's certificate to one of the context's roots, in DER; empty: it showed none."""
        if self._tls.getpeercert(binary_form=True) is None:
            return ()
        tls: Any = self._tls
        if hasattr(tls, "get_verified_chain"):
            return tuple(tls.get_verified_chain())
        # Python before 3.13 has it without a name.
        return tuple(to_der("".join(one.public_bytes() for one in tls._sslobj.get_verified_chain())))  # noqa: SLF001

    def join(self, other: Writable) -> None:
        """What is read goes there from now on."""
        self._other = other
        self.resume_reading()

    # As the other end sees it

    def write(self, data: bytes) -> None:
        """To the peer."""
        if self._closing or self._raw is None:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError:
            self.abort()
            return
        self._flush()

    def write_eof(self) -> None:
        """Says to the peer that nothing follows; closes if the peer has said so, too."""
        self.close()

    def close(self) -> None:
        """Delivers what was written, says that nothing follows, and waits a little for the peer to close."""
        if self._closing or self._raw is None:
            return
        self._closing = True
        with contextlib.suppress(ssl.SSLError):  # it waits for the peer's word, and we don't
            self._tls.unwrap()
        self._flush()
        if self._heard_all:
            self._raw.close()
        elif self._raw.can_write_eof() and not self._raw.is_closing():
            self._raw.write_eof()
            self._raw.resume_reading()
        self._timer = asyncio.get_running_loop().call_later(self._flush_seconds, self.abort)

    def abort(self) -> None:
        """Ends it now."""
        if self._raw is not None:
            self._raw.abort()

    def end(self) -> None:
        """Ends it now, but for an alert that is on its way."""
        if self._raw is not None and not self._raw.is_closing():
            self.abort()

    def pause_reading(self) -> None:
        """The other end is full."""
        self._paused = True
        if self._raw is not None and not self._closing:
            self._raw.pause_reading()

    def stop_reading(self) -> None:
        """Nothing that the peer sends is taken any more."""
        self.pause_reading()
        self._stopped = True

    def resume_reading(self) -> None:
        """The other end has room."""
        if self._paused and not self._stopped and self._raw is not None and not self._closing:
            self._paused = False
            self._raw.resume_reading()
            asyncio.get_running_loop().call_soon(self._pump)

    # As asyncio calls it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._raw.set_write_buffer_limits(high=BUFFER)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._incoming.write(data)
        if not self.shaken.done():
            self._shake()
        else:
            self._pump()

    def eof_received(self) -> bool:
        self._heard_all = True
        if self._closing or not self.shaken.done():
            self._fail(ConnectionResetError("the client went away in the handshake"))
            return False
        self._pump()
        return True

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._fail(exc or ConnectionResetError("the connection broke in the handshake"))
        self.lost.set()
        if self._other is not None:
            self._other.close()

    # Between the two

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except (ssl.SSLError, OSError) as error:
            self._flush()  # the alert
            self._fail(error)
            if self._raw is not None:
                self._raw.close()
            return
        self._flush()
        if self._raw is not None:
            self._raw.pause_reading()
        if not self.shaken.done():
            self.shaken.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self.shaken.done():
            self.shaken.set_exception(error)
            self.shaken.exception()  # nobody may be waiting for it any more

    def _pump(self) -> None:
        """Decrypts what there is, and hands it on."""
        if self._paused or self._closing or self._other is None:
            return
        found: list[bytes] = []
        ended = False
        try:
            while not ended:
                data = self._tls.read(CHUNK)
                found.append(data)
                ended = not data
        except ssl.SSLWantReadError:
            # An end without TLS's own is one, too: HTTP/2 knows by itself what is whole. OpenSSL is not told,
            # or it would not let us answer.
            ended = self._heard_all
        except ssl.SSLZeroReturnError:
            ended = True
        except ssl.SSLError:
            self._flush()
            self.abort()
            return
        self._flush()
        if data := b"".join(found):
            self._heard(data)
            if self._raw is None or self._raw.is_closing() or self._stopped:
                return
            self._other.write(data)
        if ended:
            self._paused = True
            self._heard_all = True
            self._other.write_eof()

    def _flush(self) -> None:
        if self._raw is not None and self._outgoing.pending:
            self._raw.write(self._outgoing.read())
