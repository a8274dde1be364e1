"""Closes blocking sockets that were idle, or open, for too long, as a sidecar would: one thread for all.

Rules:

- A socket is shut down in both directions: who reads it sees its end, who writes an error. Its descriptor
  stays the application's.
- On Linux the kernel says when the last bytes came or went, through whatever hands. Elsewhere those count
  that went through the socket's own methods, looked at `LOOKS` times within the idle time.
- The thread ends when there is nothing to watch, and is started anew.
"""

import contextlib
import logging
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from meshlib.dataplane import fork
from meshlib.dataplane.tcp.link import Link

log = logging.getLogger(__name__)

LOOKS = 4
_SHORTEST = 0.05
"""Seconds between two looks at all of them."""
_LAST_SENT, _LAST_RECEIVED = 44, 52
"""Where struct tcp_info of Linux has the milliseconds since the last data."""


@dataclass(slots=True)
class _Kept:
    """One connection that is watched."""

    connection: "weakref.ref[socket.socket]"
    link: "weakref.ref[Link]"
    """Weak: a connection that is forgotten is to be noticed."""
    since: float
    """When it was made."""
    moved: int = 0
    """How many bytes had passed at the last look."""
    moved_at: float = 0.0


class Keeper:
    """Watches sockets. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts nothing."""
        self._clock = clock
        self._kept: dict[int, _Kept] = {}
        self._unlocked()
        fork.watch(self)

    def _unlocked(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._wakes = float("inf")
        """When the thread looks next."""

    def __repr__(self) -> str:
        return f"<Keeper of {len(self._kept)}>"

    def keep(self, connection: socket.socket, link: Link) -> None:
        """Watches a connection until its link has ended."""
        idle, longest = link.linked.idle_timeout, link.linked.max_duration
        if not idle and not longest:
            return
        now = self._clock()
        with self._changed:
            self._kept[id(link)] = _Kept(weakref.ref(connection), weakref.ref(link), now, moved_at=now)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="meshlib-tcp", daemon=True)
                self._thread.start()
            elif now + min(filter(None, (idle, longest))) < self._wakes:
                self._changed.notify()

    def shut(self, link: Link) -> None:
        """To be called before a connection's descriptor is closed: from then on nothing is done to it."""
        with self._changed:
            self._kept.pop(id(link), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                ended, due = self.look()
                if not self._kept:
                    self._thread, self._wakes = None, float("inf")
                else:
                    self._wakes = max(due, self._clock() + _SHORTEST)
                thread = self._thread
            for link, flags in ended:
                try:
                    link.end(flags)
                except Exception:
                    # The thread must live.
                    log.exception("%r did not end", link)
            if thread is None:
                return
            with self._changed:
                self._changed.wait(max(0.0, self._wakes - self._clock()))

    def look(self) -> tuple[list[tuple[Link, str]], float]:
        """Shuts down what is to be closed: their links, with Envoy's flags; and when the next may be due.

        Under the lock: nobody closes a descriptor meanwhile.
        """
        now, nearest = self._clock(), float("inf")
        ended: list[tuple[Link, str]] = []
        for number, kept in list(self._kept.items()):
            connection, link = kept.connection(), kept.link()
            if connection is None or link is None or not link.open:
                del self._kept[number]
                continue
            left, flags = _left(kept, connection, link, now)
            if left > 0:
                nearest = min(nearest, now + left)
                continue
            del self._kept[number]
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            ended.append((link, flags))
        return ended, nearest

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._changed.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """They are the parent's."""
        self._kept = {}
        self._unlocked()


def _left(kept: _Kept, connection: socket.socket, link: Link, now: float) -> tuple[float, str]:
    """Seconds until it is to be looked at again; none: it is to be closed, with these flags."""
    linked = link.linked
    left = float("inf")
    if linked.max_duration:
        left = kept.since + linked.max_duration - now
        if left <= 0:
            return 0.0, "DT"
    if not linked.idle_timeout:
        return left, "-"
    quiet = _quiet(connection)
    if quiet is not None:
        return min(left, linked.idle_timeout - quiet), "-"
    moved = link.sent + link.received
    if moved != kept.moved:
        kept.moved, kept.moved_at = moved, now
    over = kept.moved_at + linked.idle_timeout - now
    return (0.0 if over <= 0 else min(left, over, linked.idle_timeout / LOOKS)), "-"


def _quiet(connection: socket.socket) -> float | None:
    """Seconds since the last data in either direction; None: nobody says."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_RECEIVED + 4)
        sent, received = (struct.unpack_from("I", told, at)[0] for at in (_LAST_SENT, _LAST_RECEIVED))
    except (OSError, struct.error):
        return None
    return float(min(sent, received)) / 1000


keeper = Keeper()
