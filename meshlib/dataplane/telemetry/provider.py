"""`meshlib.MeterProvider`: the SDK's own, whose readers are handed the mesh's histograms when they collect.

The SDK takes tens of microseconds to record a request in three histograms with 25 labels, for it sorts and
hashes the labels each time, and its API can't bind them. Here the mesh counts by itself (`aggregate.py`), and
what a reader receives has the points that the SDK would have made. OpenTelemetry's specification calls that
a MetricProducer; the SDK for Python has none.

Rules:

- All readers of a provider or none: nothing is recorded in the SDK and by the mesh.
- What else the mesh measures are observed instruments, which cost nothing before somebody collects.
- As the specification says of a MetricProducer: views and a reader's own aggregation are for instruments,
  and the histograms are none. A reader's temporality holds for them, too.
- What is used of the SDK is public or documented for subclasses (`_receive_metrics`), but for one attribute
  (`_preferred_temporality`, by which the SDK's own readers ask their exporters).
"""

import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricReader,
    MetricsData,
    ScopeMetrics,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from meshlib.dataplane.telemetry.aggregate import BOUNDS, Distribution, Told, Turns
from meshlib.dataplane.telemetry.metrics import HISTOGRAMS, SCOPE, instruments

_handed: "weakref.WeakSet[MetricReader]" = weakref.WeakSet()


class MeterProvider(sdk.MeterProvider):
    """`opentelemetry.sdk.metrics.MeterProvider`, with the same parameters."""

    def __init__(self, metric_readers: Sequence[MetricReader] = (), *more: Any, **named: Any) -> None:
        super().__init__(metric_readers, *more, **named)
        self._mesh = instruments(self, aggregated=True)
        for reader in metric_readers:
            self._hand(reader)

    def add_metric_reader(self, metric_reader: MetricReader) -> None:
        """As the SDK's."""
        if metric_reader not in _handed:  # the SDK itself complains of others
            self._hand(metric_reader)
        super().add_metric_reader(metric_reader)

    def remove_metric_reader(self, metric_reader: MetricReader) -> None:
        """As the SDK's."""
        super().remove_metric_reader(metric_reader)
        if metric_reader in _handed:
            _handed.discard(metric_reader)
            vars(metric_reader).pop("_receive_metrics")

    def _hand(self, reader: MetricReader) -> None:
        """Lets it receive more than the SDK collects."""
        receive = reader._receive_metrics  # noqa: SLF001 - documented, for subclasses
        # A reader says so in its constructor, and nowhere else.
        preferred = reader._preferred_temporality or {}  # noqa: SLF001
        temporality = preferred.get(sdk.Histogram, AggregationTemporality.CUMULATIVE)
        turns = Turns(differences=temporality is AggregationTemporality.DELTA)

        def received(metrics_data: MetricsData, *more: Any, **named: Any) -> None:
            now = time.time_ns()
            found = _histograms(self._mesh.turn(turns, now), temporality, now)
            receive(_with(metrics_data, found) if found else metrics_data, *more, **named)

        _handed.add(reader)
        reader._receive_metrics = received  # type: ignore[method-assign] # noqa: SLF001


def _histograms(told: Sequence[Told], temporality: AggregationTemporality, now: int) -> list[Metric]:
    if not told:
        return []
    return [
        Metric(
            name,
            about,
            unit,
            Histogram([_point(one, one.kept[which], now) for one in told], temporality),
        )
        for which, (name, unit, about) in enumerate(HISTOGRAMS)
    ]


def _point(told: Told, of: Distribution, now: int) -> HistogramDataPoint:
    return HistogramDataPoint(
        told.attributes,
        told.since,
        now,
        sum(of.counts),
        of.sum,
        tuple(of.counts),
        BOUNDS,
        of.least,
        of.most,
    )


def _with(data: MetricsData, more: list[Metric]) -> MetricsData:
    """Beside what the SDK has of the mesh, whose resource it is."""
    first, *others = data.resource_metrics
    scopes = list(first.scope_metrics)
    for place, one in enumerate(scopes):
        if one.scope.name == SCOPE:
            scopes[place] = replace(one, metrics=[*one.metrics, *more])
            break
    else:  # views have dropped all of it
        scope = InstrumentationScope(SCOPE)
        scopes.append(ScopeMetrics(scope, more, scope.schema_url or ""))
    return replace(data, resource_metrics=[replace(first, scope_metrics=scopes), *others])
