"""A real OpenTelemetry SDK that keeps in memory what it is told."""

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from meshlib.bootstrap import Bootstrap
from meshlib.core.view import View
from meshlib.dataplane.telemetry.watch import Telemetry

NOTHING = View()


class Told:
    """What an SDK was told, and the providers to tell it."""

    def __init__(
        self, sampler: Sampler = ALWAYS_ON, made: Callable[..., MeterProvider] = MeterProvider
    ) -> None:
        self._reader = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        self.meters = made([self._reader])
        self.tracers = TracerProvider(sampler)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))

    def telemetry(
        self,
        settings: Bootstrap,
        view: Callable[[], View] = lambda: NOTHING,
        principal: str = "",
        **more: Any,
    ) -> Telemetry:
        """One that tells this SDK everything."""
        providers: Mapping[str, Any] = {"tracers": self.tracers, "meters": self.meters}
        return Telemetry(settings, view, lambda: principal, **{**providers, **more})

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended."""
        return list(self._spans.get_finished_spans())

    def spans_forgotten(self) -> None:
        """Drops what it keeps of spans."""
        self._spans.clear()

    def metrics(self) -> dict[str, list[Any]]:
        """The data points of each metric."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def units(self) -> dict[str, str]:
        """The unit of each metric."""
        data = self._reader.get_metrics_data()
        assert data is not None
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return {metric.name: metric.unit for scope in scopes for metric in scope.metrics}

    def requests(self) -> list[tuple[int, dict[str, Any]]]:
        """How many requests there were of each set of labels."""
        points = self.metrics().get("istio_requests_total", [])
        return [(point.value, dict(point.attributes)) for point in points]

    def close(self) -> None:
        """Ends both providers."""
        self.meters.shutdown()
        self.tracers.shutdown()
