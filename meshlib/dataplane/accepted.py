"""What the control service said last of each resource, decoded, as far as it was good.

Rules:

- A refused resource leaves the last good one of its name.
- A rule is of the configuration that it came with (`version` of its table): what came later did not decide.

Not thread-safe: it is of `views`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from meshlib.core.route.chain import Connections
from meshlib.core.route.rule import Forward
from meshlib.core.route.table import RouteTable
from meshlib.core.telemetry import NOTHING, Telling
from meshlib.core.view import Served, TargetListener
from meshlib.dataplane.decode.errors import Refused
from meshlib.errors import RefusedResource
from meshlib.values import dataclass
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource

if TYPE_CHECKING:
    from meshlib.core.inbound import Inbound  # which is large, and servers' alone


@dataclass(frozen=True, slots=True)
class Routes:
    """A table, where connections go, and the clusters that both name."""

    table: RouteTable
    clusters: frozenset[str]
    connections: Connections | None = None


@dataclass(slots=True)
class Held:
    """One resource that was accepted; None as `value`: it does not exist, or never was any good."""

    value: Any = None
    resource: Resource | None = None
    refused: str = ""
    """Why the newest one was refused; empty: it was not."""
    telling: Telling = NOTHING
    """Of a listener."""
    connections: Connections | None = None
    """Of a listener."""
    joined: tuple[Routes, Routes] | None = None
    """Of a listener with connections: its routes, and both together."""


class Accepted:
    """By kind and name."""

    def __init__(self, kinds: Iterable[Kind], decoders: Mapping[Kind, Callable[[Any], Any]]) -> None:
        """`decoders` gives for each kind the function from message to core value, raising Refused."""
        self._decoders = decoders
        self.of: dict[Kind, dict[str, Held]] = {kind: {} for kind in kinds}

    def versions(self, kind: Kind) -> dict[str, str]:
        """The version of each resource held, by name."""
        return {n: e.resource.version for n, e in self.of[kind].items() if e.resource is not None}

    def absent(self, kind: Kind) -> set[str]:
        """The names of what is known not to exist."""
        return {n for n, e in self.of[kind].items() if e.resource is None and not e.refused}

    def take(self, kind: Kind, name: str, version: str, resource: Resource) -> str | None:
        """Why it is refused: it is no good; None: it is good. What came before, byte by byte, stays of the
        configuration it came with.
        """
        entry = self.of[kind].setdefault(name, Held())
        try:
            self._take(entry, kind, version, resource)
        except Refused as error:
            entry.refused = str(error)
            return entry.refused
        return None

    def gone(self, kind: Kind, name: str) -> None:
        """There is no such resource."""
        self.of[kind][name] = Held()

    def _take(self, entry: Held, kind: Kind, version: str, resource: Resource) -> None:
        known = entry.resource
        if known is None or known.body != resource.body:
            entry.value, entry.telling, entry.connections = self._decode(kind, version, resource)
            entry.joined = None
        entry.resource, entry.refused = resource, ""

    def _decode(
        self, kind: Kind, version: str, resource: Resource
    ) -> tuple[Any, Telling, Connections | None]:
        try:
            message = resource.message()
        except Exception as error:  # noqa: BLE001 - protobuf's DecodeError, without loading protobuf here
            raise Refused("", f"can't be decoded: {error}") from None
        value = self._decoders[kind](message)
        telling = value.telling if isinstance(value, TargetListener) or is_served(value) else NOTHING
        connections = None
        if isinstance(value, TargetListener):
            connections = None if value.connections is None else value.connections.of(version)
            value = value.routes
        if isinstance(value, RouteTable):
            value = Routes(value.of(version), _clusters_of(value))
        elif is_served(value):
            value = replace(value, version=version)
        return value, telling, connections

    def newest(self, target: str) -> "Routes | Inbound | RefusedResource | None":
        """The newest good value of a target; an error: there never was one; None: it has not come."""
        listener = self.of[Kind.LISTENER].get(target)
        if listener is None:
            return None
        if is_served(listener.value):
            return listener.value
        if isinstance(listener.value, Routes):
            return _joined(listener, listener.value)
        if listener.value is None:
            return RefusedResource(f"listener {target}: {listener.refused}") if listener.refused else None
        routes = self.of[Kind.ROUTES].get(listener.value)
        if routes is None:
            return None
        if routes.value is None and routes.refused:
            return RefusedResource(f"routes {listener.value}: {routes.refused}")
        return _joined(listener, routes.value) if isinstance(routes.value, Routes) else None

    def is_missing(self, target: str) -> bool:
        """Whether the control service said that there is no such target, or no routes for it."""
        listener = self.of[Kind.LISTENER].get(target)
        if listener is None:
            return False
        if isinstance(listener.value, str):
            routes = self.of[Kind.ROUTES].get(listener.value)
            return routes is not None and routes.value is None and not routes.refused
        return listener.value is None and not listener.refused


def _joined(listener: Held, routes: Routes) -> Routes:
    """Routes, and where connections to a listener go; the same object for the same two."""
    if listener.connections is None:
        return routes
    if listener.joined is None or listener.joined[0] is not routes:
        shares = [share for chain in listener.connections.every for share in chain.shares]
        clusters = routes.clusters | {share.cluster for share in shares}
        listener.joined = routes, Routes(routes.table, clusters, listener.connections)
    return listener.joined[1]


def _clusters_of(table: RouteTable) -> frozenset[str]:
    """Every cluster that a table names: destinations and mirrors."""
    found: set[str] = set()
    for host in table.hosts:
        for route in host.routes:
            if isinstance(route.action, Forward):
                found.update(cluster.name for cluster in route.action.clusters)
                found.update(mirror.cluster for mirror in route.action.mirrors)
    return frozenset(found)


def is_served(value: object) -> "TypeGuard[Inbound]":
    """Whether it is what a served port asks of its callers."""
    return isinstance(value, Served)
