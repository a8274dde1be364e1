"""Where a mesh has its configuration from: what it asks of that, and how it is told."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.views import Views
from meshlib.xds.node import Client


class Source(Protocol):
    """Where configuration comes from: `ads.Ads`, or a control service in this process."""

    connected: bool
    since: float | None
    failure: str
    from_disk: set[str]

    def want(self, name: str) -> None:
        """Somebody waits for a target, until `done`: it is asked for once there is room for it, and kept
        meanwhile. Starts whatever has to run.
        """

    def done(self, name: str) -> None:
        """Somebody who waited for a target waits no more; it is kept up until it makes room."""

    def touch(self, name: str) -> None:
        """A target was used now."""

    def load(self, name: str) -> bool:
        """Reads a target's last good configuration; whether the target is known now."""

    def resolved(self, clusters: Iterable[str]) -> None:
        """The names of these clusters stand for something else now: takes them into the views."""

    def lacking(self, name: str) -> str:
        """Why `load` can't make it known, as half a sentence."""

    def close(self) -> None:
        """Stops; nothing is left behind."""

    def before_fork(self) -> None:
        """Lets nothing change during a fork."""

    def after_fork_in_parent(self) -> None:
        """Goes on."""

    def after_fork_in_child(self, node: Any) -> None:
        """Keeps what is known; whatever runs is started at the next `want`, under this Node message."""


Changed = Callable[[Iterable[str] | None], None]
"""Told of targets of which something may be known now; None: of any."""
MakeSource = Callable[[Bootstrap, Client, Views, Changed], Source]
