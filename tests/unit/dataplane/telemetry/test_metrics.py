"""Series, what waits to be recorded, and forks; with a real SDK, and with the mesh's own histograms in it."""

import os
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from support.telemetry import Told

import meshlib
from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.telemetry import metrics
from meshlib.dataplane.telemetry.labels import Ends, end_of, outbound
from meshlib.dataplane.telemetry.metrics import instruments
from meshlib.xds.workload import NOBODY, Workload

OK = end_of(200, "-", grpc=False)


@pytest.fixture(params=[MeterProvider, meshlib.MeterProvider], ids=["sdk", "mesh"])
def told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    monkeypatch.setattr(metrics, "EVERY_SECONDS", 3600.0)
    made = Told(made=request.param)
    yield made
    made.close()


def ends(name: str) -> Ends:
    return outbound(Workload(name), NOBODY, ("", "", ""), ("", ""))


def test_a_series_is_made_once(told: Told) -> None:
    made = instruments(told.meters)
    assert made.series(ends("a"), OK) is made.series(ends("a"), OK)
    assert made.series(ends("a"), OK) is not made.series(ends("b"), OK)
    assert made.series(ends("a"), OK) is not made.series(ends("a"), end_of(500, "-", grpc=False))


def test_collecting_takes_what_waits(told: Told) -> None:
    made = instruments(told.meters)
    assert instruments(told.meters) is made
    series = made.series(ends("a"), OK)
    for _ in range(3):
        made.add((series, 2.0, 100, 200))
    assert series.count == 0
    assert [count for count, _ in told.requests()] == [3]
    (duration,) = told.metrics()["istio_request_duration_milliseconds"]
    assert (duration.count, duration.sum) == (3, 6.0)
    made.add((series, 2.0, 100, 200))
    assert [count for count, _ in told.requests()] == [4]


def test_a_series_without_requests_is_not_told(told: Told) -> None:
    instruments(told.meters).series(ends("a"), OK)
    assert told.requests() == []


def test_there_are_not_more_series_than_the_sdk_takes(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 2)
    made = instruments(told.meters)
    for name in ("a", "b", "c", "d", "a"):
        made.add((made.series(ends(name), OK), 1.0, 1, 1))
    found = [(count, labels.get("source_workload", "overflow")) for count, labels in told.requests()]
    assert sorted(found) == [(1, "b"), (2, "a"), (2, "overflow")]


def test_too_many_that_wait_are_counted_all_the_same(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_WAITING", 5)
    made = instruments(told.meters)
    series = made.series(ends("a"), OK)
    for _ in range(8):
        made.add((series, 1.0, 1, 1))
    assert [count for count, _ in told.requests()] == [8]
    (duration,) = told.metrics()["istio_request_duration_milliseconds"]
    assert duration.count == 6


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_tells_of_its_own_requests_only(told: Told) -> None:
    made = instruments(told.meters)
    series = made.series(ends("a"), OK)
    made.add((series, 1.0, 1, 1))
    made.record()
    made.add((series, 1.0, 1, 1))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        made.add((series, 1.0, 1, 1))
        made.record()
        (told_of,) = told.requests()
        os.write(writing, f"{series.count} {told_of[0]}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"1 1"
    os.close(reading)
    os.close(writing)
    assert [count for count, _ in told.requests()] == [2]


def test_how_long_a_certificate_is_good_is_told_while_there_is_one(told: Told) -> None:
    ends: list[float | None] = [None]
    telemetry = told.telemetry(
        Bootstrap(), principal="spiffe://td/ns/a/sa/b", ends=lambda: ends[0], wall=lambda: 1000.0
    )
    name = "istio_agent_cert_expiry_seconds"
    assert name not in told.metrics()
    for end, left in ((1600.0, 600.0), (990.0, -10.0)):
        ends[0] = end
        (point,) = told.metrics()[name]
        assert point.value == left
        assert dict(point.attributes) == {
            "resource_name": "default",
            "source_principal": "spiffe://td/ns/a/sa/b",
        }
    assert told.units()[name] == "s"
    telemetry.close()


def test_one_thread_records_for_as_long_as_requests_come(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    made = instruments(told.meters)
    series = made.series(ends("a"), OK)
    left, threads = [3], set()

    class Rest:
        """Passes at once, and the first times a request comes meanwhile."""

        def wait(self, _seconds: float) -> None:
            threads.add(made._thread)
            if left[0]:
                left[0] -= 1
                made.add((series, 1.0, 1, 1))

        def is_set(self) -> bool:
            return False

        def clear(self) -> None:
            """It is not set."""

    monkeypatch.setattr(made, "_rest", Rest())
    made.add((series, 1.0, 1, 1))
    (thread,) = threads or {made._thread}
    assert thread is not None
    thread.join(10)
    assert made._thread is None
    assert threads == {thread}
    assert [count for count, _ in told.requests()] == [4]
