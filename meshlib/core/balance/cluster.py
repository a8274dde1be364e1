"""A cluster's policy: how to balance, connect, and when to stop."""

from dataclasses import field
from enum import Enum

from meshlib.core.balance.dns import Named
from meshlib.core.balance.endpoints import EndpointSet
from meshlib.core.budget import RetryBudget
from meshlib.core.http2 import Http2
from meshlib.core.mtls import ClientTls, Transport
from meshlib.core.outlier_policy import OutlierPolicy
from meshlib.core.route.rule import Origin
from meshlib.values import dataclass

UNLIMITED = 2**32 - 1
MAX_POINTS = 131_072
"""Of a table of keys. Envoy's rings have up to 8,388,608, which would be too much to build here."""
MAGLEV_SIZE = 65_537


class Policy(Enum):
    """How an endpoint is picked."""

    ROUND_ROBIN = "round robin"
    LEAST_REQUEST = "least request"
    RANDOM = "random"
    RING_HASH = "ring hash"
    MAGLEV = "maglev"


@dataclass(frozen=True, slots=True)
class HashTable:
    """How large the table of keys is, and what stands for an endpoint in it."""

    least_ring: int = 1024
    most_ring: int = MAX_POINTS
    """Points of the ring."""
    maglev: int = MAGLEV_SIZE
    """Entries of Maglev's table: a prime number."""
    by_hostname: bool = False
    """Whether it is an endpoint's host name; otherwise its address and port."""


@dataclass(frozen=True, slots=True)
class Warmup:
    """An endpoint that is new takes less at first (Envoy's slow start)."""

    window: float
    """Seconds."""
    aggression: float = 1.0
    """More than 1: faster at the beginning."""
    least: float = 0.1
    """Share of its weight that it has at least."""


class Resolution(Enum):
    """Where the addresses come from."""

    ENDPOINTS = "the control service"
    DNS = "DNS, of the endpoints' host names"
    ORIGINAL = "the address that the application named (pass through)"
    DYNAMIC = "DNS, of the host of each request (dynamic forward proxy)"


@dataclass(frozen=True, slots=True)
class Limits:
    """Envoy's circuit breaker thresholds."""

    max_connections: int = UNLIMITED
    max_pending: int = UNLIMITED
    max_requests: int = UNLIMITED
    max_retries: int = UNLIMITED
    budget: RetryBudget | None = None
    """What stands for `max_retries`."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """TCP keep-alive; None: as the system has it."""

    probes: int | None = None
    """Without an answer, after which the connection is lost."""
    idle: int | None = None
    """Seconds of silence before the first probe."""
    interval: int | None = None
    """Seconds between two probes."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """How connections to a cluster's endpoints are made, shared and ended: one value, computed when the
    cluster arrives, that every attempt carries to the pool. What is needed there, stands here.
    """

    connect_timeout: float = 10.0
    """Seconds for a new connection."""
    limits: Limits = Limits()
    max_requests_per_connection: int = 0
    """0: no limit."""
    idle_timeout: float = 3600.0
    """Seconds after which an idle connection is closed instead of used."""
    max_connection_duration: float = float("inf")
    """Seconds after which a connection is closed, as soon as it is idle."""
    keepalive: Keepalive | None = None
    proxy_protocol: int = 0
    """The version of the PROXY header with which a connection begins; 0: it has none."""
    waits: bool = True
    """Whether a request waits for a connection if all are in use."""
    http2: Http2 | None = None
    """HTTP/2 is spoken, and how; None: HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The policy of one cluster."""

    name: str
    endpoints_name: str
    """Which EDS resource lists its endpoints."""
    policy: Policy = Policy.LEAST_REQUEST
    resolution: Resolution = Resolution.ENDPOINTS
    choice_count: int = 2
    upstream: Upstream = Upstream()
    outlier: OutlierPolicy | None = None
    panic_threshold: int = 50
    """Percent of healthy endpoints below which health is ignored."""
    fail_on_panic: bool = False
    """Whether a priority that panics takes no requests, instead of using all its endpoints."""
    locality_weighted: bool = False
    active_request_bias: float = 1.0
    """How much requests in flight lower an endpoint's weight under least request with unequal weights."""
    warmup: Warmup | None = None
    hash_table: HashTable | None = None
    """Not None: the policy looks at keys."""
    inline: EndpointSet | None = None
    """The endpoints, if the cluster's own resource lists them."""
    named: Named | None = None
    """The same, by names: what these stand for now is in the view, as if the control service had said so."""
    transports: tuple[Transport, ...] = ()
    """How endpoints are reached, by their metadata; the first that fits counts."""
    tls: ClientTls | None = None
    """What is asked of endpoints that no transport fits; None: plain text."""
    service: tuple[str, str, str] | None = None
    """Host, name and namespace of the service behind it, for people; None: it does not say."""
    origin: Origin = field(default=Origin(), compare=False)
    """Which YAML its policy comes from: a DestinationRule, else what made the service."""
