"""Real Envoy as the judge of circuit breakers: the same requests, held open one after another, two lists.

Each case is a cluster with thresholds and a script: a word for each request, which begins when the one
before has come to rest (it is held by the endpoint, was answered, or waits for a connection). `hold` is
answered when all have begun; `503,hold` is answered 503 at first, and its retry is held. `wait 0.5` is no
request, but that many seconds. What becomes of each is told by its status.
"""

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.envoy import run_envoy
from support.oracle_outlier import Host, address

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.ledger import Ledger
from meshlib.core.outbound import flow
from meshlib.core.request import Failed, RequestHead
from meshlib.core.view import View
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.drive import AsyncBody, FlightFailed, adrive
from meshlib.dataplane.http.asynchronous import Connections, Response
from meshlib.xds import pb

REST = 0.15
"""Seconds after which a request that nobody has heard of is waiting."""
TIMEOUT = 3.0
_MANY = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 1000)
Ask = Callable[[str, Mapping[str, str]], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Case:
    """A cluster's thresholds in Envoy's JSON, and its requests."""

    name: str
    thresholds: Mapping[str, Any]
    requests: Sequence[str]
    hangs: bool = False
    """No connection to the endpoint comes about; requests end with their time."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Of the cluster, in Envoy's JSON."""

    def __str__(self) -> str:
        return f"{self.name} {dict(self.thresholds)} {list(self.requests)}"


class Endpoint:
    """Does with requests what their `x-script` says, and holds them until it is told to let go."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: defaultdict[str, int] = defaultdict(int)
        self.heard: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """A request is held."""
        self.free: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """All requests of a run may go."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                script, name = headers["x-script"].split(","), headers["x-id"]
                word = script[min(self.seen[name], len(script) - 1)]
                self.seen[name] += 1
                if word == "hold":
                    self.heard[name].set()
                    await self.free[headers["x-run"]].wait()
                status = "200" if word == "hold" else word
                writer.write(f"HTTP/1.1 {status} Scripted\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()


async def play(case: Case, run: str, endpoint: Endpoint, ask: Ask) -> list[int]:
    """The statuses of a case's requests."""
    tasks: list[asyncio.Task[int]] = []
    for number, script in enumerate(case.requests):
        if script.startswith("wait "):
            await asyncio.sleep(float(script.removeprefix("wait ")))
            continue
        name = f"{run}-{number}"
        headers = {"x-script": script, "x-id": name, "x-run": run}
        task = asyncio.ensure_future(ask(case.name, headers))
        heard = asyncio.create_task(endpoint.heard[name].wait())
        tasks.append(task)
        await asyncio.wait((task, heard), timeout=REST, return_when=asyncio.FIRST_COMPLETED)
        heard.cancel()
    endpoint.free[run].set()
    return list(await asyncio.gather(*tasks))


async def compare(cases: Sequence[Case], folder: Path) -> list[tuple[Case, list[int], list[int]]]:
    """Every case with Envoy's statuses and ours."""
    endpoint, hanging = Endpoint(), Host()
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0, backlog=1024)
    endpoint.port = server.sockets[0].getsockname()[1]
    await hanging.be("hangs")
    clusters = [_cluster(case, hanging.port if case.hangs else endpoint.port) for case in cases]
    try:
        async with run_envoy(_bootstrap(clusters, cases), folder) as envoy:
            port = envoy.listeners["main"]

            async def ask(name: str, headers: Mapping[str, str]) -> int:
                return await _ask_envoy(port, name, headers)

            theirs = await asyncio.gather(*(play(c, f"envoy-{c.name}", endpoint, ask) for c in cases))
        ours = await asyncio.gather(
            *(_play_ours(c, cluster, endpoint) for c, cluster in zip(cases, clusters, strict=True))
        )
    finally:
        server.close()
        await hanging.close()
    return list(zip(cases, theirs, ours, strict=True))


def _cluster(case: Case, port: int) -> dict[str, Any]:
    return {
        "name": case.name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{**_MANY, **case.thresholds}]},
        "load_assignment": {
            "cluster_name": case.name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
        },
        **case.more,
    }


def _route(case: Case, path: str) -> dict[str, Any]:
    retry = {"retry_on": "5xx", "num_retries": 1, "retry_back_off": {"base_interval": "0.001s"}}
    action = {"cluster": case.name, "timeout": "0.6s" if case.hangs else f"{TIMEOUT}s", "retry_policy": retry}
    return {"match": {"prefix": path}, "route": action}


def _bootstrap(clusters: Sequence[Mapping[str, Any]], cases: Sequence[Case]) -> dict[str, Any]:
    routes = [_route(case, f"/{case.name}/") for case in cases]
    manager = {
        "@type": pb.type_url(pb.HttpConnectionManager),
        "stat_prefix": "x",
        "http_filters": [{"name": "router", "typed_config": {"@type": pb.type_url(pb.Router)}}],
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "main", "address": address(0), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": list(clusters)}}


async def _ask_envoy(port: int, name: str, headers: Mapping[str, str]) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET /{name}/ HTTP/1.1", "host: x", *(f"{key}: {value}" for key, value in headers.items())]
    try:
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _play_ours(case: Case, cluster: Mapping[str, Any], endpoint: Endpoint) -> list[int]:
    host = {"name": "all", "domains": ["*"], "routes": [_route(case, "/")]}
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, {"name": "r", "virtual_hosts": [host]}))
    made = decode_cluster(pb.from_dict(pb.Cluster, dict(cluster)))
    view = View("1", {"x:80": table}, {case.name: made})
    hands, ledger, dice = _Hands(), Ledger(), random.Random(1)

    async def ask(_: str, headers: Mapping[str, str]) -> int:
        head = RequestHead("GET", "http", "x", "/", [(k.encode(), v.encode()) for k, v in headers.items()])
        body, nowhere = RequestBody(b""), ("127.0.0.1", 1)
        try:
            steps = flow(head, body, view, "x:80", ledger, time.monotonic, dice, nowhere)
            answer = await adrive(steps, hands)
        except FlightFailed:
            return 504
        if isinstance(answer.body, AsyncBody):
            async for _part in answer.body:
                pass
        return answer.status

    statuses = await play(case, f"ours-{case.name}", endpoint, ask)
    hands.connections.close()
    await asyncio.sleep(0)
    return statuses


class _Hands:
    """Sends for the driver."""

    def __init__(self) -> None:
        self.connections = Connections(time.monotonic)

    async def send(self, attempt: Attempt) -> Response | Failed:
        """One try."""
        return await self.connections.send(attempt, b"")

    def mirror(self, mirror: Mirror) -> None:
        """No case has mirrors."""
        raise AssertionError(mirror)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)
