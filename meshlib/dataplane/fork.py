"""Fork: what a process that forks takes down before, and what it and its child build again.

gRPC does not survive a fork while a channel is open: its threads do not exist in the child, and the
child shares the parent's sockets. So everything that talks stops before a fork and starts again
after it: in the parent at once, in the child at first use. What is known (views, the ledger's
settings) stays in both. `subprocess` does not fork in this sense and disturbs nothing.

gRPC has hooks of its own (GRPC_ENABLE_FORK_SUPPORT), which its core needs to live on in a child. Hooks
that run before a fork run in reverse order of registration, and gRPC's stop its threads wherever they
are, so ours must run before them and be registered after them: `arm` comes after the first channel.
"""

import logging
import os
import weakref
from typing import Protocol

log = logging.getLogger(__name__)


class Forking(Protocol):
    """What has threads, locks or sockets of its own."""

    def before_fork(self) -> None:
        """Stop threads and close sockets; take no new work until one of the others is called."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """New locks, no threads; start at first use."""


_watched: "weakref.WeakSet[Forking]" = weakref.WeakSet()
_stopped: list[Forking] = []
_armed = False


def watch(one: Forking) -> None:
    """Calls its methods around each fork, for as long as it lives, once `arm` was called."""
    _watched.add(one)


def arm() -> None:
    """Registers the hooks, once; after gRPC has registered its own."""
    global _armed
    if not _armed and hasattr(os, "register_at_fork"):
        _armed = True
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def _before() -> None:
    for one in list(_watched):
        try:
            one.before_fork()
        except Exception:
            log.exception("%r could not be stopped before a fork", one)
        _stopped.append(one)


def _in_parent() -> None:
    for one in _stopped:
        one.after_fork_in_parent()
    _stopped.clear()


def _in_child() -> None:
    for one in _stopped:
        one.after_fork_in_child()
    _stopped.clear()
