"""Fork: what keeps locks, threads or sockets, and what its copy in the child does with them.

A fork copies memory and one thread. So each who is watched takes its locks before a fork, that what
is copied is whole; the parent lets go and goes on as if nothing had been; the child makes new locks,
closes its copies of the sockets without a word to the peer, and starts threads at first use.
`subprocess` does not fork in this sense and disturbs nothing.

OpenSSL has locks of its own, which nobody can make anew: a child that is forked while another thread holds
one waits for it for ever. So threads of ours hold `calm` while they are inside OpenSSL, never while they wait
for a peer, and a fork waits for it.
"""

import logging
import os
import threading
import weakref
from typing import Protocol

log = logging.getLogger(__name__)


class Forking(Protocol):
    """What has threads, locks or sockets of its own."""

    def before_fork(self) -> None:
        """Take the locks under which anything changes."""

    def after_fork_in_parent(self) -> None:
        """Let go of them."""

    def after_fork_in_child(self) -> None:
        """New locks, no threads, no sockets; start at first use."""


CALM_SECONDS = 2.0
"""How long a fork waits at most: it is better to go on than to stand still."""

calm = threading.RLock()
"""Take it by this name each time: a child has another."""
_calmed = False
_watched: "weakref.WeakSet[Forking]" = weakref.WeakSet()
_held: list[Forking] = []
_armed = False


def watch(one: Forking) -> None:
    """Calls its methods around each fork, for as long as it lives."""
    global _armed
    _watched.add(one)
    if not _armed and hasattr(os, "register_at_fork"):
        _armed = True
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def _before() -> None:
    for one in list(_watched):
        try:
            one.before_fork()
        except Exception:
            log.exception("%r is not ready for a fork", one)
        else:
            _held.append(one)
    global _calmed
    # Last: who holds it waits for no lock of the others.
    _calmed = calm.acquire(timeout=CALM_SECONDS)


def _in_parent() -> None:
    if _calmed:
        calm.release()
    _after("after_fork_in_parent")


def _in_child() -> None:
    global calm
    calm = threading.RLock()
    _after("after_fork_in_child")


def _after(method: str) -> None:
    held, _held[:] = _held[:], []
    for one in held:
        try:
            getattr(one, method)()
        except Exception:
            log.exception("%r did not survive a fork", one)
