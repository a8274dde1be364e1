"""A route and what it says: frozen values, made once when a route configuration arrives."""

from collections.abc import Callable
from dataclasses import field
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from meshlib.core.balance.hashing import HashPolicy
from meshlib.core.fault import Fault
from meshlib.core.headers import HeaderEdits
from meshlib.core.request import Header, RequestHead
from meshlib.core.retry import RetryPolicy
from meshlib.core.route.match import RouteMatch
from meshlib.values import dataclass

if TYPE_CHECKING:
    from meshlib.core.cors import CorsPolicy  # which only servers need

EXPECTED = b"x-envoy-expected-rq-timeout-ms"
"""In this header the next service is told how long it has."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Which YAML made a rule."""

    document: str = ""
    """`VirtualService default/reviews`; empty for a default route."""
    source: str = ""
    """`file:line`."""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.document, self.source)))


@dataclass(frozen=True, slots=True)
class WeightedCluster:
    """One destination of a route. `upto` is the cumulative weight, for one bisection a pick."""

    name: str
    weight: int
    upto: int
    request_headers: HeaderEdits
    response_headers: HeaderEdits
    authority: str = ""
    """The authority to send instead, or empty."""
    fault: Fault | None = None
    """Its own, or its route's."""


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """A copy of a share of the requests goes to `cluster`."""

    cluster: str
    millionths: int = 1_000_000
    """The share, in parts per million."""


class Timeouts(NamedTuple):
    """Seconds; 0: no limit."""

    whole: float
    per_try: float

    @classmethod
    def of(cls, whole: float, retry: RetryPolicy | None) -> "Timeouts":
        """Those of a route: a try's time that is not shorter than the whole has no effect."""
        per_try = retry.per_try_timeout if retry is not None else 0.0
        return cls(whole, 0.0 if whole and per_try >= whole else per_try)


@lru_cache(maxsize=512)
def expected(per_try: float, left: float | None) -> bytes | None:
    """The value of x-envoy-expected-rq-timeout-ms; None: there is no limit to tell.

    `left` is what is left of the whole, None: that has no limit.
    """
    shortest = min(per_try or left, left) if left is not None else per_try
    # Rounded up, as by Envoy, which takes off whole milliseconds: who is told gives up no earlier.
    return b"%d" % max(1, ceil(shortest * 1000 - 1e-6)) if left is not None or per_try else None


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request to one of `clusters`."""

    clusters: tuple[WeightedCluster, ...]
    total_weight: int
    timeout: float = 0.0
    """Seconds for the whole response; 0: no limit."""
    retry: RetryPolicy | None = None
    mirrors: tuple[MirrorPolicy, ...] = ()
    rewrite: Callable[[RequestHead], str] | None = None
    """Gives the new path (with query); empty: the path stays."""
    rewrite_text: str = ""
    """The rewrite in words, for `meshlib explain`."""
    authority: str = ""
    """The authority to send instead, or empty."""
    max_grpc_timeout: float | None = None
    """Upper bound in seconds of a gRPC request's own grpc-timeout; 0: no bound; None: ignore it."""
    hedged: bool = False
    """Whether a try whose time has passed goes on beside the next one."""
    hashing: tuple[HashPolicy, ...] = ()
    """What of a request is hashed, for clusters whose policy looks at keys."""
    times: Timeouts = field(init=False, compare=False, repr=False)
    """The times of every request whose own grpc-timeout is not looked at."""
    told: tuple[Header, ...] = field(init=False, compare=False, repr=False)
    """What a first try is told of them."""

    def __post_init__(self) -> None:
        times = Timeouts.of(self.timeout, self.retry)
        value = expected(times.per_try, times.whole or None)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "told", () if value is None else ((EXPECTED, value),))


@dataclass(frozen=True, slots=True)
class Redirect:
    """Answer with a redirect. Envoy's RedirectAction."""

    status: int = 301
    scheme: str = ""
    https: bool = False
    host: str = ""
    port: int = 0
    path: str = ""
    """Instead of the request's path; if it has a query, that replaces the request's query."""
    rewrite: Callable[[RequestHead], str] | None = None
    """Gives the path (with query) if `path` is empty; None, or empty: the request's own."""
    rewrite_text: str = ""
    """The rewrite in words, for `meshlib explain`."""
    strip_query: bool = False


@dataclass(frozen=True, slots=True)
class DirectResponse:
    """Answer with a fixed response."""

    status: int
    body: bytes = b""
    blocks: bool = False
    """It refuses a host that the mesh does not know (outboundTrafficPolicy REGISTRY_ONLY)."""


@dataclass(frozen=True, slots=True)
class Route:
    """One rule: if `match` holds, do `action`."""

    name: str
    match: RouteMatch
    action: Forward | Redirect | DirectResponse
    request_headers: HeaderEdits
    response_headers: HeaderEdits
    origin: Origin = field(default_factory=Origin)
    fault: Fault | None = None
    """Of a rule that answers by itself; one that forwards has those of its clusters."""
    cors: "CorsPolicy | None" = None
    """Of requests that this process serves."""
    edits: bool = field(init=False, compare=False, repr=False)
    """Whether it changes anything of a request that it forwards."""

    def __post_init__(self) -> None:
        action, edits = self.action, bool(self.request_headers)
        if isinstance(action, Forward):
            each = any(one.request_headers or one.authority for one in action.clusters)
            edits = edits or each or bool(action.authority) or action.rewrite is not None
        object.__setattr__(self, "edits", edits)
