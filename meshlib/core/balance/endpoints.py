"""Who serves a cluster now: endpoints in localities in priorities, with what can be computed beforehand."""

from dataclasses import field

from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that serves a cluster. Its identity, also in the ledger, is `key`."""

    host: str
    """An IP address, a name, or the path of a socket of the file system."""
    port: int
    """0: of a path."""
    weight: int = 1
    healthy: bool = True
    """False: UNHEALTHY, DRAINING or TIMEOUT in EDS."""
    hostname: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    """Labels and the workload's name, for people."""
    transport: frozenset[tuple[str, str]] = frozenset()
    """What it says of how it is reached, for the criteria of the cluster's transports."""
    degraded: bool = False
    """Healthy, but to be used after those that are wholly so."""
    draining: bool = False
    """Not healthy, because it leaves: it does not count for the health of the others."""
    at: tuple[str, int] | None = None
    """Where a new connection goes, if `host` is a name whose address may change (LOGICAL_DNS)."""
    key: str = field(init=False, default="")
    address: tuple[str, int] = field(init=False, compare=False, repr=False)
    """Host and port."""

    def __post_init__(self) -> None:
        key = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        if not self.port:
            key = self.host
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "address", (self.host, self.port))


@dataclass(frozen=True, slots=True)
class LocalityEndpoints:
    """The endpoints of one locality at one priority."""

    locality: str
    priority: int
    weight: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class EndpointSet:
    """All endpoints of one cluster."""

    localities: tuple[LocalityEndpoints, ...] = ()
    overprovisioning: int = 140
    """Percent: as far as this many of them reach, healthy endpoints stand in for others."""
    weighted_health: bool = False
    """Whether the load of a priority follows the weights of its endpoints, not their number."""

    @property
    def size(self) -> int:
        """How many endpoints there are."""
        return sum(len(group.endpoints) for group in self.localities)
