"""Real Envoy as the judge of ejections: the same failures at the same times, two lists of events.

Each case is a cluster whose endpoints each have a port of their own, and a script: when, in intervals,
which endpoint is asked, and what it does. All cases run at once, in real and short intervals, and
Envoy's log says when it ejected and returned whom; its ticks are found by a cluster that does nothing but
eject and return. Ours is then told the same at the same times, without waiting.
"""

import asyncio
import contextlib
import datetime as dt
import json
import math
import random
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from support.envoy import run_envoy

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.balance.endpoints import Endpoint, EndpointSet
from meshlib.core.balance.plan import Plan
from meshlib.core.ledger import ClusterState, Ledger
from meshlib.core.outbound import flow
from meshlib.core.outlier import sweep, watch
from meshlib.core.request import Failed, RequestHead
from meshlib.core.view import View
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.drive import AsyncBody, FlightFailed, adrive
from meshlib.dataplane.http.asynchronous import Connections, Response
from meshlib.xds import pb

INTERVAL = 0.5
TIMEOUT = 0.1
"""Seconds of a request whose answer does not come."""
AT_ONCE = 8
"""Cases of ours: what they wait for is short, and they share a thread with the endpoints."""
_RESET = struct.pack("ii", 1, 0)
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Step(NamedTuple):
    """A request: in so many intervals, to that endpoint, `times` one after another.

    `word` is a status, with headers (`200|grpc-status=14`), or `refused`, `reset`, `close`, `cut` (in the
    middle of the body), `never` (no answer), `half` (a body that never ends), `nonsense`, or `hangs` (no
    connection comes about).
    """

    at: float
    host: int
    word: str
    times: int = 1
    grpc: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """A cluster's outlier detection in Envoy's JSON, and what happens to it."""

    name: str
    detection: Mapping[str, Any]
    steps: Sequence[Step]
    size: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    """HttpProtocolOptions.outlier_detection."""
    connect_timeout: str = "0.1s"

    def cluster(self, ports: Sequence[int]) -> dict[str, Any]:
        """The cluster in Envoy's JSON; each endpoint can be asked for by its number."""
        made: dict[str, Any] = {
            "name": self.name,
            "type": "STATIC",
            "connect_timeout": self.connect_timeout,
            "lb_policy": "RANDOM",
            "outlier_detection": {"interval": f"{INTERVAL}s", **self.detection},
            "common_lb_config": {"healthy_panic_threshold": {"value": 100}},
            "lb_subset_config": {"fallback_policy": "NO_FALLBACK", "subset_selectors": [{"keys": ["n"]}]},
            "load_assignment": {
                "cluster_name": self.name,
                "endpoints": [
                    {
                        "lb_endpoints": [
                            {
                                "endpoint": {"address": address(port)},
                                "metadata": {"filter_metadata": {"envoy.lb": {"n": str(number)}}},
                            }
                            for number, port in enumerate(ports)
                        ]
                    }
                ],
            },
        }
        if self.options:
            made["typed_extension_protocol_options"] = {
                _HTTP_OPTIONS: {
                    "@type": pb.type_url(pb.HttpProtocolOptions),
                    "explicit_http_config": {"http_protocol_options": {}},
                    "outlier_detection": dict(self.options),
                }
            }
        return made


class Event(NamedTuple):
    """An endpoint was ejected, or returned, in (or at the beginning of) the interval of that number."""

    interval: int
    host: int
    ejected: bool


class Host:
    """An endpoint of a case: a port that answers as it is told, refuses, or does not even do that."""

    def __init__(self) -> None:
        self.port = 0
        self.socket = self._bound()
        self.port = self.socket.getsockname()[1]
        self.word = "200"
        self._fillers: list[socket.socket] = []
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()

    def _bound(self) -> socket.socket:
        """A port that is bound and not listened on refuses, and nobody else gets it."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", self.port))
        made.setblocking(False)
        return made

    async def be(self, word: str) -> None:
        """Does that from now on."""
        if word == "hangs" and not self._fillers:
            await self.stop()
            self.socket.listen(0)
            for _ in range(3):  # the queue of those who wait to be accepted is full then
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", self.port))
                self._fillers.append(filler)
        elif word == "refused":
            await self.stop()
        elif word != "hangs" and self._accepting is None:
            self.socket.listen(128)
            self._accepting = asyncio.create_task(self._accept())
        self.word = word

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = await loop.sock_accept(self.socket)
                task = asyncio.create_task(self._serve(accepted, self.word))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)

    async def _serve(self, accepted: socket.socket, word: str) -> None:
        reader, writer = await asyncio.open_connection(sock=accepted)
        try:
            await reader.readuntil(b"\r\n\r\n")
            if word == "reset":
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            elif word == "nonsense":
                writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
            elif word in ("cut", "half"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
            elif word not in ("never", "close"):
                status, *headers = word.split("|")
                lines = [f"HTTP/1.1 {status} Scripted", "connection: close", "content-length: 0"]
                lines += [": ".join(header.split("=", 1)) for header in headers]
                writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            if word in ("never", "half"):
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def stop(self) -> None:
        """Refuses from now on."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._accepting = None
            self.socket.close()
            self.socket = self._bound()

    async def close(self) -> None:
        """Ends everything."""
        await self.stop()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        for each in (self.socket, *self._fillers):
            each.close()


def address(port: int) -> dict[str, Any]:
    """A loopback address in Envoy's JSON."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def bootstrap(clusters: Sequence[Mapping[str, Any]], log: Path) -> dict[str, Any]:
    """An Envoy that asks the endpoint of the cluster that a request names: `/cluster/number/`."""
    routes = [
        {
            "match": {"prefix": f"/{cluster['name']}/{number}/"},
            "route": {
                "cluster": cluster["name"],
                "timeout": f"{TIMEOUT}s",
                "metadata_match": {"filter_metadata": {"envoy.lb": {"n": str(number)}}},
            },
        }
        for cluster in clusters
        for number in range(len(cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]))
    ]
    manager = {
        "@type": pb.type_url(pb.HttpConnectionManager),
        "stat_prefix": "x",
        "http_filters": [{"name": "router", "typed_config": {"@type": pb.type_url(pb.Router)}}],
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    return {
        "static_resources": {
            "listeners": [{"name": "main", "address": address(0), "filter_chains": [chain]}],
            "clusters": list(clusters),
        },
        "cluster_manager": {"outlier_detection": {"event_log_path": str(log)}},
    }


async def ask(port: int, path: str, grpc: bool = False) -> int:
    """The status of a request; 0: there was none, or its body did not come to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-length: 0", "connection: close"]
    if grpc:
        lines.append("content-type: application/grpc")
    try:
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int((await reader.read()).split()[1])
    except (IndexError, ConnectionError):
        return 0
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


_SENTINEL = Case(
    "sentinel",
    {"consecutive_5xx": 1, "base_ejection_time": "0.001s", "max_ejection_percent": 100},
    [],
    size=1,
)
_EARLY = 0.03
"""Intervals by which a timer may be early."""


async def compare(cases: Sequence[Case], folder: Path) -> list[tuple[Case, list[Event], list[Event]]]:
    """Every case with Envoy's events and ours."""
    everything = [_SENTINEL, *cases]
    async with contextlib.AsyncExitStack() as stack:
        hosts = {case.name: [Host() for _ in range(case.size)] for case in everything}
        for host in (host for each in hosts.values() for host in each):
            stack.push_async_callback(host.close)
        theirs = await _run_envoy(everything, hosts, folder)
        gate = asyncio.Semaphore(AT_ONCE)
        ours = await asyncio.gather(*(_Ourselves(case, hosts[case.name]).run(gate) for case in cases))
    return [(case, theirs[case.name], events) for case, events in zip(cases, ours, strict=True)]


async def _run_envoy(
    cases: Sequence[Case], hosts: Mapping[str, Sequence[Host]], folder: Path
) -> dict[str, list[Event]]:
    log = folder / "events.log"
    log.unlink(missing_ok=True)
    made = bootstrap([case.cluster([host.port for host in hosts[case.name]]) for case in cases], log)
    async with run_envoy(made, folder, "--file-flush-interval-msec", "5") as envoy:
        port = envoy.listeners["main"]
        await hosts["sentinel"][0].be("503")
        await ask(port, "/sentinel/0/")
        while not (ticks := [entry for entry in _read(log) if entry["action"] == "UNEJECT"]):
            await asyncio.sleep(0.005)
        zero = _time(ticks[0])

        async def play(case: Case) -> None:
            for step in case.steps:
                await asyncio.sleep(zero + step.at * INTERVAL - time.time())
                host = hosts[case.name][step.host]
                await host.be(step.word)
                for _ in range(step.times):
                    await ask(port, f"/{case.name}/{step.host}/", step.grpc)

        await asyncio.gather(*(play(case) for case in cases))
        last = max(step.at for case in cases for step in case.steps)
        await asyncio.sleep(zero + (math.floor(last) + 1.9) * INTERVAL - time.time())
        entries = _read(log)
    names = {f"127.0.0.1:{h.port}": (name, n) for name, each in hosts.items() for n, h in enumerate(each)}
    events: dict[str, list[Event]] = {case.name: [] for case in cases}
    for entry in entries:
        name, number = names[entry["upstream_url"]]
        interval = math.floor((_time(entry) - zero) / INTERVAL + _EARLY)
        if entry["action"] == "UNEJECT" or entry["enforced"]:
            events[name].append(Event(interval, number, entry["action"] == "EJECT"))
    return events


def _read(log: Path) -> list[dict[str, Any]]:
    # Its last line may be half written.
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [json.loads(line) for line in lines]


def _time(entry: Mapping[str, Any]) -> float:
    return dt.datetime.fromisoformat(entry["timestamp"]).timestamp()


class _Ourselves:
    """Our whole path: flow, driver, connections, against the same endpoints. Only the clock leaps."""

    def __init__(self, case: Case, hosts: Sequence[Host]) -> None:
        self.case = case
        self.hosts = hosts
        self.events: list[Event] = []
        self.before: set[str] = set()
        self.leapt = -time.monotonic()
        self.connections = Connections(self.clock)
        self.ledger = Ledger()
        self.dice = random.Random(1)
        self.state: ClusterState = self.ledger.cluster(case.name)
        made = case.cluster([host.port for host in hosts])
        self.cluster = decode_cluster(pb.from_dict(pb.Cluster, made))
        action = {"cluster": case.name, "timeout": f"{TIMEOUT}s"}
        route = {"match": {"prefix": "/"}, "route": action}
        host = {"name": "all", "domains": ["*"], "routes": [route]}
        table = decode_routes(pb.from_dict(pb.RouteConfiguration, {"name": "r", "virtual_hosts": [host]}))
        self.view = View("1", {"x:80": table}, {case.name: self.cluster})
        self.endpoints = self.cluster.inline or EndpointSet()
        watch(self.cluster.outlier, self.state, 0.0)

    def clock(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() + self.leapt

    async def run(self, gate: asyncio.Semaphore) -> list[Event]:
        """The events, in order."""
        async with gate:
            return await self._run()

    async def _run(self) -> list[Event]:
        interval = 1
        for step in self.case.steps:
            while interval < step.at:
                self.look(interval)
                interval += 1
            self.leapt = step.at * INTERVAL - time.monotonic()
            await self.hosts[step.host].be(step.word)
            for _ in range(step.times):
                # The same endpoint as Envoy, ejected or not.
                self.state.plan = self.only(self.endpoints.localities[0].endpoints[step.host])
                await self.ask(step)
                self.note(math.floor(step.at))
        self.look(interval)
        self.connections.close()
        await asyncio.sleep(0)
        return self.events

    def only(self, endpoint: Endpoint) -> Plan:
        """A plan that picks nobody else."""
        plan = Plan(self.cluster, self.endpoints, self.state, self.clock(), self.dice)
        plan.only = lambda dice, now: endpoint
        return plan

    def look(self, interval: int) -> None:
        """At the end of an interval."""
        self.leapt = interval * INTERVAL - time.monotonic()
        sweep(self.state, self.case.size, self.clock(), self.dice)
        self.note(interval)

    def note(self, interval: int) -> None:
        """Writes down who was ejected or has returned."""
        now = set(self.state.ejected)
        for number, host in enumerate(self.hosts):
            key = f"127.0.0.1:{host.port}"
            if (key in now) != (key in self.before):
                self.events.append(Event(interval, number, key in now))
        self.before = now

    async def ask(self, step: Step) -> None:
        """One request, to the end of its body."""
        headers = [(b"content-type", b"application/grpc")] if step.grpc else []
        head = RequestHead("POST", "http", "x", "/", headers)
        steps = flow(
            head, RequestBody(b""), self.view, "x:80", self.ledger, self.clock, self.dice, ("127.0.0.1", 1)
        )
        try:
            answer = await adrive(steps, self)
            if isinstance(answer.body, AsyncBody):
                async for _ in answer.body:
                    pass
        except FlightFailed:
            pass

    async def send(self, attempt: Attempt) -> Response | Failed:
        """One try."""
        return await self.connections.send(attempt, b"")

    def mirror(self, mirror: Mirror) -> None:
        """No case has mirrors."""
        raise AssertionError(mirror)

    async def sleep(self, seconds: float) -> None:
        """No case waits."""
        raise AssertionError(seconds)
