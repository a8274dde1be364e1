"""One outgoing connection, step by step, in order, as `outbound` does it for a request.

    chain ─► cluster by weight ─► tries ─► linked ─► ended
    a try: room (breaker), endpoint, Connect, learn

`flow` decides and a driver acts:

| yielded | the driver does | and sends |
|---|---|---|
| `Lookup` | asks the resolver for a host's addresses | a tuple of them |
| `Connect` | connects to an endpoint, shakes hands, asks for a tunnel, as far as told | None, or a `Failed` |
| `Linked` | hands the connection over; resumes or closes the generator when it has ended | ends |
| `Refuse` | raises: there is no connection, and why | ends |

Rules (Envoy, TcpProxy):

- A connection holds its slot, of the cluster and of the endpoint, from its try to its end, in a `with` block.
- One more than the cluster's maxConnections is refused at once (UO): nobody waits.
- Each try picks an endpoint anew; when all have failed it is URX beside UF.
- Of a try outlier detection hears whether there was a connection, and of what comes later nothing.
"""

from collections.abc import Callable, Generator
from typing import NamedTuple

from meshlib.core.actions import Facts
from meshlib.core.balance.cluster import Cluster, Resolution, Upstream
from meshlib.core.balance.endpoints import Endpoint
from meshlib.core.balance.hashing import key_of_source
from meshlib.core.balance.pick import pick, unlisted
from meshlib.core.breaker import Slots
from meshlib.core.ledger import ClusterState, Ledger
from meshlib.core.mtls import ClientTls, secure
from meshlib.core.outlier import learn
from meshlib.core.request import Dice, Failed, Failure, ResponseHead
from meshlib.core.route.chain import Connections, FilterChain
from meshlib.core.tunnel import Tunnel
from meshlib.core.view import View
from meshlib.values import dataclass

_CONNECTED = ResponseHead(200)
"""What a connection counts as for outlier detection (Envoy)."""
_OUT_OF_TIME = "the time of the request that this connection is for ran out"


@dataclass(frozen=True, slots=True)
class Lookup:
    """Which addresses has this host?"""

    host: str


class Connect(NamedTuple):
    """Connect there."""

    address: tuple[str, int]
    seconds: float
    """At most, handshake included."""
    tls: ClientTls | None
    """How it is secured; None: plain text."""
    upstream: Upstream = Upstream()
    deadline: float | None = None
    """When it must be done, on the driver's clock."""
    tunnel: Tunnel | None = None
    """What is asked of who answers there, before the connection stands; None: nothing."""


class Linked(NamedTuple):
    """The connection stands."""

    facts: Facts
    idle_timeout: float
    """Seconds without a byte after which it is closed; 0: never."""
    max_duration: float
    """Seconds after which it is closed; 0: never."""


class Refuse(NamedTuple):
    """There is no connection."""

    failed: Failed | None
    """Of the last try; None: there was none."""
    facts: Facts


Action = Lookup | Connect | Linked | Refuse
Event = tuple[str, ...] | Failed | None
Flow = Generator[Action, Event, None]


class Called(NamedTuple):
    """What the application asks for."""

    target: str
    """`host:port`, a key of the view's tables."""
    host: str
    """As the application wrote it."""
    port: int
    name: str = ""
    """The server's name (SNI) that will be asked for on the connection; empty: none is known of."""
    literal: bool = False
    """Whether the host is an IP address."""


def flow(
    called: Called,
    view: View,
    ledger: Ledger,
    clock: Callable[[], float],
    dice: Dice,
    caller_timeout: float | None = None,
) -> Flow:
    """A connection. `caller_timeout`, in seconds, bounds how long it may take until it stands."""
    deadline = None if caller_timeout is None else clock() + caller_timeout
    connections = view.connections.get(called.target)
    if connections is None:
        yield Refuse(None, Facts(flag="NR", detail=_why_none(view, called), config_version=view.version))
        return
    address = yield from _address(connections, called)
    chain = connections.find(address, called.name)
    version = connections.version
    if chain is None or chain.blocks:
        yield Refuse(None, _refused(chain, called, version))
        return
    one = _Connection(called, view, ledger, clock, dice, deadline, chain, chain.pick(dice), version)
    yield from one.run()


def _why_none(view: View, called: Called) -> str:
    if called.target in view.tables:
        return (
            f"{called.target} speaks HTTP, by the name of its port: its rules are of requests, which an HTTP "
            "client of the mesh sends"
        )
    return f"the control service knows nothing of {called.target}"


def _refused(chain: FilterChain | None, called: Called, version: str) -> Facts:
    asked = f" for {called.name}" if called.name and called.name != called.host else ""
    if chain is None:
        detail = f"no rule of {called.target} takes the connection{asked}"
        return Facts(flag="NR", detail=detail, config_version=version)
    detail = f"{called.target}{asked} is unknown, and outboundTrafficPolicy is REGISTRY_ONLY"
    return Facts(chain.name, flag="UH", detail=detail, config_version=version)


def _address(connections: Connections, called: Called) -> Generator[Action, Event, str]:
    """The IP address to which the connection goes, as far as a sidecar would see it; empty: not known."""
    if called.literal:
        return called.host
    if connections.addresses:
        return connections.addresses[0]
    if not connections.by_address:
        return ""
    found = yield Lookup(called.host)
    return found[0] if isinstance(found, tuple) and found else ""


class _Connection:
    """A connection on its way to a cluster: what all its tries share."""

    __slots__ = (
        *("attempts", "called", "chain", "clock", "cluster", "deadline", "dice", "endpoint", "ledger"),
        *("version", "view"),
    )

    def __init__(
        self,
        called: Called,
        view: View,
        ledger: Ledger,
        clock: Callable[[], float],
        dice: Dice,
        deadline: float | None,
        chain: FilterChain,
        cluster: str,
        version: str,
    ) -> None:
        self.called, self.view, self.ledger, self.clock, self.dice = called, view, ledger, clock, dice
        self.deadline, self.chain, self.cluster, self.version = deadline, chain, cluster, version
        self.attempts = 0
        self.endpoint = ""

    def run(self) -> Flow:
        """The tries until one is good or none is left."""
        cluster = self.view.clusters.get(self.cluster)
        if cluster is None:
            yield Refuse(None, self.facts("NC", f"cluster {self.cluster} is unknown"))
            return
        state = self.ledger.cluster(cluster.name)
        with Slots(state, self.clock) as slots, Room(state) as room:
            if not room.take(cluster.upstream.limits.max_connections):
                detail = f"cluster {cluster.name} has {state.connections} connections"
                yield Refuse(None, self.facts("UO", detail))
                return
            while True:
                if self.out_of_time():
                    out = Failed(Failure.TIMED_OUT, _OUT_OF_TIME)
                    yield Refuse(out, self.facts("UT", _OUT_OF_TIME))
                    return
                found = self.pick(cluster, state)
                if found is None:
                    yield Refuse(None, self.facts("UH", f"cluster {cluster.name} has no healthy endpoint"))
                    return
                self.attempts += 1
                self.endpoint = found.key
                slots.begin(state.host(found.key))
                failed = yield self.connect(cluster, found)
                if not isinstance(failed, Failed):
                    self.learn(cluster, state, found, _CONNECTED)
                    yield Linked(self.facts(), self.chain.idle_timeout, self.chain.max_duration)
                    return
                self.learn(cluster, state, found, failed)
                slots.end()
                if self.attempts >= self.chain.attempts and not self.out_of_time():
                    yield Refuse(failed, self.facts("UF,URX", failed.detail))
                    return

    def out_of_time(self) -> bool:
        """Whether nobody waits any more."""
        return self.deadline is not None and self.clock() >= self.deadline

    def connect(self, cluster: Cluster, endpoint: Endpoint) -> Connect:
        """One try."""
        tls = secure(cluster, endpoint)
        where = endpoint.at or endpoint.address
        upstream = cluster.upstream
        return Connect(where, upstream.connect_timeout, tls, upstream, self.deadline, self.chain.tunnel)

    def pick(self, cluster: Cluster, state: ClusterState) -> Endpoint | None:
        """An endpoint of the cluster."""
        if cluster.resolution in (Resolution.ORIGINAL, Resolution.DYNAMIC):
            host = self.called.name if cluster.resolution is Resolution.DYNAMIC else ""
            named = Endpoint(host or self.called.host, self.called.port)
            return unlisted(cluster, named, state, self.clock(), self.dice)
        endpoints = cluster.inline or self.view.endpoints.get(cluster.name)
        if endpoints is None:
            return None
        return pick(cluster, endpoints, state, self.clock(), self.dice, key=self.key(cluster))

    def key(self, cluster: Cluster) -> int | None:
        """What decides the endpoint, of a cluster that sends each key to one."""
        if cluster.hash_table is None or not self.chain.by_source:
            return None
        return key_of_source(self.ledger.address)

    def learn(
        self, cluster: Cluster, state: ClusterState, endpoint: Endpoint, outcome: Failed | ResponseHead
    ) -> None:
        """Tells outlier detection; but not of a try that was cut short by who is waiting."""
        if cluster.outlier is None or (outcome is not _CONNECTED and self.out_of_time()):
            return

        def size() -> int:
            listed = cluster.inline or self.view.endpoints.get(cluster.name)
            return listed.size if listed else len(state.hosts)

        key = endpoint.key
        host, clock, dice = state.host(key), self.clock, self.dice
        learn(cluster.outlier, state, key, host, outcome, size, clock, dice, bare=True)

    def facts(self, flag: str = "-", detail: str = "") -> Facts:
        """What is told of this connection now."""
        chain = self.chain
        return Facts(
            chain.name,
            chain.origin.document,
            chain.origin.source,
            self.cluster,
            self.endpoint,
            self.attempts,
            flag,
            detail,
            self.version,
        )


class Room:
    """What one connection takes of its cluster's maxConnections; given back at the end of `with`."""

    __slots__ = ("_state", "_taken")

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._taken = False

    def take(self, most: int) -> bool:
        """Whether there is room."""
        if self._state.connections >= most:
            return False
        self._state.connections += 1
        self._taken = True
        return True

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *_: object) -> None:
        if self._taken:
            self._taken = False
            self._state.connections -= 1
