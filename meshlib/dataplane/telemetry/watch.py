"""Who wants to be told of requests, and what is known beforehand of both their ends. One `Telemetry` a mesh.

Rules:

- Nothing is loaded and nothing is made until there is somebody to tell: an SDK that the application or
  `meshlib serve` set up, or an access log. Whether there is an SDK is looked for again once a second.
- What is known of both ends is bound to labels once for each endpoint and caller, and kept as long as
  the cluster and its endpoints stay what they are.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from meshlib.bootstrap import Bootstrap
from meshlib.core.actions import Facts
from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet
from meshlib.core.mtls import ClientTls, SanMatch, secure
from meshlib.core.request import Dice, Header, Peer
from meshlib.core.telemetry import AccessLog, Telling, Tracing
from meshlib.core.view import View
from meshlib.dataplane.telemetry import labels, propagation, spans
from meshlib.dataplane.telemetry.labels import Ends, Service
from meshlib.dataplane.telemetry.metrics import SCOPE, Instruments, Series, instruments
from meshlib.dataplane.telemetry.spans import Spans
from meshlib.dataplane.telemetry.workload import (
    MOST_BYTES,
    PEER_METADATA,
    PEER_METADATA_ID,
    of_endpoint,
    of_peer,
    of_settings,
    peer_metadata,
)
from meshlib.xds.names import inbound_port
from meshlib.xds.workload import NOBODY

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from meshlib.dataplane.telemetry.logs import Configured, Log
    from meshlib.dataplane.telemetry.tcp import Counters

LOOK_EVERY = 1.0
MESH_ID = "cluster.local"
_MOST_BOUND = 10_000
_MOST_CALLERS = 1_000
"""What they say of themselves is kept with them."""


class Bound:
    """Both ends of requests, and the series they have had."""

    __slots__ = ("_series", "cluster", "endpoints", "ends")

    def __init__(
        self, ends: Ends, cluster: Cluster | None = None, endpoints: EndpointSet | None = None
    ) -> None:
        self.ends = ends
        self.cluster = cluster
        self.endpoints = endpoints
        """What it was made of: another cluster or set of endpoints makes another."""
        self._series: dict[tuple[int, str] | tuple[int, str, str], Series] = {}

    def of(self, status: int, flags: str, made: Instruments) -> Series:
        """The series of requests that ended so; `status` 0: there was no response."""
        found = self._series.get((status, flags))
        if found is None:
            end = labels.end_of(status, flags, grpc=False)
            found = self._series[status, flags] = made.series(self.ends, end)
        return found

    def of_grpc(self, status: int, flags: str, said: str, made: Instruments) -> Series:
        """The same of calls of gRPC, which said `said`."""
        found = self._series.get((status, flags, said))
        if found is None:
            end = labels.end_of(status, flags, grpc=True, grpc_status=said)
            found = self._series[status, flags, said] = made.series(self.ends, end)
        return found


class Told(NamedTuple):
    """What is told of the requests of one listener, beside metrics."""

    logs: "tuple[Log, ...]"
    spans: Spans | None
    """None: there are no spans."""


class Telemetry:
    """What one mesh tells of its requests. Thread-safe."""

    def __init__(
        self,
        settings: Bootstrap,
        view: Callable[[], View],
        principal: Callable[[], str] = str,
        ends: Callable[[], float | None] = lambda: None,
        *,
        tracers: "TracerProvider | None" = None,
        meters: "MeterProvider | None" = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        dice: Dice | None = None,
    ) -> None:
        """`view` and `principal` give what is known, and this workload's `spiffe://…` (empty: none), now;
        `ends`, when its certificate does, in Unix seconds.

        Of the configuration it hears by `take`. `tracers` and `meters` None: the process's own, as soon as
        there are some. ConfigError: the access log of the settings can't be written.
        """
        self.own = of_settings(settings)
        self.service = _service_of(settings)
        """Of which this process is a part."""
        self.clock, self.wall = clock, wall
        self.formats = propagation.formats(os.environ.get("OTEL_PROPAGATORS"))
        self.tags = spans.tags_of(self.own, MESH_ID)
        self._own_logs = _own_logs(settings)
        self._configured: Configured | None = None
        """None: the configuration never asked for a log."""
        self._telling: Mapping[str, Telling] = {}
        self._dice = dice or random.Random()  # noqa: S311 - samples, keeps no secret
        self._plain = Told(self._own_logs or (), Spans(Tracing(), self._dice))
        """What is told where the configuration says nothing."""
        self._of_listener: Mapping[str | int, Told] = {}
        """By target, and by served port."""
        self.tracer: Tracer | None = tracers.get_tracer(SCOPE) if tracers is not None else None
        self.instruments: Instruments | None = None
        self.connections: Counters | None = None
        """Of TCP; there if `instruments` are."""
        self._settings, self._view, self._principal, self._ends = settings, view, principal, ends
        if meters is not None:
            self._measure(meters)
        self._look_at = 0.0
        self._outbound: dict[tuple[str, str, str, str], Bound] = {}
        self._inbound: dict[tuple[str, bytes | None, str], Bound] = {}
        self._told: list[Header] | None = None

    def __repr__(self) -> str:
        found = [name for name, one in (("spans", self.tracer), ("metrics", self.instruments)) if one]
        listed = (self._plain, *self._of_listener.values())
        written = sorted({log for one in listed for log in one.logs}, key=repr)
        told = ", ".join([*found, *map(repr, written)])
        return f"<Telemetry of {self.own.name}: {told or 'nobody is told'}>"

    def close(self) -> None:
        """What was measured is told now."""
        if self.instruments is not None:
            self.instruments.rest()

    def take(self, telling: Mapping[str, Telling]) -> None:
        """What the configuration wants told from now on, by listener."""
        if telling is self._telling:
            return
        self._telling = telling
        own, variables = self._own_logs, self._settings.tag_variables
        opened = self._opened([() if own is not None else one.logs for one in telling.values()])
        made: dict[Tracing, Spans] = {}
        found: dict[str | int, Told] = {}
        for (name, one), written in zip(telling.items(), opened, strict=True):
            if one.tracing is not None and one.tracing not in made:
                made[one.tracing] = Spans(one.tracing, self._dice, variables)
            port = inbound_port(name)
            traced = made[one.tracing] if one.tracing is not None else None
            found[name if port is None else port] = Told(written if own is None else own, traced)
        self._of_listener = found

    def _opened(self, wanted: list[tuple[AccessLog, ...]]) -> "list[tuple[Log, ...]]":
        if self._configured is None:
            if not any(wanted):
                return [()] * len(wanted)
            from meshlib.dataplane.telemetry.logs import Configured

            self._configured = Configured(self._settings.access_log_dir)
        return self._configured.of(wanted)

    def told(self, listener: str | int) -> "Told":
        """What is told of requests to a target, or to a served port, if anybody is there to be told."""
        return self._of_listener.get(listener, self._plain)

    def wants(self, listener: str | int) -> bool:
        """Whether anybody wants to be told of a request to a target, or to a served port."""
        if (self.tracer is None or self.instruments is None) and self.clock() >= self._look_at:
            self._look()
        if self.instruments is not None:
            return True
        logs, made = self._of_listener.get(listener, self._plain)
        return bool(logs) or (made is not None and self.tracer is not None)

    def _look(self) -> None:
        """Looks for an SDK. Who has one has loaded the API; who has not does not pay for it."""
        self._look_at = self.clock() + LOOK_EVERY
        if "opentelemetry.trace" not in sys.modules and "opentelemetry.metrics" not in sys.modules:
            return
        from opentelemetry import metrics, trace

        tracers = trace.get_tracer_provider()
        if self.tracer is None and not _of_the_api(tracers):
            tracer = tracers.get_tracer(SCOPE)
            self.tracer = None if isinstance(tracer, trace.NoOpTracer) else tracer
        meters = metrics.get_meter_provider()
        if self.instruments is None and not _of_the_api(meters):
            disabled = isinstance(meters.get_meter(SCOPE), metrics.NoOpMeter)
            if not disabled:
                self._measure(meters)

    def _measure(self, meters: "MeterProvider") -> None:
        from meshlib.dataplane.telemetry.tcp import counters

        self.instruments, self.connections = instruments(meters), counters(meters)
        self.instruments.certificate(self)

    def certificate(self) -> tuple[str, float] | None:
        """This workload's `spiffe://…` and the seconds until its certificate ends; None: it has none."""
        ends = self._ends()
        return None if ends is None else (self._principal(), ends - self.wall())

    # Both ends

    def outbound_ends(self, facts: Facts, authority: str) -> Bound:
        """Of a request that this process made."""
        view = self._view()
        principal = self._principal()
        cluster = view.clusters.get(facts.cluster)
        endpoints = None
        if cluster is not None:
            endpoints = cluster.inline or view.endpoints.get(facts.cluster)
        known = cluster is not None and cluster.service is not None
        key = (facts.cluster, facts.endpoint, "" if known else authority, principal)
        found = self._outbound.get(key)
        if found is None or found.cluster is not cluster or found.endpoints is not endpoints:
            if len(self._outbound) >= _MOST_BOUND:
                self._outbound.clear()
            ends = self._outbound_ends(cluster, endpoints, facts, authority, principal)
            found = self._outbound[key] = Bound(ends, cluster, endpoints)
        return found

    def _outbound_ends(
        self,
        cluster: Cluster | None,
        endpoints: EndpointSet | None,
        facts: Facts,
        authority: str,
        principal: str,
    ) -> Ends:
        endpoint = _find(endpoints, facts.endpoint)
        server = of_endpoint(endpoint.metadata) if endpoint is not None else NOBODY
        tls = secure(cluster, endpoint) if cluster is not None and endpoint is not None else None
        mutual = tls is not None and tls.mesh_identity
        principals = (principal if mutual else "", _principal_of(tls) if mutual else "")
        service = labels.service_of(facts.cluster, cluster.service if cluster else None, authority)
        return labels.outbound(self.own, server, service, principals)

    def inbound_ends(self, peer: Peer, said: bytes | None) -> Bound:
        """Of a request to this process; `said`: the value of `x-envoy-peer-metadata`."""
        own = self._principal()
        if not peer.principal or (said is not None and len(said) > MOST_BYTES):
            said = None
        key = (peer.principal, said, own)
        found = self._inbound.get(key)
        if found is None:
            if len(self._inbound) >= _MOST_CALLERS:
                self._inbound.clear()
            mutual = bool(peer.principal)
            caller = NOBODY if said is None else of_peer(said, _namespace(peer.principal))
            principals = (peer.principal, own if mutual else "")
            ends = labels.inbound(caller, self.own, self.service, principals, mutual)
            found = self._inbound[key] = Bound(ends)
        return found

    def told_to_servers(self) -> list[Header]:
        """What this workload says of itself to servers of the mesh."""
        told = self._told
        if told is None:
            own = f"{self.own.name}.{self.own.namespace}".encode("latin-1", "replace")
            told = self._told = [(PEER_METADATA, peer_metadata(self._settings)), (PEER_METADATA_ID, own)]
        return told


def _own_logs(settings: Bootstrap) -> "tuple[Log, ...] | None":
    """What the application's own settings say; None: nothing. ConfigError: it can't be opened."""
    if not settings.access_log:
        return None
    from meshlib.dataplane.telemetry.logs import of_settings as logs_of_settings

    return logs_of_settings(settings)


def _service_of(settings: Bootstrap) -> Service:
    if not settings.service:
        return "", "", ""
    host = f"{settings.service}.{settings.namespace}.svc.cluster.local"
    return host, settings.service, settings.namespace


def _of_the_api(provider: object) -> bool:
    """Whether nobody set a provider up: the API's own do nothing."""
    return type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


def _find(endpoints: EndpointSet | None, key: str) -> Endpoint | None:
    if endpoints is None:
        return None
    for group in endpoints.localities:
        for endpoint in group.endpoints:
            if endpoint.key == key:
                return endpoint
    return None


def _principal_of(tls: ClientTls | None) -> str:
    """Whom the server has shown to be: it was asked for one identity, and had to have it."""
    if tls is None or len(tls.sans) != 1:
        return ""
    how, name = tls.sans[0]
    return name if how is SanMatch.EXACT and name.startswith("spiffe://") else ""


def _namespace(principal: str) -> str:
    parts = principal.split("/")
    return parts[4] if len(parts) == 7 else ""
