"""What a standing connection holds of the mesh: its slot, and what is told of it; given back exactly once.

Rules:

- A connection that nobody closes is noticed when it is collected. That may happen on any thread and under any
  lock, so then only a note is made; the next connection reads it.
- A socket whose descriptor another object takes over (`detach`: that is what `SSLContext.wrap_socket` does)
  holds its slot for as long as the descriptor is that socket. Whether it is, is looked at before connections
  are made.
- In the child of a fork a connection of the parent's holds nothing and tells nothing.
"""

import os
import threading
from collections import deque
from typing import Protocol

from meshlib.core.actions import Facts
from meshlib.core.tcp import Flow, Linked
from meshlib.dataplane import fork


class Watched(Protocol):
    """Who wants to be told of one connection."""

    def opened(self, link: "Link") -> None:
        """It stands; the link says how many bytes have passed, at any time."""

    def refused(self, facts: Facts) -> None:
        """There was none."""

    def ended(self, flags: str, sent: int, received: int) -> None:
        """It is over."""


class Link:
    """One connection. `end` may be called on any thread."""

    __slots__ = ("__weakref__", "_held", "_process", "linked", "received", "sent")

    def __init__(self, flow: Flow, linked: Linked, watched: Watched | None) -> None:
        self.linked = linked
        self.sent = 0
        """Bytes that the application has sent, as far as they went through its socket's own methods."""
        self.received = 0
        self._held = [(flow, watched)]
        self._process = os.getpid()
        if watched is not None:
            watched.opened(self)

    def __repr__(self) -> str:
        state = "open" if self._held else "ended"
        return f"<Link {self.linked.facts.endpoint}, {state}: {self.sent} sent, {self.received} received>"

    @property
    def open(self) -> bool:
        """Whether the connection is thought to stand."""
        return bool(self._held)

    def end(self, flags: str = "-") -> None:
        """The connection is over; a second time does nothing."""
        try:
            held = self._held.pop()  # one operation, of which only one thread has the result
        except IndexError:
            return
        if self._process == os.getpid():
            _finish(*held, flags, self.sent, self.received)

    def __del__(self) -> None:
        if self._held and self._process == os.getpid():
            _lost.append((*self._held.pop(), self.sent, self.received))


def _finish(flow: Flow, watched: Watched | None, flags: str, sent: int, received: int) -> None:
    flow.close()
    if watched is not None:
        watched.ended(flags, sent, received)


_lost: deque[tuple[Flow, Watched | None, int, int]] = deque()


class _Adopted:
    """Links of sockets whose descriptors have other owners now."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._links: list[tuple[int, int, Link]] = []
        fork.watch(self)

    def __repr__(self) -> str:
        return f"<Adopted {len(self._links)}>"

    def add(self, descriptor: int, link: Link) -> None:
        """Ends the link when the descriptor is another file, or none."""
        try:
            number = os.fstat(descriptor).st_ino
        except OSError:
            link.end()
            return
        with self._guard:
            self._links.append((descriptor, number, link))

    def look(self) -> None:
        """Ends the links whose descriptors are closed."""
        if not self._links:
            return
        with self._guard:
            over = [entry for entry in self._links if _number(entry[0]) != entry[1]]
            self._links = [entry for entry in self._links if entry not in over]
        for _, _, link in over:
            link.end()

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._guard.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._guard.release()

    def after_fork_in_child(self) -> None:
        """They are the parent's."""
        self._guard = threading.Lock()
        self._links = []


def _number(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return -1


_adopted = _Adopted()


def adopt(descriptor: int, link: Link) -> None:
    """The link of a socket whose descriptor another object has from now on."""
    _adopted.add(descriptor, link)


def bury() -> None:
    """Ends what nobody ended: to be called before a connection is made."""
    while _lost:
        try:
            flow, watched, sent, received = _lost.popleft()
        except IndexError:  # another thread was faster
            break
        _finish(flow, watched, "-", sent, received)
    _adopted.look()
