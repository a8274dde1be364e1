"""A route and what it says: frozen values, made once when a route configuration arrives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from meshlib.core.headers import HeaderEdits
from meshlib.core.request import RequestHead
from meshlib.core.retry import RetryPolicy
from meshlib.core.route.match import RouteMatch


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
    times: Timeouts | None = field(init=False, compare=False, repr=False)
    """The times of every request; None: they depend on the request's grpc-timeout."""

    def __post_init__(self) -> None:
        fixed = self.max_grpc_timeout is None
        object.__setattr__(self, "times", Timeouts.of(self.timeout, self.retry) if fixed else None)


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
