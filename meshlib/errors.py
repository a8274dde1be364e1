"""Every error that meshlib raises, in one tree.

    MeshError
    ├── ConfigError               your YAML, settings or arguments
    │   └── InvalidDocument       one document is refused; says file, line, field, found, allowed
    ├── ControlError              the control service
    │   ├── ControlUnavailable    not reached, and no last good configuration to go by
    │   └── RefusedResource       it sent something that this library refuses (a NACK)
    └── RequestError              one request; carries a Flight: what was tried, by which rule
        ├── ConnectFailed         UF   no connection to the endpoint         safe to retry
        │   ├── ConnectTimedOut   UF   no connection in time                 safe to retry
        │   └── NoUpstream             a connection has nowhere to go: NR no rule, NC no such
        │                              cluster, UH no healthy endpoint, UO too many of them
        ├── UpstreamReset         UC   the connection broke before a reply
        ├── UpstreamTimedOut      UT   the route's or the try's time ran out
        ├── UpstreamProtocolError UPE  the peer does not speak the protocol
        └── Closed                     the Mesh was closed

Each class says whose fault it is (`fault`), whether the same request may safely be sent again
(`retryable`), and what a sidecar would have answered (`status`, `grpc_code`, `flag`: Envoy's
response flag). Replies that a sidecar makes itself, such as 404 NR or 503 UH, are responses and
not errors; see `core.actions.Reply`.
"""

from typing import ClassVar, Literal

from meshlib.values import dataclass

Fault = Literal["configuration", "control", "upstream", "application"]


class MeshError(Exception):
    """The root of the tree."""

    fault: ClassVar[Fault] = "application"
    retryable: ClassVar[bool] = False
    status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "UNKNOWN"
    flag: str = "-"


class ConfigError(MeshError):
    """Settings, arguments or YAML that can't be used; the message says which and what is allowed."""

    fault = "configuration"


@dataclass(eq=False)
class InvalidDocument(ConfigError):
    """One document is refused. The last good state of that document stays in force."""

    file: str
    line: int
    field: str
    found: str
    allowed: str

    def __str__(self) -> str:
        what = f": found {self.found}" if self.found else ""
        return f"{self.file}:{self.line}: {self.field}{what}; {self.allowed}"


class ControlError(MeshError):
    """The control service failed; traffic by the last good configuration goes on."""

    fault = "control"
    status = 503
    grpc_code = "UNAVAILABLE"


class ControlUnavailable(ControlError):
    """The control service can't be reached and nothing is known from before."""

    retryable = True


class RefusedResource(ControlError):
    """A resource from the control service that can't be used; the last good one stays.

    The message is a path to the field, such as `virtual_hosts[0].routes[2].match.safe_regex: …`.
    """


@dataclass(frozen=True, slots=True)
class Flight:
    """What is known of one request when it fails: by which rule, where to, how often."""

    route: str = ""
    cluster: str = ""
    endpoint: str = ""
    attempts: int = 0
    config_version: str = ""
    source: str = ""
    """`file:line` of the YAML that the route came from."""

    def __str__(self) -> str:
        parts = (
            f"route {self.route}" if self.route else "",
            f"cluster {self.cluster}" if self.cluster else "",
            f"endpoint {self.endpoint}" if self.endpoint else "",
            f"{self.attempts} attempt{'s' * (self.attempts != 1)}" if self.attempts else "",
            f"config {self.config_version}" if self.config_version else "",
            f"from {self.source}" if self.source else "",
        )
        return ", ".join(part for part in parts if part)


NO_FLIGHT = Flight()
"""Nothing is known of it."""


class RequestError(MeshError):
    """One request failed without a response. `flight` says what was tried."""

    fault: ClassVar[Fault] = "upstream"
    status = 503
    grpc_code = "UNAVAILABLE"

    def __init__(self, message: str, flight: Flight = NO_FLIGHT) -> None:
        # Adapters mix it with their library's errors, whose own want other arguments.
        Exception.__init__(
            self, f"{message} [{self.flag}] ({flight})" if str(flight) else f"{message} [{self.flag}]"
        )
        self.reason = message
        self.flight = flight


class ConnectFailed(RequestError):
    """The endpoint refused the connection, or the connection could not be made."""

    retryable = True
    flag = "UF"


class ConnectTimedOut(ConnectFailed):
    """The endpoint did not answer within the cluster's connect timeout."""


class NoUpstream(ConnectFailed):
    """The mesh has nowhere to send a connection; of a request that is a response (404 NR, 503 UH, …)."""

    def __init__(self, message: str, flight: Flight = NO_FLIGHT, flag: str = "NR") -> None:
        self.flag = flag
        super().__init__(message, flight)


class UpstreamReset(RequestError):
    """The connection broke after the request was sent and before the reply was whole."""

    flag = "UC"


class UpstreamTimedOut(RequestError):
    """The route's timeout, or the last try's, ran out."""

    status = 504
    grpc_code = "DEADLINE_EXCEEDED"
    flag = "UT"


class UpstreamProtocolError(RequestError):
    """The peer's bytes are not the protocol."""

    status = 502
    flag = "UPE"


class Closed(RequestError):
    """The Mesh, client or transport was closed before."""

    fault: ClassVar[Fault] = "application"
