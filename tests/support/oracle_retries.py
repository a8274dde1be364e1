"""Real Envoy as the judge of tries: the same route, request and upstream, two counts.

Each case is a route of one route configuration, which Envoy and our decoder both read, and a request
whose upstream is scripted by `x-script` (see `support.upstream`). `refused` as the script means a
cluster whose port is closed; there the tries are counted from Envoy's statistics.

Our path is the whole one: flow, driver, connections. A failure that we raise counts as the reply that
a sidecar makes of it: 504 for a time that ran out, 503 for everything else.
"""

import asyncio
import random
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.json_format import ParseDict
from support.envoy import RealEnvoy, run_envoy
from support.upstream import Upstream, run_upstream

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.ledger import Ledger
from meshlib.core.outbound import flow
from meshlib.core.request import Failed, Failure, RequestHead
from meshlib.core.view import View
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.drive import AsyncBody, FlightFailed, adrive
from meshlib.dataplane.hedge import AsyncTries
from meshlib.dataplane.http.asynchronous import Connections, Response
from meshlib.xds import pb

REFUSED = "refused"
AT_ONCE = 24
PATIENCE = 2.0
"""Seconds after which a request is given up; the status is then `WAITING`."""
WAITING = 0
_LATE = (Failure.TIMED_OUT, Failure.TRY_TIMED_OUT)
_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_FILE = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
_INTERNAL = {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}
_MANY = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 100_000)


@dataclass(frozen=True, slots=True)
class Case:
    """A route's retry policy (Envoy's JSON; None: no policy), its timeout, and the request."""

    script: str
    policy: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: str = "15s"
    method: str = "GET"
    breaker: Mapping[str, int] | None = None
    """Thresholds of a cluster of its own; None: there is no limit."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Of the route's action, in Envoy's JSON."""

    def __str__(self) -> str:
        told = f"{self.method} {self.script} {dict(self.headers)}"
        return f"{told}, policy {self.policy}, timeout {self.timeout} {dict(self.more)}"


class Result(NamedTuple):
    """What became of a case."""

    status: int
    tries: int
    told: Sequence[Mapping[str, str]] = ()
    """The headers about times and tries of every try that the upstream saw."""
    pauses: Sequence[float] = ()
    """Seconds between the tries."""
    won: str = ""
    """The number of the try whose response it is."""
    flags: frozenset[str] = frozenset()


class _Setup(NamedTuple):
    """What both read."""

    cases: Sequence[Case]
    routes: dict[str, Any]
    clusters: list[dict[str, Any]]
    upstream: Upstream


async def compare(cases: Sequence[Case], folder: Path) -> list[tuple[Case, Result, Result]]:
    """Every case with Envoy's result and ours."""
    # A port that is bound and not listened on refuses, and nobody else gets it.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return await _compare(cases, folder, closed.getsockname()[1])


async def _compare(cases: Sequence[Case], folder: Path, closed: int) -> list[tuple[Case, Result, Result]]:
    async with run_upstream() as upstream:
        setup = _Setup(cases, _routes(cases), _clusters(cases, upstream.port, closed), upstream)
        log = folder / "access.log"
        async with run_envoy(_bootstrap(setup, log), folder, "--file-flush-interval-msec", "20") as envoy:
            theirs = await _ask_envoy(setup, envoy, log)
        ours = await _ask_ourselves(setup)
    return list(zip(cases, theirs, ours, strict=True))


def _routes(cases: Sequence[Case]) -> dict[str, Any]:
    made = []
    for number, case in enumerate(cases):
        action: dict[str, Any] = {"cluster": _cluster(number, case), "timeout": case.timeout, **case.more}
        if case.policy is not None:
            back_off = {"base_interval": "0.001s", "max_interval": "0.001s"}
            action["retry_policy"] = {"retry_back_off": back_off, **case.policy}
        made.append({"name": f"case-{number}", "match": {"prefix": f"/{number}/"}, "route": action})
    host = {"name": "all", "domains": ["*"], "routes": made, "include_request_attempt_count": True}
    return {"name": "retries", "virtual_hosts": [host]}


def _cluster(number: int, case: Case) -> str:
    if case.script == REFUSED:
        return f"closed-{number}"
    return "upstream" if case.breaker is None else f"limited-{number}"


def _clusters(cases: Sequence[Case], port: int, closed: int) -> list[dict[str, Any]]:
    made = {_cluster(number, case): case for number, case in enumerate(cases)} | {"upstream": Case("")}
    return [
        {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [{**_MANY, **(case.breaker or {})}]},
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [
                    {
                        "lb_endpoints": [
                            {"endpoint": {"address": _address(closed if case.script == REFUSED else port)}}
                        ]
                    }
                ],
            },
        }
        for name, case in made.items()
    ]


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _bootstrap(setup: _Setup, log: Path) -> dict[str, Any]:
    form = {"text_format_source": {"inline_string": "%REQ(X-ID)% %RESPONSE_FLAGS%\n"}}
    manager = {
        "access_log": [
            {"name": "file", "typed_config": {"@type": _FILE, "path": str(log), "log_format": form}}
        ],
        "@type": _HCM,
        "stat_prefix": "main",
        "use_remote_address": True,
        "internal_address_config": _INTERNAL,
        "route_config": setup.routes,
        "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "main", "address": _address(0), "filter_chains": [chain]}
    return {
        "node": {"id": "oracle", "cluster": "oracle"},
        "static_resources": {"listeners": [listener], "clusters": setup.clusters},
    }


def _headers(who: str, number: int, case: Case) -> dict[str, str]:
    return {"x-id": f"{who}-{number}", "x-script": case.script, **case.headers}


async def _ask_envoy(setup: _Setup, envoy: RealEnvoy, log: Path) -> list[Result]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int, case: Case) -> tuple[int, str]:
        lines = [f"{case.method} /{number}/ HTTP/1.1", "host: case", "content-length: 0"]
        lines += [f"{name}: {value}" for name, value in _headers("envoy", number, case).items()]
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", envoy.listeners["main"])
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            try:
                async with asyncio.timeout(PATIENCE):
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                    won = re.search(r"\r\nx-try: (\d+)", head)
                    return int(head.split()[1]), won[1] if won else ""
            except TimeoutError:
                return WAITING, ""
            finally:
                writer.close()
                await writer.wait_closed()

    statuses = await asyncio.gather(*(ask(number, case) for number, case in enumerate(setup.cases)))
    stats = (await envoy.get("/stats?filter=closed-.*upstream_rq_retry$")).decode()
    retries = {
        int(n): int(count) for n, count in re.findall(r"closed-(\d+)\.upstream_rq_retry: (\d+)", stats)
    }
    async with asyncio.timeout(PATIENCE * 10):
        while len(lines := log.read_text().splitlines()) < len(setup.cases):
            await asyncio.sleep(0.01)
    flags = {name: frozenset(said.split(",")) for name, said in (line.split() for line in lines)}
    made = []
    for number, case in enumerate(setup.cases):
        tries = 1 + retries[number] if case.script == REFUSED else None
        (status, won), name = statuses[number], f"envoy-{number}"
        made.append(_result(setup.upstream, name, status, tries)._replace(won=won, flags=flags[name]))
    return made


def _result(upstream: Upstream, name: str, status: int, tries: int | None) -> Result:
    """A result with what the upstream saw; `tries` None: as many as that."""
    seen = upstream.tries[name]
    pauses = [after.at - before.at for before, after in pairwise(seen)]
    return Result(status, len(seen) if tries is None else tries, [each.told for each in seen], pauses)


class _Hands:
    """Sends for the driver, and counts."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.tries = 0

    async def send(self, attempt: Attempt) -> Response | Failed:
        """One try."""
        self.tries += 1
        sent = await self.connections.send(attempt, b"")
        self.tries -= isinstance(sent, Failed) and sent.how is Failure.OVERFLOW
        return sent

    def mirror(self, mirror: Mirror) -> None:
        """No case has mirrors."""
        raise AssertionError(mirror)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)

    def several(self) -> AsyncTries:
        """Several at a time."""
        return AsyncTries(self.send, self.sleep)


async def _ask_ourselves(setup: _Setup) -> list[Result]:
    table = decode_routes(ParseDict(setup.routes, pb.RouteConfiguration()))
    clusters = [decode_cluster(ParseDict(cluster, pb.Cluster())) for cluster in setup.clusters]
    view = View("1", {"case:80": table}, {cluster.name: cluster for cluster in clusters})
    # Each try on a new connection: one that is reset on a kept connection may be made anew, which is no try.
    connections, ledger = Connections(time.monotonic, longest_idle=0.0), Ledger()
    gate, dice = asyncio.Semaphore(AT_ONCE), random.Random(1)

    async def ask(number: int, case: Case) -> Result:
        pairs = [(k.encode(), v.encode()) for k, v in _headers("ours", number, case).items()]
        head = RequestHead(case.method, "http", "case", f"/{number}/", pairs)
        hands = _Hands(connections)
        async with gate:
            steps = flow(
                head, RequestBody(b""), view, "case:80", ledger, time.monotonic, dice, ("127.0.0.1", 1)
            )
            status, won, flags = WAITING, "", "DC"
            try:
                async with asyncio.timeout(PATIENCE):
                    answer = await adrive(steps, hands)
                    status, flags = answer.status, answer.facts.flag
                    won = dict(answer.headers).get(b"x-try", b"").decode()
                    if isinstance(answer.body, AsyncBody):
                        answer.body.close()
            except TimeoutError:
                pass
            except FlightFailed as error:
                status, flags = 504 if error.failed.how in _LATE else 503, error.facts.flag
        result = _result(setup.upstream, f"ours-{number}", status, hands.tries)
        return result._replace(won=won, flags=frozenset(flags.split(",")))

    results = await asyncio.gather(*(ask(number, case) for number, case in enumerate(setup.cases)))
    connections.close()
    await asyncio.sleep(0)
    return results
