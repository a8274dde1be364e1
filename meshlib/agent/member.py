"""One workload of a node, how far it came, and what it is made of."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from meshlib.agent.workload import Workload


class Membership(Protocol):
    """A workload's part in the mesh: a certificate that is renewed, and a registration that is kept up."""

    @property
    def joined(self) -> bool:
        """Whether the control service has taken it."""

    def serve(self) -> None:
        """Others are sent to it from now on."""

    def drain(self) -> None:
        """Says that it leaves; may wait for others to hear of it."""

    def part(self) -> None:
        """Leaves, but for its certificate: that stays until it is closed."""

    def close(self, *, stays: bool = False) -> None:
        """Leaves; `stays`: it comes back, and what is kept of it stays."""


Join = Callable[[Workload], Membership]
"""Begins one; may wait for the network. MeshError: it can't be had now."""


class Held(Protocol):
    """A namespace that is captured, see `hold.py`."""

    @property
    def link(self) -> str:
        """The path by which that one and no other is entered."""

    async def lost(self) -> str:
        """What became of it; empty: it is as it was."""

    def close(self) -> None:
        """Lets it go."""


@dataclass
class Member:
    """One workload and how far it came."""

    workload: Workload
    said: Workload
    """As it was enrolled, without what is found out."""
    why: str = "joining"
    """Why it is not ready; empty: it is."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    membership: Membership | None = None
    captured: bool = False
    """Whether its namespace has rules for it, or is about to."""
    held: Held | None = None
    """Its namespace, once it has rules."""
    process_id: int = 0
    """Of the program that is run as it; 0: it is not known."""
    listens: bool = True
    """Whether its application is there, as far as is known."""
    refusal: tuple[str, str] = "", ""
    """What its Envoy says of a listener that it refuses, and that in our words."""
    keeping: "asyncio.Task[None] | None" = None

    @property
    def settled(self) -> bool:
        """Whether it was ready, and the control service knows it now."""
        return self.membership is not None and self.membership.joined and self.ready.is_set()

    @property
    def link(self) -> str:
        """Where its Envoy enters its namespace; empty: nowhere."""
        return "" if self.held is None else self.held.link

    def serve(self) -> None:
        """Others are sent to it, if all is there."""
        if self.membership is not None and self.ready.is_set() and self.listens:
            self.membership.serve()
