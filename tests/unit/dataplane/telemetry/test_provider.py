"""What readers of `meshlib.MeterProvider` receive is what the SDK would have made of the same requests."""

import os
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ConsoleMetricExporter,
    InMemoryMetricReader,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.resources import Resource

import meshlib
from meshlib.dataplane.telemetry import metrics
from meshlib.dataplane.telemetry.aggregate import BOUNDS
from meshlib.dataplane.telemetry.labels import end_of, outbound
from meshlib.dataplane.telemetry.metrics import HISTOGRAMS, instruments
from meshlib.xds.workload import NOBODY, Workload

DELTA, CUMULATIVE = AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE
PREFERENCES: Sequence[Mapping[type, AggregationTemporality] | None] = (
    None,
    {sdk.Histogram: DELTA},  # what OTLP's exporter calls `lowmemory`
    {sdk.Histogram: DELTA, sdk.Counter: DELTA, sdk.ObservableCounter: DELTA},
    {sdk.Histogram: CUMULATIVE, sdk.ObservableCounter: DELTA},
)
ENDS = [outbound(Workload(name), NOBODY, ("", "", ""), ("", "")) for name in "abc"]
OK = end_of(200, "-", grpc=False)
RESOURCE = Resource.create({"service.name": "productpage"})
MORE = tuple(name for name, _, _ in HISTOGRAMS)


@pytest.fixture(autouse=True)
def without_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "EVERY_SECONDS", 3600.0)


class Pair:
    """The SDK's provider and the mesh's, which are told the same."""

    def __init__(self, *preferences: Mapping[type, AggregationTemporality] | None) -> None:
        self.readers = [
            [InMemoryMetricReader(None if one is None else dict(one)) for one in preferences]
            for _ in range(2)
        ]
        self.providers = [
            made(readers, RESOURCE, shutdown_on_exit=False)
            for made, readers in zip((sdk.MeterProvider, meshlib.MeterProvider), self.readers, strict=True)
        ]

    def measure(self, which: int, duration: float, sent: int, received: int) -> None:
        for provider in self.providers:
            made = instruments(provider)
            made.add((made.series(ENDS[which], OK), duration, sent, received))

    def compare(self, reader: int = 0) -> list[Any]:
        """Both are collected, and alike."""
        of_sdk, of_mesh = (told(readers[reader].get_metrics_data()) for readers in self.readers)
        assert of_mesh == of_sdk
        return of_mesh

    def close(self) -> None:
        for provider in self.providers:
            instruments(provider).rest()
            provider.shutdown()


def told(data: MetricsData | None) -> list[Any]:
    """All of it but times, in an order."""
    return sorted(
        (
            (
                *(str(of.resource.attributes), of.schema_url, str(scope.scope), scope.schema_url),
                *(metric.name, metric.description, metric.unit, type(metric.data).__name__),
                *(getattr(metric.data, name, None) for name in ("aggregation_temporality", "is_monotonic")),
                sorted(map(point, metric.data.data_points)),
            )
            for of in (data.resource_metrics if data is not None else ())
            for scope in of.scope_metrics
            for metric in scope.metrics
        ),
        key=lambda one: one[4],
    )


def point(one: Any) -> tuple[Any, ...]:
    attributes = tuple(sorted(one.attributes.items()))
    assert one.start_time_unix_nano <= one.time_unix_nano
    if hasattr(one, "value"):
        return attributes, one.value
    counted = (one.count, one.sum, one.min, one.max, tuple(one.bucket_counts), tuple(one.explicit_bounds))
    return attributes, *counted, tuple(one.exemplars)


@pytest.fixture(params=range(len(PREFERENCES)), ids=["none", "low memory", "delta", "cumulative"])
def preference(request: pytest.FixtureRequest) -> Mapping[type, AggregationTemporality] | None:
    return PREFERENCES[request.param]


sizes = some.integers(0, 2**40) | some.sampled_from([int(bound) for bound in BOUNDS])
durations = some.floats(0, 1e9) | some.sampled_from(BOUNDS)
measured = some.tuples(some.integers(0, 2), durations, sizes, sizes)


@given(some.integers(0, len(PREFERENCES) - 1), some.lists(some.lists(measured, max_size=8), max_size=5))
def test_the_same_as_the_sdk_makes(which: int, batches: list[list[tuple[int, float, int, int]]]) -> None:
    pair = Pair(PREFERENCES[which])
    try:
        for batch in batches:
            for one in batch:
                pair.measure(*one)
            pair.compare()
        pair.compare()
    finally:
        pair.close()


exact = some.builds(lambda n: n / 8, some.integers(0, 10**6))  # sums in any order are the same


@given(
    some.lists(some.tuples(some.integers(0, 2), exact, sizes, sizes) | some.integers(0, 3), max_size=20),
)
def test_each_of_several_readers_is_told_as_by_the_sdk(
    steps: list[int | tuple[int, float, int, int]],
) -> None:
    pair = Pair(*PREFERENCES)
    try:
        for step in (0, 1, 2, 3, *steps, 0, 1, 2, 3):
            if isinstance(step, int):
                pair.compare(step)
            else:
                pair.measure(*step)
    finally:
        pair.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair({sdk.Histogram: DELTA, sdk.ObservableCounter: DELTA})
    yield made
    made.close()


def points(reader: InMemoryMetricReader, name: str = MORE[0]) -> list[Any]:
    data = reader.get_metrics_data()
    listed = [] if data is None else data.resource_metrics[0].scope_metrics
    return [
        point
        for scope in listed
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def test_differences_follow_each_other_without_a_gap(pair: Pair) -> None:
    _, (reader,) = pair.readers
    ends = []
    for which in (0, 0, 1):
        pair.measure(which, 1.0, 1, 1)
        (one,) = points(reader)
        assert one.start_time_unix_nano in (ends[-1:] or [one.start_time_unix_nano])
        ends.append(one.time_unix_nano)
    assert points(reader) == []


def test_totals_keep_their_beginning() -> None:
    pair = Pair(None)
    _, (reader,) = pair.readers
    starts = set()
    for _ in range(3):
        pair.measure(0, 1.0, 1, 1)
        (one,) = points(reader)
        starts.add(one.start_time_unix_nano)
    assert len(starts) == 1
    assert one.count == 3
    pair.close()


def test_nothing_is_told_before_there_was_a_request(preference: Any) -> None:
    pair = Pair(preference)
    assert pair.compare() == []
    pair.close()


def test_beside_the_applications_own_instruments() -> None:
    pair = Pair(None)
    for provider in pair.providers:
        provider.get_meter("own").create_histogram("own").record(1)
    assert len(pair.compare()) == 1
    pair.measure(0, 1.0, 1, 1)
    assert len(pair.compare()) == 5
    pair.close()


def test_a_reader_that_comes_late_is_told_of_everything_and_one_that_left_of_nothing(pair: Pair) -> None:
    provider = pair.providers[1]
    assert isinstance(provider, meshlib.MeterProvider)
    pair.measure(0, 1.0, 1, 1)
    late = InMemoryMetricReader({sdk.Histogram: DELTA})
    provider.add_metric_reader(late)
    pair.measure(0, 1.0, 1, 1)
    assert [one.count for one in points(late)] == [2]
    pair.measure(0, 1.0, 1, 1)
    assert [one.count for one in points(late)] == [1]
    provider.remove_metric_reader(late)
    other = meshlib.MeterProvider(shutdown_on_exit=False)
    other.add_metric_reader(late)
    pair.measure(0, 1.0, 1, 1)
    assert points(late) == []
    other.shutdown()


def test_a_reader_that_is_there_already_is_not_told_twice(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    provider, (reader,) = pair.providers[1], pair.readers[1]
    provider.add_metric_reader(reader)
    assert "registered already" in caplog.text
    pair.measure(0, 1.0, 1, 1)
    assert [one.count for one in points(reader)] == [1]


def test_an_exporter_is_told_when_the_provider_shuts_down(preference: Any) -> None:
    out = StringIO()
    exporter = ConsoleMetricExporter(out, preferred_temporality=preference and dict(preference))
    provider = meshlib.MeterProvider([PeriodicExportingMetricReader(exporter, 3_600_000)], RESOURCE)
    made = instruments(provider)
    made.add((made.series(ENDS[0], OK), 3.0, 100, 200))
    provider.shutdown()
    wanted = (preference or {}).get(sdk.Histogram, CUMULATIVE)
    assert out.getvalue().count(f'"aggregation_temporality": {int(wanted)}') >= 3
    for name in (*MORE, "istio_requests_total"):
        assert out.getvalue().count(f'"{name}"') == 1
    made.rest()


def test_views_are_for_instruments() -> None:
    reader = InMemoryMetricReader()
    views = [View(instrument_name="istio_*", aggregation=DropAggregation())]
    provider = meshlib.MeterProvider([reader], views=views, shutdown_on_exit=False)
    made = instruments(provider)
    made.add((made.series(ENDS[0], OK), 3.0, 100, 200))
    assert points(reader) == []  # nothing is collected, so nobody asks
    provider.get_meter("own").create_counter("own").add(1)
    assert [one.count for one in points(reader)] == [1]
    made.rest()
    provider.shutdown()


class Pulled(MetricReader):
    """Collects when it is asked, as the one of Prometheus."""

    def __init__(self) -> None:
        super().__init__(preferred_temporality={sdk.Histogram: CUMULATIVE})
        self.received: list[str] = []

    def _receive_metrics(self, metrics_data: MetricsData, *_: Any, **__: Any) -> None:
        self.received = [one[4] for one in told(metrics_data)]

    def shutdown(self, *_: Any, **__: Any) -> None:
        pass


def test_a_reader_of_another_kind() -> None:
    reader = Pulled()
    provider = meshlib.MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    made = instruments(provider)
    made.add((made.series(ENDS[0], OK), 3.0, 100, 200))
    reader.collect()
    assert reader.received == sorted(("istio_requests_total", *MORE))
    made.rest()
    provider.shutdown()


def test_a_disabled_sdk_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OTEL_SDK_DISABLED", "true")
    reader = InMemoryMetricReader()
    provider = meshlib.MeterProvider([reader], shutdown_on_exit=False)
    made = instruments(provider)
    made.add((made.series(ENDS[0], OK), 3.0, 100, 200))
    assert reader.get_metrics_data() is None
    made.rest()
    provider.shutdown()
