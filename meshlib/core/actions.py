"""The vocabulary between core and drivers: what `outbound.flow` yields, and what it is sent back.

| yielded | the driver does | and sends |
|---|---|---|
| `Sleep` | waits | None |
| `Attempt` | sends the request to the endpoint | an `Outcome` |
| `Mirror` | sends a copy in the background, looks at nothing | None |
| `Begin` | begins an attempt, which goes on while others are begun | None |
| `Await` | waits until one that was begun has ended | `Ended`; None: the time passed |
| `Discard` | drops the response of the last attempt, or of the one that ended last | None |
| `Reply` | returns this response; nothing was sent, or it does not matter any more | ends |
| `Deliver` | returns the last attempt's response, headers edited, body by `deadline` | the end of the body |
| `Raise` | raises: the last attempt failed and there is nothing to return | ends |

The last three give up what was begun and has not ended.

Those that every request makes are named tuples: a frozen dataclass takes three times as long to make.

After `Deliver` the driver resumes the generator when the body ended, broke or was closed, or
closes it (`GeneratorExit`): so a slot that the generator holds is given back exactly once.
"""

from collections.abc import Generator
from dataclasses import field
from typing import NamedTuple, Protocol

from meshlib.core.balance.cluster import Limits, Upstream
from meshlib.core.mtls import ClientTls
from meshlib.core.request import Failed, Header, Outcome, RequestHead
from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait that long before the next step (a back-off or an injected delay)."""

    seconds: float


class Queue(Protocol):
    """What the circuit breaker asks of a pool."""

    def waits(self) -> None:
        """The try has no connection yet: all are in use, or one is being made."""

    def goes_on(self, limits: Limits) -> bool:
        """It has one; False: it may not be used, for too many requests are in flight. Asked each time."""


class Attempt(NamedTuple):
    """Send `head` to `address`; one try."""

    cluster: str
    """Whose connections: each cluster has a pool."""
    address: tuple[str, int]
    head: RequestHead
    upstream: Upstream
    try_deadline: float | None
    """When this try must have a response head, on the driver's clock; None: no limit of its own."""
    deadline: float | None
    """When the response must be whole, on the driver's clock."""
    number: int = 1
    """1 for the first try."""
    tls: ClientTls | None = None
    """How the connection is secured; None: plain text."""
    queue: Queue | None = None
    """Who is told of the way to a connection, and may forbid to use it; None: nobody."""
    at: tuple[str, int] | None = None
    """Where a new connection goes; None: to `address`, by which connections are kept."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """Send a copy of the request there, without waiting for it or caring what becomes of it."""

    cluster: str
    address: tuple[str, int]
    head: RequestHead
    upstream: Upstream
    """Of copies: no connection is shared with requests, and no copy waits for one."""
    timeout: float
    """Seconds after which the copy is given up."""
    tls: ClientTls | None = None
    at: tuple[str, int] | None = None
    """As of an Attempt."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Close the response of the last attempt: another try follows."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Send it as an Attempt, but do not wait for what becomes of it."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until one of the tries that were begun has ended."""

    seconds: float | None
    """At most so long; None: as long as it takes."""


class Facts(NamedTuple):
    """What is told of a finished decision: for errors, `response.extensions["meshlib"]` and telemetry."""

    route: str = ""
    """The route's name in the wire configuration."""
    document: str = ""
    """`VirtualService namespace/name`, or empty for a default route."""
    source: str = ""
    """`file:line` of the YAML behind the route."""
    cluster: str = ""
    endpoint: str = ""
    """`address:port` of the last attempt."""
    attempts: int = 0
    flag: str = "-"
    """Envoy's response flags, comma separated; `-` for none."""
    detail: str = ""
    """One sentence: why this reply, if the mesh made it."""
    config_version: str = ""


def joined(first: str, then: str) -> str:
    """The flags of both, in the order in which they came up."""
    if "-" in (first, then):
        return then if first == "-" else first
    return f"{first},{then}"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response of the mesh's own, as a sidecar makes it: redirect, direct response, 404 NR, 503 UH, …"""

    status: int
    facts: Facts
    headers: tuple[Header, ...] = ()
    body: bytes = b""


class Deliver(NamedTuple):
    """Return the last attempt's response with these headers."""

    headers: tuple[Header, ...]
    facts: Facts
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Raise:
    """The last attempt failed for good: raise the error for `failed`, which says `facts`."""

    failed: Failed
    facts: Facts


Action = Sleep | Attempt | Begin | Await | Mirror | Discard | Reply | Deliver | Raise


@dataclass(frozen=True, slots=True)
class BodyEnded:
    """Sent into the flow after `Deliver`: the body was read to its end, or not."""

    complete: bool = True
    failed: Failed | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a try that was begun."""

    number: int
    """The attempt's."""
    outcome: Outcome


Event = Outcome | Ended | BodyEnded | None
"""What a driver sends back."""
Flow = Generator[Action, Event, None]
"""One request."""
