"""Which filter chain takes a connection: by the address it goes to, then by the name it asks for (SNI).

Rules (Envoy, FilterChainManager):

- Of the subnets that hold the address the longest counts, and only chains of that one are looked at further;
  a chain without subnets is of the widest of all.
- Of names the exact one counts, else the longest `*.suffix` of whole labels, else a chain without names.
- What no chain takes is for the listener's default chain, if it has one.
"""

from collections.abc import Iterable
from dataclasses import field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from meshlib.core.request import Dice
from meshlib.core.route.rule import Origin
from meshlib.core.tunnel import Tunnel
from meshlib.values import dataclass

Subnet = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Share:
    """One destination of a chain. `upto` is the cumulative weight."""

    cluster: str
    weight: int
    upto: int


@dataclass(frozen=True, slots=True)
class FilterChain:
    """Connections that go to one of `shares`. Envoy's filter chain with a TCP proxy."""

    shares: tuple[Share, ...]
    name: str = ""
    names: tuple[str, ...] = ()
    """Of the server (SNI), in lower case: exact, or `*.` and a suffix; none: any."""
    subnets: tuple[Subnet, ...] = ()
    """None: any address."""
    idle_timeout: float = 3600.0
    """Seconds without a byte after which the connection is closed; 0: never."""
    max_duration: float = 0.0
    """Seconds after which it is closed; 0: never."""
    attempts: int = 1
    """How often an endpoint is looked for and tried."""
    tunnel: Tunnel | None = None
    """What the endpoint is asked for first; None: nothing."""
    by_source: bool = False
    """Whether the caller's address decides the endpoint, of a cluster that looks at keys."""
    blocks: bool = False
    """It refuses what the mesh does not know (outboundTrafficPolicy REGISTRY_ONLY); `shares` is empty."""
    origin: Origin = field(default_factory=Origin)

    def pick(self, dice: Dice) -> str:
        """One of the clusters, each as often as its weight says."""
        shares = self.shares
        if len(shares) == 1:
            return shares[0].cluster
        point = dice.random() * shares[-1].upto
        return next(share.cluster for share in shares if point < share.upto)


_ByName = dict[str, FilterChain]


class Connections:
    """The chains of one listener. Immutable. ValueError: two chains ask for the same."""

    __slots__ = ("_anywhere", "_default", "_subnets", "addresses", "chains", "version")

    def __init__(
        self,
        chains: Iterable[FilterChain],
        default: FilterChain | None = None,
        addresses: tuple[str, ...] = (),
        version: str = "",
    ) -> None:
        """`addresses`: the IP addresses of what is called, if it has some of its own; `version`: of the
        configuration that it came with.
        """
        self.chains = tuple(chains)
        self.addresses = addresses
        self.version = version
        self._default = default
        self._anywhere: _ByName = {}
        found: dict[Subnet, _ByName] = {}
        for chain in self.chains:
            places = [found.setdefault(one, {}) for one in chain.subnets] or [self._anywhere]
            for by_name in places:
                for name in chain.names or ("",):
                    if name in by_name:
                        raise ValueError(f"two chains ask for {name or 'any name'} at the same subnet")
                    by_name[name] = chain
        self._subnets = sorted(found.items(), key=lambda entry: -entry[0].prefixlen)

    def __repr__(self) -> str:
        return f"<Connections: {len(self.chains)} chains>"

    def of(self, version: str) -> "Connections":
        """The same chains, of that configuration."""
        return Connections(self.chains, self._default, self.addresses, version)

    @property
    def every(self) -> tuple[FilterChain, ...]:
        """All chains, the default one last."""
        return self.chains if self._default is None else (*self.chains, self._default)

    @property
    def by_address(self) -> bool:
        """Whether the address makes a difference."""
        return bool(self._subnets)

    def find(self, address: str, name: str) -> FilterChain | None:
        """The chain of a connection to an IP address (empty: not known) that asks for `name` (or empty)."""
        by_name = self._at(address) if address and self._subnets else self._anywhere
        return _of_name(by_name, name.lower()) or self._default

    def _at(self, address: str) -> _ByName:
        where = ip_address(address)
        return next((by_name for subnet, by_name in self._subnets if where in subnet), self._anywhere)


def _of_name(by_name: _ByName, name: str) -> FilterChain | None:
    found = by_name.get(name)
    rest = name
    while found is None and "." in rest:
        rest = rest.partition(".")[2]
        found = by_name.get(f"*.{rest}") if rest else None
    return found or by_name.get("")
