"""A registration: what a running server said of itself when it joined the mesh.

A plain value. `control.serve.registration` makes it from a stream, `control.registry` turns it
into endpoints of every service that selects its labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshlib.xds.node import Locality


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

    @property
    def label_map(self) -> Mapping[str, str]:
        """The labels as a mapping."""
        return dict(self.labels)

    @property
    def port_map(self) -> Mapping[str, int]:
        """The ports as a mapping from name to number."""
        return dict(self.ports)
