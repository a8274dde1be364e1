"""The immutable whole that a request is decided against. A push makes a new one; a request keeps its own.

name "reviews:9080" ──► Target ──► RouteTable ──► Route ──► cluster names
name "db:5432" ──► Connections ──► FilterChain ──► cluster names
cluster name ──► Cluster (policy) + EndpointSet (who is there now)
inbound listener's name ──► Inbound (what a port of this process asks of its callers)
any listener's name ──► Telling (what is to be told of its requests)
"""

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import TYPE_CHECKING

from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import EndpointSet
from meshlib.core.route.chain import Connections
from meshlib.core.route.table import RouteTable
from meshlib.core.telemetry import NOTHING, Telling
from meshlib.values import dataclass

if TYPE_CHECKING:
    from meshlib.core.inbound import Inbound  # which is large, and servers' alone


@dataclass(frozen=True, slots=True)
class TargetListener:
    """What the listener of a target says."""

    routes: str | RouteTable
    """Where requests go: the name of a route configuration, or the table itself."""
    telling: Telling = NOTHING
    connections: Connections | None = None
    """Where connections go; None: it takes requests only."""


class Served:
    """What the listener of a served port says: `core.inbound.Inbound` is one, and the only one. By this it is
    known to those who decide nothing by it, and need not load what decides.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class View:
    """Everything known at one moment, by name. `version`: the newest configuration that was heard of."""

    version: str = ""
    tables: Mapping[str, RouteTable] = field(default_factory=lambda: MappingProxyType({}))
    """By the name asked for, `host:port`."""
    clusters: Mapping[str, Cluster] = field(default_factory=lambda: MappingProxyType({}))
    endpoints: Mapping[str, EndpointSet] = field(default_factory=lambda: MappingProxyType({}))
    """By cluster name."""
    inbound: "Mapping[str, Inbound]" = field(default_factory=lambda: MappingProxyType({}))
    """By the name of the listener, `xds.names.inbound_listener(port)`."""
    roots_pem: bytes = b""
    """The certificates that the mesh's identities are signed by, as the control service said last."""
    telling: Mapping[str, Telling] = field(default_factory=lambda: MappingProxyType({}))
    """By the name of the listener, of a target or inbound: what is to be told of its requests."""
    connections: Mapping[str, Connections] = field(default_factory=lambda: MappingProxyType({}))
    """By the name asked for, `host:port`: where connections go; not there: it takes requests only."""

    def __repr__(self) -> str:
        return (
            f"View({self.version!r}, {len(self.tables)} targets, {len(self.clusters)} clusters, "
            f"{sum(e.size for e in self.endpoints.values())} endpoints)"
        )
