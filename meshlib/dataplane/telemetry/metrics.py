"""Istio's four request metrics and a certificate's, as OpenTelemetry instruments; no request feels the cost.

The three histograms are instruments of any SDK, or counted here for a provider that takes them as they are
(`provider.py`), which costs a fraction.

Rules:

- A request's measurement is put into a queue: one append. Whoever collects takes the queue's content first,
  and a thread of its own takes it in between: recording 25 attributes in three histograms costs the SDK
  a hundred microseconds, which are not the request's.
- A series is one set of attributes. It is made once, at the first request that has it, and bound by whoever
  knows the request's ends. There are `MOST_SERIES` at most; what comes later is one series that says so
  (as the SDK's own limit does).
- One set of instruments a provider, however many meshes there are in the process.
- A fork starts with nothing: the parent tells of its own requests.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from meshlib.dataplane import fork
from meshlib.dataplane.telemetry.aggregate import BOUNDS, Aggregates, Told, Turns
from meshlib.dataplane.telemetry.labels import NAMES, End, Ends

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

SCOPE = "meshlib"
MOST_SERIES = 2000
MOST_WAITING = 50_000
"""Measurements in the queue; a request beyond waits for none and is not measured in the histograms."""
EVERY_SECONDS = 0.5
HISTOGRAMS = (
    ("istio_request_duration_milliseconds", "ms", "Duration of requests"),
    ("istio_request_bytes", "By", "Bytes of requests, heads and bodies"),
    ("istio_response_bytes", "By", "Bytes of responses, heads and bodies"),
)
"""Name, unit and description, in the order of a measurement."""
_OVERFLOW = {"otel.metric.overflow": True}


class Series:
    """One set of attributes, and how many requests had it."""

    __slots__ = ("attributes", "count")

    def __init__(self, attributes: dict[str, str | bool]) -> None:
        self.attributes = attributes
        self.count = 0


Measurement = tuple[Series, float, int, int]
"""Of one request: its series, milliseconds, bytes of the request and of the response."""


class Certified(Protocol):
    """A workload that may have a certificate."""

    def certificate(self) -> tuple[str, float] | None:
        """Its `spiffe://…`, and the seconds until it ends."""
        ...


class Instruments:
    """The metrics of one provider. Thread-safe."""

    def __init__(self, provider: "MeterProvider", *, aggregated: bool = False) -> None:
        """`aggregated`: the provider takes finished histograms, by `turn`."""
        meter = provider.get_meter(SCOPE)
        self._aggregates = Aggregates() if aggregated else None
        self._take = self._aggregates.add if self._aggregates is not None else _recorder(meter)
        self._series: dict[tuple[Ends, End], Series] = {}
        self._waiting: deque[Measurement] = deque()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._rest = threading.Event()
        self._counter = meter.create_observable_counter(
            "istio_requests_total", [self._observe], "{request}", "Requests"
        )
        self._certificates: weakref.WeakSet[Certified] = weakref.WeakSet()
        self._expiry = meter.create_observable_gauge(
            "istio_agent_cert_expiry_seconds",
            [self._observe_expiry],
            "s",
            "Time until the workload's certificate ends; below 0: it has ended",
        )
        fork.watch(self)

    def __repr__(self) -> str:
        return f"<Instruments {len(self._series)} series, {len(self._waiting)} measurements to record>"

    def series(self, ends: Ends, end: End) -> Series:
        """The series of these labels."""
        found = self._series.get((ends, end))
        if found is None:
            with self._guard:
                found = self._series.get((ends, end)) or self._made(ends, end)
        return found

    def _made(self, ends: Ends, end: End) -> Series:
        if len(self._series) >= MOST_SERIES:
            ends, end = (), ("", "", "", "")
            found = self._series.get((ends, end))
            if found is None:
                found = self._series[ends, end] = Series(dict(_OVERFLOW))
            return found
        made = self._series[ends, end] = Series(dict(zip(NAMES, ends + end, strict=True)))
        return made

    def add(self, measured: Measurement) -> None:
        """One request has ended."""
        self._waiting.append(measured)
        if self._thread is None:
            self._start()

    def certificate(self, of: Certified) -> None:
        """Tells from now on how long that workload's certificate is good, while there is one."""
        self._certificates.add(of)

    def _observe_expiry(self, _options: "CallbackOptions") -> "Iterable[Observation]":
        from opentelemetry.metrics import Observation

        found = [of.certificate() for of in list(self._certificates)]
        return [
            Observation(left, {"resource_name": "default", "source_principal": principal})
            for principal, left in filter(None, found)
        ]

    def _start(self) -> None:
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="meshlib-metrics", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        """Until nothing came in a whole rest: a busy process does not wait for a new thread every time."""
        while True:
            self._rest.wait(EVERY_SECONDS)
            came = bool(self._waiting) and not self._rest.is_set()
            self.record()
            with self._guard:
                if not came and not self._waiting:
                    self._thread = None
                    self._rest.clear()
                    return

    def rest(self) -> None:
        """Records what waits, now, and ends the thread; the next measurement starts it again."""
        thread = self._thread
        self.record()
        if thread is not None:
            self._rest.set()
            thread.join(EVERY_SECONDS)

    def record(self) -> None:
        """Counts what waits."""
        waiting, take, now = self._waiting, self._take, time.time_ns()
        with self._guard:
            for _ in range(len(waiting)):
                try:
                    series, duration, sent, received = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                series.count += 1
                if len(waiting) <= MOST_WAITING:
                    take(series, duration, sent, received, now)

    def turn(self, reader: Turns, now: int) -> list[Told]:
        """What the reader of a provider that takes finished histograms is told of them."""
        assert self._aggregates is not None  # noqa: S101 - its provider said so
        with self._guard:
            return self._aggregates.turn(reader, now)

    def _observe(self, _options: "CallbackOptions") -> "Iterable[Observation]":
        """What is collected now; the histograms are brought up to date before they are read."""
        from opentelemetry.metrics import Observation

        self.record()
        with self._guard:
            return [Observation(one.count, one.attributes) for one in self._series.values() if one.count]

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._guard.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._guard.release()

    def after_fork_in_child(self) -> None:
        """Counts from nothing."""
        self._guard, self._rest = threading.Lock(), threading.Event()
        self._thread = None
        self._waiting.clear()
        if self._aggregates is not None:
            self._aggregates.forget()
        for one in self._series.values():
            one.count = 0


def _recorder(meter: "Meter") -> Callable[[Series, float, int, int, int], None]:
    """Records a measurement in instruments of an SDK."""
    bounds: Sequence[float] = BOUNDS
    durations, requests, responses = (
        meter.create_histogram(name, unit, about, explicit_bucket_boundaries_advisory=bounds)
        for name, unit, about in HISTOGRAMS
    )

    def record(series: Series, duration: float, sent: int, received: int, _now: int) -> None:
        attributes = series.attributes
        durations.record(duration, attributes)
        requests.record(sent, attributes)
        responses.record(received, attributes)

    return record


_instruments: "weakref.WeakKeyDictionary[MeterProvider, Instruments]" = weakref.WeakKeyDictionary()
_making = threading.Lock()


def instruments(provider: "MeterProvider", *, aggregated: bool = False) -> Instruments:
    """Those of a provider; `aggregated` is said by itself, first."""
    with _making:
        found = _instruments.get(provider)
        if found is None:
            found = _instruments[provider] = Instruments(provider, aggregated=aggregated)
        return found
