"""What each listener leads to, compiled once a configuration: who asks for one more costs one more."""

from collections.abc import Collection, Iterable
from typing import Protocol

from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource, Snapshot

BY_NAME = (Flavour.MESHLIB, Flavour.GRPC)
"""Who is sent what the listeners lead to that it asks for."""
SPARE = 1000
"""How many closures of a client are kept, besides twice those that it asks for."""
_NONE = frozenset(("",))
"""Stands for what a client is sent that asks for no listener."""


class Compiler(Protocol):
    """Turns the configuration of one moment into resources. Pure: equal arguments, equal results."""

    version: str

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        """Everything for a client. Flavours meshlib and grpc: the closure of the listeners named, which is
        that of each of them; envoy and gateway: everything of that node, `listeners` is empty.
        """
        ...


class Closures:
    """The closures of one configuration."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._of: dict[Client, dict[str, tuple[Resource, ...]]] = {}
        self._resources: dict[tuple[Kind, str, str], Resource] = {}

    def __repr__(self) -> str:
        return f"Closures({self._compiler.version!r}, {len(self._of)} clients)"

    def snapshot(self, client: Client, listeners: frozenset[str]) -> Snapshot:
        """All that a client that asks for these is to hold. Raises whatever the compiler raises."""
        version = self._compiler.version
        if client.flavour not in BY_NAME:
            return Snapshot.of(version, self._made(client, listeners))
        known = self._of.setdefault(client, {})
        names = listeners or _NONE
        for name in sorted(names - known.keys()):
            known[name] = self._made(client, listeners & {name})
        if len(known) > 2 * len(listeners) + SPARE:
            known = self._of[client] = {name: known[name] for name in names}
        return Snapshot.of(version, (one for name in names for one in known[name]))

    def keep(self, clients: Collection[Client]) -> None:
        """Forgets the closures of all other clients."""
        self._of = {client: known for client, known in self._of.items() if client in clients}

    def _made(self, client: Client, listeners: frozenset[str]) -> tuple[Resource, ...]:
        """One object for equal resources of all clients."""
        made = self._compiler.resources(client, listeners)
        return tuple(self._resources.setdefault((one.kind, one.name, one.version), one) for one in made)
