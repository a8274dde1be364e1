"""Istio's four metrics of TCP connections, and a line of the access log for each.

Rules (Istio):

- What a server sends is `sent`, what the application sends is `received`: counted as a proxy sees them.
- A connection counts as opened when it stands, its bytes while they pass (as often as somebody collects),
  and as closed with the flags of its end. One that was refused is opened and closed at once, with its flags.
- Labels are those of requests, without `response_code` and `grpc_response_status`.
- There are `MOST_SERIES` at most; what comes later is one series that says so.
"""

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from meshlib.core.actions import Facts
from meshlib.core.request import RequestHead
from meshlib.core.tcp import Called
from meshlib.dataplane import fork
from meshlib.dataplane.telemetry.ended import Ended
from meshlib.dataplane.telemetry.labels import NAMES, Ends

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

    from meshlib.dataplane.tcp.link import Link
    from meshlib.dataplane.telemetry.watch import Telemetry

MOST_SERIES = 2000
_ENDS = len(NAMES) - 4
_OVERFLOW = {"otel.metric.overflow": True}
_METRICS = (
    ("istio_tcp_connections_opened_total", "{connection}", "TCP connections opened", "opened"),
    ("istio_tcp_connections_closed_total", "{connection}", "TCP connections closed", "closed"),
    ("istio_tcp_sent_bytes_total", "By", "Bytes that servers sent on TCP connections", "sent"),
    ("istio_tcp_received_bytes_total", "By", "Bytes that servers received on TCP connections", "received"),
)


class _Series:
    """One set of attributes."""

    __slots__ = ("attributes", "closed", "opened", "received", "sent")

    def __init__(self, attributes: dict[str, str | bool]) -> None:
        self.attributes = attributes
        self.opened = self.closed = self.sent = self.received = 0


class Counters:
    """The metrics of one provider. Thread-safe."""

    def __init__(self, provider: "MeterProvider") -> None:
        from meshlib.dataplane.telemetry.metrics import SCOPE

        meter = provider.get_meter(SCOPE)
        self._guard = threading.Lock()
        self._series: dict[tuple[Ends, str], _Series] = {}
        self._live: dict[int, tuple[_Series, weakref.ref[Link]]] = {}
        self._made = [
            meter.create_observable_counter(name, [self._observer(what)], unit, about)
            for name, unit, about, what in _METRICS
        ]
        fork.watch(self)

    def __repr__(self) -> str:
        return f"<Counters {len(self._series)} series, {len(self._live)} connections open>"

    def opened(self, ends: Ends, link: "Link") -> None:
        """A connection stands."""
        with self._guard:
            series = self._of(ends, "-")
            series.opened += 1
            self._live[id(link)] = series, weakref.ref(link)

    def closed(self, ends: Ends, flags: str, number: int, sent: int, received: int) -> None:
        """A connection ended that was opened as the link of that number (`id`)."""
        with self._guard:
            series, _ = self._live.pop(number, (self._of(ends, "-"), None))
            series.sent += received
            series.received += sent
            self._of(ends, flags).closed += 1

    def refused(self, ends: Ends, flags: str) -> None:
        """There was no connection."""
        with self._guard:
            series = self._of(ends, flags)
            series.opened += 1
            series.closed += 1

    def _of(self, ends: Ends, flags: str) -> _Series:
        found = self._series.get((ends, flags))
        if found is None and len(self._series) >= MOST_SERIES:
            found = self._series.get(((), ""))
            if found is None:
                found = self._series[(), ""] = _Series(dict(_OVERFLOW))
        if found is None:
            names = (*NAMES[:_ENDS], "request_protocol", "response_flags")
            attributes = dict(zip(names, (*ends, "tcp", flags), strict=True))
            found = self._series[ends, flags] = _Series(dict(attributes))
        return found

    def _observer(self, what: str) -> "Callable[[CallbackOptions], Iterable[Observation]]":
        def observe(_options: "CallbackOptions") -> "Iterable[Observation]":
            from opentelemetry.metrics import Observation

            with self._guard:
                counts = {id(one): getattr(one, what) for one in self._series.values()}
                for series, known in self._live.values():
                    link = known()
                    if link is not None and what in ("sent", "received"):
                        counts[id(series)] += link.received if what == "sent" else link.sent
                return [
                    Observation(count, one.attributes)
                    for one in self._series.values()
                    if (count := counts[id(one)])
                ]

        return observe

    def before_fork(self) -> None:
        """Nothing changes during a fork."""
        self._guard.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._guard.release()

    def after_fork_in_child(self) -> None:
        """Counts from nothing: the parent tells of its own connections."""
        self._guard = threading.Lock()
        self._series, self._live = {}, {}


class _NoRequest(RequestHead):
    """Of a connection that is no request: it has no header, not even a method."""

    __slots__ = ()

    def header(self, name: bytes) -> bytes | None:
        return None


class Connection:
    """One connection, watched from its beginning to its end. It has one driver, and is ended once."""

    __slots__ = ("_called", "_facts", "_number", "_started", "_telemetry", "_wall")

    def __init__(self, telemetry: "Telemetry", called: Called) -> None:
        self._telemetry, self._called = telemetry, called
        self._started, self._wall = telemetry.clock(), telemetry.wall()
        self._facts = Facts()
        self._number = 0

    def opened(self, link: "Link") -> None:
        """It stands."""
        self._facts, self._number = link.linked.facts, id(link)
        if self._telemetry.connections is not None:
            self._telemetry.connections.opened(self._ends(), link)

    def refused(self, facts: Facts) -> None:
        """There was none."""
        self._facts = facts
        if self._telemetry.connections is not None:
            self._telemetry.connections.refused(self._ends(), facts.flag)
        self._write(facts.flag, 0, 0)

    def ended(self, flags: str, sent: int, received: int) -> None:
        """It is over."""
        if self._telemetry.connections is not None:
            self._telemetry.connections.closed(self._ends(), flags, self._number, sent, received)
        self._write(flags, sent, received)

    def _ends(self) -> Ends:
        return self._telemetry.outbound_ends(self._facts, self._called.host).ends

    def _write(self, flags: str, sent: int, received: int) -> None:
        logs = self._telemetry.told(self._called.target).logs
        if not logs:
            return
        facts, telemetry = self._facts, self._telemetry
        ended = Ended(
            _NoRequest("", "", "", ""),
            0,
            self._wall,
            telemetry.clock() - self._started,
            flags,
            protocol="",
            received=sent,
            sent=received,
            route=facts.route,
            cluster="" if flags == "NC" else facts.cluster,
            upstream=facts.endpoint,
            failure=facts.detail if flags.startswith("UF") else "",
            sni=self._called.name,
        )
        for log in logs:
            log.write(ended)


def watch(telemetry: "Telemetry", called: Called) -> Connection | None:
    """What watches a connection; None: nobody wants to be told."""
    return Connection(telemetry, called) if telemetry.wants(called.target) else None


_counters: "weakref.WeakKeyDictionary[MeterProvider, Counters]" = weakref.WeakKeyDictionary()
_making = threading.Lock()


def counters(provider: "MeterProvider") -> Counters:
    """Those of a provider."""
    with _making:
        found = _counters.get(provider)
        if found is None:
            found = _counters[provider] = Counters(provider)
        return found
