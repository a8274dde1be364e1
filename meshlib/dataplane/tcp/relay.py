"""A plain socket in front of a connection that is none: TLS of the mesh beneath TLS of an application, a
tunnel of chunks. A thread of each moves the bytes, for such connections only.

    application ──► near ═ inner ──► (encode) ──► far
    far ──► (decode) ──► inner ═ near ──► application

Rules: what one side does not take holds the other up; an end of either goes on to the other, and when both
have ended the far one is closed.
"""

import contextlib
import selectors
import socket
import ssl
import threading
from typing import Protocol

MOST = 256 * 1024
"""Bytes that wait to be taken before no more are read."""
_CHUNK = 64 * 1024
_WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Coding(Protocol):
    """What becomes of the bytes on their way."""

    ended: bool
    """Whether the far side has said its last."""

    def encode(self, data: bytes) -> bytes:
        """To the far side; of nothing: the end."""
        ...

    def decode(self, data: bytes) -> bytes:
        """From the far side. OSError: it can't be understood."""
        ...


class AsTheyAre:
    """Nothing."""

    ended = False

    def encode(self, data: bytes) -> bytes:
        """The same."""
        return data

    def decode(self, data: bytes) -> bytes:
        """The same."""
        return data


class _Side:
    """One of both sockets: what waits to be written to it, and whether it has ended."""

    def __init__(self, made: socket.socket) -> None:
        made.setblocking(False)
        self.socket = made
        self.waiting = bytearray()
        self.ended = False
        """It has said all."""
        self.told = False
        """It was told that nothing more comes."""

    def read(self) -> bytes | None:
        """What came, nothing at the end; None: nothing came yet."""
        try:
            data = self.socket.recv(_CHUNK)
        except _WAITS:
            return None
        except OSError:
            data = b""
        self.ended = not data
        return data

    def write(self) -> None:
        """As much as it takes. OSError: it takes nothing any more."""
        with contextlib.suppress(*_WAITS):
            while self.waiting:
                del self.waiting[: self.socket.send(self.waiting[:_CHUNK])]

    @property
    def pending(self) -> bool:
        """Whether there is something to read that no selector knows of."""
        return isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0


class _Relay:
    def __init__(self, far: socket.socket, inner: socket.socket, coding: Coding) -> None:
        self.far, self.inner, self.coding = _Side(far), _Side(inner), coding

    def run(self) -> None:
        """Until both have ended, or one is broken."""
        with self.far.socket, self.inner.socket, contextlib.suppress(OSError):
            while not (self.far.told and self.inner.told):
                self.wait()
                self.move()

    def wait(self) -> None:
        """Until something can be done."""
        far, inner = self.far, self.inner
        if far.pending and len(inner.waiting) < MOST:
            return
        with selectors.DefaultSelector() as selector:
            for side, other in ((far, inner), (inner, far)):
                events = selectors.EVENT_READ if not side.ended and len(other.waiting) < MOST else 0
                events |= selectors.EVENT_WRITE if side.waiting else 0
                if events:
                    selector.register(side.socket, events)
            selector.select()

    def move(self) -> None:
        """Everything that can be moved now. OSError: a side is broken."""
        far, inner = self.far, self.inner
        if not inner.ended and len(far.waiting) < MOST and (data := inner.read()) is not None:
            far.waiting += self.coding.encode(data)
        if not far.ended and len(inner.waiting) < MOST and (data := far.read()) is not None:
            inner.waiting += self.coding.decode(data)
            far.ended = far.ended or self.coding.ended
        far.write()
        inner.write()
        if far.ended and not inner.waiting and not inner.told:
            inner.told = True
            inner.socket.shutdown(socket.SHUT_WR)
        if inner.ended and not far.waiting and not far.told:
            far.told = True
            if not isinstance(far.socket, ssl.SSLSocket):
                far.socket.shutdown(socket.SHUT_WR)
            else:
                far.ended = inner.told = True  # TLS of the standard library has no half of a connection


def relayed(far: socket.socket, coding: Coding | None = None) -> socket.socket:
    """A plain socket that leads to `far`, which is its own from now on."""
    near, inner = socket.socketpair()
    near.settimeout(far.gettimeout())
    relay = _Relay(far, inner, coding or AsTheyAre())
    threading.Thread(target=relay.run, name="meshlib relay", daemon=True).start()
    return near
