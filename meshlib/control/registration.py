"""A registration: what a running server said of itself when it joined the mesh.

A plain value. `control.serve.registration` makes it from a stream, `control.registry` turns it
into endpoints of every service that selects its labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshlib.xds.node import Locality

APPLICATION_HOST = "127.0.0.1"
"""Where an application behind a node's Envoy listens that has no network namespace of its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where on its node a workload is that a node's Envoy speaks for."""

    uid: str
    """Its name on the node; it begins the names of its resources."""
    netns: str = ""
    """The file of its network namespace; empty: it is in the node's own, and nothing is captured."""
    app_ports: tuple[tuple[int, int], ...] = ()
    """Ports of the workload, and those at which the application itself listens, where they differ."""
    proxy_port: int = 0
    """Where in the node's own namespace it finds an HTTP proxy; 0: nowhere."""

    def app_port(self, port: int) -> int:
        """Where the application itself listens for a port of the workload."""
        return dict(self.app_ports).get(port, port)


@dataclass(frozen=True, slots=True)
class Registration:
    """One process that serves, at one address. Labels and ports are sorted, so equal is equal."""

    id: str
    """The node id with a suffix that tells two processes of the same node id apart."""
    namespace: str
    service_account: str
    labels: tuple[tuple[str, str], ...]
    address: str
    """An IP address, in its canonical spelling."""
    ports: tuple[tuple[str, int], ...]
    """The number of each named port, 1 to 65535."""
    locality: Locality = field(default_factory=Locality)
    weight: int = 1
    """Share of traffic against its peers, 1 to 128 * 1024."""
    draining: bool = False
    """It is about to leave: no new requests, those in flight end in peace."""
    node: str = ""
    """The node whose Envoy speaks for it; empty: it is in the mesh by itself."""
    place: Place | None = None
    """Where on that node it is."""

    @property
    def label_map(self) -> Mapping[str, str]:
        """The labels as a mapping."""
        return dict(self.labels)

    @property
    def port_map(self) -> Mapping[str, int]:
        """The ports as a mapping from name to number."""
        return dict(self.ports)
