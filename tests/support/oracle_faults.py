"""Real Envoy as the judge of injected faults: the same virtual host, request and upstream, two results.

Each case is a virtual host of one route configuration, which Envoy and our decoder both read. Shares are
none or all of the requests, so that chance decides nothing; the upstream is scripted (`support.upstream`).
Our path is the whole one: flow, driver, connections. A failure that we raise counts as the reply that a
sidecar makes of it, without its text.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from support.envoy import RealEnvoy, run_envoy
from support.oracle_http import Received, receive
from support.upstream import Try, Upstream, run_upstream

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.ledger import Ledger
from meshlib.core.outbound import flow
from meshlib.core.request import Failed, Failure, RequestHead
from meshlib.core.view import View
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.drive import Answer, AsyncBody, FlightFailed, adrive
from meshlib.dataplane.http.asynchronous import Connections, Response
from meshlib.xds import pb

AT_ONCE = 24
PATIENCE = 5.0
FILTER = "envoy.filters.http.fault"
_TYPES = "type.googleapis.com/envoy.extensions.filters"
_HCM = f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager"
_FAULT = f"{_TYPES}.http.fault.v3.HTTPFault"
_INTERNAL = {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}
_LATE = (Failure.TIMED_OUT, Failure.TRY_TIMED_OUT)
_SHOWN = {"x-oracle-flags": "%RESPONSE_FLAGS%"}
EXPECTED = "x-envoy-expected-rq-timeout-ms"
_COMPARED = ("content-type", "grpc-status", "grpc-message", "x-edit", "location", "x-envoy-attempt-count")
Values = dict[str, Any]


def settings(fault: Mapping[str, Any] | None) -> Values:
    """`typed_per_filter_config` with that fault; None: without one."""
    return {} if fault is None else {"typed_per_filter_config": {FILTER: {"@type": _FAULT, **fault}}}


@dataclass(frozen=True, slots=True)
class Case:
    """A virtual host's route, in Envoy's JSON, and a request to it."""

    route: Mapping[str, Any]
    host: Mapping[str, Any] = field(default_factory=dict)
    """More of the virtual host."""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "GET"
    script: str = "200"

    def __str__(self) -> str:
        return f"{self.method} {self.script} {dict(self.headers)} {dict(self.host)} {dict(self.route)}"


class Result(NamedTuple):
    """What became of a case."""

    status: int
    flags: str
    early: bool
    """It was told to be delayed, but was not."""
    tries: int
    body: str | None = None
    """None: it was an error."""
    headers: Mapping[str, str] = {}
    told: Sequence[Mapping[str, str]] = ()


def configuration(cases: Sequence[Case]) -> Values:
    """An envoy.config.route.v3.RouteConfiguration."""
    hosts = [
        {"name": f"case-{number}", "domains": [f"case-{number}"], "routes": [case.route], **case.host}
        for number, case in enumerate(cases)
    ]
    return {"name": "faults", "virtual_hosts": hosts, "validate_clusters": False}


def clusters(port: int) -> list[Values]:
    """Two that lead to the upstream, and one to nobody."""
    return [
        {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [{"max_retries": 1000}]},
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(to)}}] if to else []}],
            },
        }
        for name, to in (("up", port), ("other", port), ("empty", 0))
    ]


def _address(port: int) -> Values:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def bootstrap(routes: Values, port: int) -> Values:
    """An Envoy with these routes before the upstream at `port`."""
    shown = [{"append": {"header": {"key": k, "value": v}}} for k, v in _SHOWN.items()]
    show = {
        "@type": f"{_TYPES}.http.header_mutation.v3.HeaderMutation",
        "mutations": {"response_mutations": shown},
    }
    manager = {
        "@type": _HCM,
        "stat_prefix": "main",
        "use_remote_address": True,
        "internal_address_config": _INTERNAL,
        "route_config": routes,
        "http_filters": [
            {"name": "show", "typed_config": show},
            {"name": FILTER, "typed_config": {"@type": _FAULT}},
            {"name": "router", "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router"}},
        ],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "main", "address": _address(0), "filter_chains": [chain]}
    return {
        "node": {"id": "oracle", "cluster": "oracle"},
        "static_resources": {"listeners": [listener], "clusters": clusters(port)},
    }


async def compare(cases: Sequence[Case], folder: Path, delay: float) -> list[tuple[Case, Result, Result]]:
    """Every case with Envoy's result and ours; a request that took `delay` seconds was delayed."""
    routes = configuration(cases)
    async with run_upstream() as upstream:
        async with run_envoy(bootstrap(routes, upstream.port), folder) as envoy:
            theirs = await asyncio.gather(*_asked(cases, envoy, upstream, delay))
        asker = Ourselves(routes, upstream)
        ours = await asyncio.gather(
            *(asker.ask(number, case, delay, f"ours-{number}") for number, case in enumerate(cases))
        )
        await asker.close()
    return list(zip(cases, theirs, ours, strict=True))


def _asked(cases: Sequence[Case], envoy: RealEnvoy, upstream: Upstream, delay: float) -> Any:
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int, case: Case) -> Result:
        async with gate:
            began = time.monotonic()
            got = await ask_envoy(envoy, number, case, f"envoy-{number}")
            took = time.monotonic() - began
        found = dict(got.headers)
        seen = upstream.tries[f"envoy-{number}"]
        headers = {name: found[name] for name in _COMPARED if name in found}
        flags = found["x-oracle-flags"]
        return Result(
            got.status, flags, _is_early(flags, took, delay), len(seen), got.body, headers, _told(seen)
        )

    return (ask(number, case) for number, case in enumerate(cases))


def _is_early(flags: str, took: float, delay: float) -> bool:
    return "DI" in flags and took < delay


def _told(tries: Sequence[Try]) -> list[Mapping[str, str]]:
    """What the tries were told; how much time is left to one that is not the first, is chance."""
    return [
        {name: value for name, value in each.told.items() if not number or name != EXPECTED}
        for number, each in enumerate(tries)
    ]


async def ask_envoy(envoy: RealEnvoy, number: int, case: Case, name: str) -> Received:
    """One request to Envoy, on a connection of its own."""
    lines = [f"{case.method} / HTTP/1.1", f"host: case-{number}", "content-length: 0", "connection: close"]
    lines += [f"x-id: {name}", f"x-script: {case.script}"]
    lines += [f"{name}: {value}" for name, value in case.headers.items()]
    reader, writer = await asyncio.open_connection("127.0.0.1", envoy.listeners["main"])
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    try:
        async with asyncio.timeout(PATIENCE):
            return await receive(reader, body=case.method != "HEAD")
    finally:
        writer.close()
        await writer.wait_closed()


class _Hands:
    """Sends for the driver."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections

    async def send(self, attempt: Attempt) -> Response | Failed:
        """One try."""
        return await self.connections.send(attempt, b"")

    def mirror(self, mirror: Mirror) -> None:
        """No case has mirrors."""
        raise AssertionError(mirror)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


class Ourselves:
    """This library with the same routes before the same upstream."""

    def __init__(self, routes: Values, upstream: Upstream) -> None:
        table = decode_routes(pb.from_dict(pb.RouteConfiguration, routes))
        made = [decode_cluster(pb.from_dict(pb.Cluster, each)) for each in clusters(upstream.port)]
        self.view = View("1", {"a:80": table}, {cluster.name: cluster for cluster in made})
        self.upstream = upstream
        self.connections = Connections(time.monotonic)
        self.ledger = Ledger()
        self.dice = random.Random(1)
        self.gate = asyncio.Semaphore(AT_ONCE)

    async def ask(self, number: int, case: Case, delay: float, name: str) -> Result:
        """One request."""
        said = {"x-id": name, "x-script": case.script, **case.headers}
        pairs = [(key.encode(), value.encode("latin-1")) for key, value in said.items()]
        head = RequestHead(case.method, "http", f"case-{number}", "/", pairs)
        body, nowhere = RequestBody(b""), ("127.0.0.1", 1)
        steps = flow(head, body, self.view, "a:80", self.ledger, time.monotonic, self.dice, nowhere)
        async with self.gate:
            began = time.monotonic()
            failed, text = False, b""
            try:
                answer = await adrive(steps, _Hands(self.connections))
            except FlightFailed as error:
                status = 504 if error.failed.how in _LATE else 503
                answer, failed = Answer(status, (), error.facts, b""), True
            took = time.monotonic() - began
            if isinstance(answer.body, AsyncBody):
                text = b"".join([chunk async for chunk in answer.body])
            elif isinstance(answer.body, bytes):
                text = answer.body
        found = {key.decode().lower(): value.decode("latin-1") for key, value in answer.headers}
        seen = self.upstream.tries[name]
        return Result(
            answer.status,
            answer.facts.flag,
            _is_early(answer.facts.flag, took, delay),
            len(seen),
            None if failed else text.decode(),
            {key: found[key] for key in _COMPARED if key in found},
            _told(seen),
        )

    async def close(self) -> None:
        """Closes the connections."""
        self.connections.close()
        await asyncio.sleep(0)
