"""A plain socket in front of a connection that is none: TLS of the mesh beneath TLS of an application, a
tunnel of chunks. One thread moves the bytes of all such connections.

    application ──► near ═ inner ──► (encode) ──► far
    far ──► (decode) ──► inner ═ near ──► application

Rules: what one side does not take holds the other up; an end of either goes on to the other, and when both
have ended the far one is closed. The thread ends when there is nothing to move, and is started anew.
"""

import contextlib
import logging
import selectors
import socket
import ssl
import threading
from collections import deque
from typing import Protocol

from meshlib.dataplane import fork

log = logging.getLogger(__name__)

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

    def wants(self) -> list[tuple[_Side, int]]:
        """What each side is waited for."""
        far, inner = self.far, self.inner
        found = []
        for side, other in ((far, inner), (inner, far)):
            events = selectors.EVENT_READ if not side.ended and len(other.waiting) < MOST else 0
            events |= selectors.EVENT_WRITE if side.waiting else 0
            found.append((side, events))
        return found

    @property
    def pending(self) -> bool:
        """Whether there is more to move at once."""
        return self.far.pending and not self.far.ended and len(self.inner.waiting) < MOST

    def move(self) -> bool:
        """Everything that can be moved now; False: that was the last. OSError: a side is broken."""
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
        return not (far.told and inner.told)

    def close(self) -> None:
        """Both sides."""
        self.far.socket.close()
        self.inner.socket.close()


class _Relays:
    """All of them, and the thread that moves their bytes. Thread-safe."""

    def __init__(self) -> None:
        """Starts nothing."""
        self._unlocked()
        fork.watch(self)

    def _unlocked(self) -> None:
        self._lock = threading.Lock()
        self._new: deque[_Relay] = deque()
        self._moving: set[_Relay] = set()
        self._alarm: socket.socket | None = None
        """By which the thread is woken; None: there is none."""

    def __repr__(self) -> str:
        return f"<Relays: {len(self._moving) + len(self._new)}>"

    def add(self, relay: _Relay) -> None:
        """From now on it moves. RuntimeError: there is no thread to be had."""
        with self._lock:
            if self._alarm is None:
                hears, alarm = socket.socketpair()
                hears.setblocking(False)
                alarm.setblocking(False)
                name = "meshlib-relay"
                try:
                    threading.Thread(target=self._run, args=(hears,), name=name, daemon=True).start()
                except RuntimeError:
                    hears.close()
                    alarm.close()
                    raise
                self._alarm = alarm
            self._new.append(relay)
            with contextlib.suppress(BlockingIOError):  # it has been woken often enough
                self._alarm.send(b"!")

    def _run(self, hears: socket.socket) -> None:
        relays = self._moving
        eager: set[_Relay] = set()
        with hears, selectors.DefaultSelector() as selector:
            selector.register(hears, selectors.EVENT_READ)
            while True:
                ready = selector.select(0 if eager else None)
                due = eager | {key.data for key, _ in ready if key.data is not None}
                with self._lock:
                    with contextlib.suppress(BlockingIOError):
                        hears.recv(_CHUNK)
                    relays.update(self._new)
                    due.update(self._new)
                    self._new.clear()
                    if not relays:
                        alarm, self._alarm = self._alarm, None
                        break
                eager = set()
                for relay in due:
                    if not _moved(selector, relay):
                        relays.discard(relay)
                    elif relay.pending:
                        eager.add(relay)
                if not relays:
                    with self._lock, contextlib.suppress(BlockingIOError):
                        assert self._alarm is not None  # noqa: S101 - of this thread
                        self._alarm.send(b"!")
        if alarm is not None:
            alarm.close()

    def before_fork(self) -> None:
        """Nothing begins or ends during a fork."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """They are the parent's."""
        for relay in (*self._moving, *self._new):
            relay.close()
        if self._alarm is not None:
            self._alarm.close()
        self._unlocked()


def _moved(selector: selectors.BaseSelector, relay: _Relay) -> bool:
    """Moves what can be; False: it has come to its end, and is closed."""
    goes_on = False
    try:
        goes_on = relay.move()
    except OSError:
        pass
    except Exception:
        # The thread must live.
        log.exception("a connection could not be led on")
    known = selector.get_map()
    for side, events in relay.wants():
        there = side.socket in known
        if not (events and goes_on):
            if there:
                selector.unregister(side.socket)
        elif there:
            selector.modify(side.socket, events, relay)
        else:
            selector.register(side.socket, events, relay)
    if not goes_on:
        relay.close()
    return goes_on


_relays = _Relays()


def relayed(far: socket.socket, coding: Coding | None = None) -> socket.socket:
    """A plain socket that leads to `far`, which is its own from now on."""
    near, inner = socket.socketpair()
    near.settimeout(far.gettimeout())
    try:
        _relays.add(_Relay(far, inner, coding or AsTheyAre()))
    except BaseException:
        near.close()
        inner.close()
        raise
    return near
