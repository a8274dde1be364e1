"""Sets up OpenTelemetry's SDK for a process that has none, as the OTEL_* variables say: `meshlib serve` does.

Rules:

- Nothing is sent to anybody unless a variable names an exporter or an endpoint: by the specification an
  exporter without one would knock at localhost:4318, where usually nobody is.
- What the application has set up itself stays as it is.
- Exporters are found as OpenTelemetry's own launcher finds them, by their entry points: `console` and `otlp`
  (over HTTP, or gRPC if its package is there) work, and others do once they are installed.
- The workload's name and namespace are the resource's, unless OTEL_SERVICE_NAME or
  OTEL_RESOURCE_ATTRIBUTES say otherwise. Everything else (samplers, intervals, headers, limits) the SDK
  reads.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.telemetry.workload import of_settings
from meshlib.errors import ConfigError

_DISABLED = "OTEL_SDK_DISABLED"
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def exporters(environ: Mapping[str, str], signal: str) -> tuple[str, ...]:
    """The names of the entry points for a signal, `traces` or `metrics`. ConfigError: an unknown protocol."""
    upper = signal.upper()
    asked = environ.get(f"OTEL_{upper}_EXPORTER", "")
    own_endpoint = f"OTEL_EXPORTER_OTLP_{upper}_ENDPOINT"
    if not asked and (environ.get(_ENDPOINT) or environ.get(own_endpoint)):
        asked = "otlp"
    names = [name.strip() for name in asked.split(",")]
    protocol = (
        environ.get(f"OTEL_EXPORTER_OTLP_{upper}_PROTOCOL") or environ.get(_PROTOCOL) or "http/protobuf"
    )
    if "otlp" in names and protocol not in _OTLP:
        raise ConfigError(f"{_PROTOCOL}: found {protocol!r}; allowed is {' or '.join(_OTLP)}")
    found = (_OTLP[protocol] if name == "otlp" else name for name in names)
    return tuple(dict.fromkeys(name for name in found if name not in ("", "none")))


@contextlib.contextmanager
def wired(settings: Bootstrap, environ: Mapping[str, str]) -> Iterator[None]:
    """An SDK while the block runs, if there is something to send; what waits is sent at the end.

    ConfigError: an exporter is asked for that is not installed.
    """
    traces, metrics = (exporters(environ, signal) for signal in ("traces", "metrics"))
    if environ.get(_DISABLED, "").lower() == "true" or not (traces or metrics):
        yield
        return
    if find_spec("opentelemetry.sdk") is None:
        raise ConfigError("OTEL_ variables ask for telemetry to be sent; install meshlib[otel]")
    _end_in_order()
    made = [shutdown for shutdown in (_tracing(settings, traces), _measuring(settings, metrics)) if shutdown]
    try:
        yield
    finally:
        for shutdown in made:
            shutdown()


def _end_in_order() -> None:
    """SIGTERM ends the block, too: servers end a process by the signal that they were stopped with."""
    unset = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if unset and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))


def _tracing(settings: Bootstrap, names: tuple[str, ...]) -> Callable[[], None] | None:
    from opentelemetry import trace

    if not names or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=_resource(settings), shutdown_on_exit=False)
    for name in names:
        provider.add_span_processor(BatchSpanProcessor(_load("traces", name)()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _measuring(settings: Bootstrap, names: tuple[str, ...]) -> Callable[[], None] | None:
    from opentelemetry import metrics

    # The API gives its placeholder no public name.
    if not names or not type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics"):
        return None
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    from meshlib.dataplane.telemetry.provider import MeterProvider

    readers = []
    for name in names:
        loaded = _load("metrics", name)()
        # Some are pulled from, as Prometheus does; they are readers themselves.
        readers.append(loaded if isinstance(loaded, MetricReader) else PeriodicExportingMetricReader(loaded))
    provider = MeterProvider(readers, _resource(settings), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown


def _load(signal: str, name: str) -> Any:
    group = f"opentelemetry_{signal}_exporter"
    found = next(iter(entry_points(group=group, name=name)), None)
    if found is None:
        known = ", ".join(sorted({entry.name for entry in entry_points(group=group)})) or "none"
        raise ConfigError(f"OTEL_{signal.upper()}_EXPORTER: {name} is not installed; installed are {known}")
    return found.load()


def _resource(settings: Bootstrap) -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own = of_settings(settings)
    said = {
        "service.name": own.service,
        "service.namespace": own.namespace,
        "service.version": own.version or own.revision,
    }
    return Resource.create(said).merge(OTELResourceDetector().detect())
