"""Telemetry: which metrics, spans and access logs are made."""

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from meshlib.control.istio.fields import Bool, LabelSelector, Number, Seconds, Spec, TargetReference, Text


class ProviderRef(Spec):
    """One of the mesh's extensionProviders, by name."""

    name: Text = ""


class WorkloadMode(StrEnum):
    """On which side of a request."""

    CLIENT_AND_SERVER = "CLIENT_AND_SERVER"
    CLIENT = "CLIENT"
    SERVER = "SERVER"


class Literal(Spec):
    """A tag with a fixed value."""

    value: Text = ""


class Environment(Spec):
    """A tag from an environment variable."""

    name: Text = ""
    default_value: Text = ""


class RequestHeader(Spec):
    """A tag from a request header."""

    name: Text = ""
    default_value: Text = ""


class Formatter(Spec):
    """A tag from an access log expression."""

    value: Text = ""


class CustomTag(Spec):
    """A tag of a span."""

    one_of = (("literal", "environment", "header", "formatter"),)

    literal: Literal | None = None
    environment: Environment | None = None
    header: RequestHeader | None = None
    formatter: Formatter | None = None


class TracingSelector(Spec):
    """The side that is traced."""

    mode: WorkloadMode = WorkloadMode.CLIENT_AND_SERVER


class Tracing(Spec):
    """Spans."""

    match: TracingSelector | None = None
    providers: tuple[ProviderRef, ...] = ()
    random_sampling_percentage: Number | None = None
    disable_span_reporting: Bool | None = None
    custom_tags: Mapping[Text, CustomTag] = Field(default_factory=dict)
    use_request_id_for_trace_sampling: Bool | None = None
    enable_istio_tags: Bool | None = None
    disable_context_propagation: Bool | None = None


class IstioMetric(StrEnum):
    """The standard metrics."""

    ALL_METRICS = "ALL_METRICS"
    REQUEST_COUNT = "REQUEST_COUNT"
    REQUEST_DURATION = "REQUEST_DURATION"
    REQUEST_SIZE = "REQUEST_SIZE"
    RESPONSE_SIZE = "RESPONSE_SIZE"
    TCP_OPENED_CONNECTIONS = "TCP_OPENED_CONNECTIONS"
    TCP_CLOSED_CONNECTIONS = "TCP_CLOSED_CONNECTIONS"
    TCP_SENT_BYTES = "TCP_SENT_BYTES"
    TCP_RECEIVED_BYTES = "TCP_RECEIVED_BYTES"
    GRPC_REQUEST_MESSAGES = "GRPC_REQUEST_MESSAGES"
    GRPC_RESPONSE_MESSAGES = "GRPC_RESPONSE_MESSAGES"


class MetricSelector(Spec):
    """Which metric, on which side."""

    one_of = (("metric", "custom_metric"),)

    metric: IstioMetric | None = None
    custom_metric: Text | None = None
    mode: WorkloadMode = WorkloadMode.CLIENT_AND_SERVER


class TagOperation(StrEnum):
    """What is done to a tag."""

    UPSERT = "UPSERT"
    REMOVE = "REMOVE"


class TagOverride(Spec):
    """A tag that is set by an expression, or removed."""

    operation: TagOperation = TagOperation.UPSERT
    value: Text = ""


class MetricsOverrides(Spec):
    """Changes to some metrics."""

    match: MetricSelector | None = None
    disabled: Bool | None = None
    tag_overrides: Mapping[Text, TagOverride] = Field(default_factory=dict)


class Metrics(Spec):
    """Metrics."""

    providers: tuple[ProviderRef, ...] = ()
    overrides: tuple[MetricsOverrides, ...] = ()
    reporting_interval: Seconds | None = None


class LogSelector(Spec):
    """The side that is logged."""

    mode: WorkloadMode = WorkloadMode.CLIENT_AND_SERVER


class Filter(Spec):
    """A CEL expression that says which requests are logged."""

    expression: Text = ""


class AccessLogging(Spec):
    """Access logs."""

    match: LogSelector | None = None
    providers: tuple[ProviderRef, ...] = ()
    disabled: Bool | None = None
    filter: Filter | None = None


class Telemetry(Spec):
    """The spec of a Telemetry."""

    selector: LabelSelector | None = None
    target_ref: TargetReference | None = None
    target_refs: tuple[TargetReference, ...] = ()
    tracing: tuple[Tracing, ...] = ()
    metrics: tuple[Metrics, ...] = ()
    access_logging: tuple[AccessLogging, ...] = ()
