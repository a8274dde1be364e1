"""WorkloadGroup: a template for endpoints that register themselves."""

from enum import StrEnum

from pydantic import Field

from meshlib.control.istio.fields import Int32, Labels, Spec, Text, UInt32
from meshlib.control.istio.workloadentry import WorkloadEntry


class ObjectMeta(Spec):
    """What every entry of the group carries."""

    labels: Labels = Field(default_factory=dict)
    annotations: Labels = Field(default_factory=dict)


class HTTPHeader(Spec):
    """A header of a probe."""

    name: Text = ""
    value: Text = ""


class Scheme(StrEnum):
    """The scheme of a probe."""

    HTTP = "HTTP"
    HTTPS = "HTTPS"


class HTTPGetProbe(Spec):
    """A GET that must answer 200 to 399."""

    path: Text = ""
    port: UInt32 = 0
    host: Text = ""
    scheme: Scheme = Scheme.HTTP
    http_headers: tuple[HTTPHeader, ...] = ()


class TCPSocketProbe(Spec):
    """A connection that must open."""

    host: Text = ""
    port: UInt32 = 0


class ExecProbe(Spec):
    """A command that must exit with 0."""

    command: tuple[Text, ...] = ()


class GRPCProbe(Spec):
    """A gRPC health check."""

    port: UInt32 = 0
    service: Text = ""


class ReadinessProbe(Spec):
    """How it is found out whether an endpoint takes requests. 0 is the default."""

    one_of = (("http_get", "tcp_socket", "exec", "grpc"),)

    initial_delay_seconds: Int32 = 0
    timeout_seconds: Int32 = 0
    period_seconds: Int32 = 0
    success_threshold: Int32 = 0
    failure_threshold: Int32 = 0
    http_get: HTTPGetProbe | None = None
    tcp_socket: TCPSocketProbe | None = None
    exec: ExecProbe | None = None
    grpc: GRPCProbe | None = None


class WorkloadGroup(Spec):
    """The spec of a WorkloadGroup."""

    metadata: ObjectMeta | None = None
    template: WorkloadEntry | None = None
    probe: ReadinessProbe | None = None
