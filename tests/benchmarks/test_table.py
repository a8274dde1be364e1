"""The table of docs/reference/performance.md: with the mesh against without, side by side in one run.

    pytest tests/benchmarks/test_table.py --benchmark-enable -s

Every contestant is a client in a process of its own (`table/contestants.py`); the upstream is an Envoy that
answers by itself, 100 bytes, with one thread; none of the clients keeps it busy. Rounds are interleaved in an
order that changes; a ratio is the median of the rounds' ratios. The mesh is a real one: a control service with
a certificate authority, routes, retries, circuit breaker, outlier detection, and an SDK that takes metrics.
`MESHLIB_BENCH_GB=1` moves a GiB instead of 256 MiB. Nothing is asserted but that all of it works: what the
numbers are, the table says. Without --benchmark-enable one round of a few requests.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from benchmarks.table.contestants import NEEDS
from benchmarks.table.envoys import Envoys, envoys, warm
from support.secure_mesh import SecureMesh, secure_mesh

TESTS = Path(__file__).parents[1]
HOSTS = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: NAME}
spec:
  hosts: [NAME.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{name: http, number: 80, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: PORT}, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: NAME}
spec:
  host: NAME.example
  trafficPolicy:
    tls: {mode: TLS}
    connectionPool: {tcp: {maxConnections: 1024}, http: {http1MaxPendingRequests: 1024, maxRetries: 3}}
    outlierDetection: {consecutive5xxErrors: 5, interval: 10s, baseEjectionTime: 30s}
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: NAME}
spec:
  hosts: [NAME.example]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: NAME.example, subset: v1}}]
  - match: [{uri: {prefix: /admin}}]
    redirect: {uri: /}
  - timeout: 15s
    retries: {attempts: 2, perTryTimeout: 5s, retryOn: "connect-failure,refused-stream,unavailable"}
    route:
    - {destination: {host: NAME.example, subset: v1}, weight: 90}
    - {destination: {host: NAME.example}, weight: 10}
"""


@dataclass(frozen=True)
class Run:
    """One thing that is measured each round."""

    who: str
    """A contestant, and after `via` a way that is not the plain one: `mesh via mtls`."""
    at_once: int = 1
    count: int = 200


RUNS = (
    *(Run(who) for who in ("httpx", "httpx2", "aiohttp", "mesh", "lean")),
    *(
        Run(who)
        for who in ("mesh via mtls", "lean via sidecars", "httpx via sidecars", "aiohttp via sidecars")
    ),
    *(Run(who, 32, 400) for who in ("httpx", "httpx2", "aiohttp", "mesh")),
    Run("mesh", 512, 2048),
    *(Run(who) for who in ("httpx sync", "httpx2 sync", "requests", "mesh sync")),
    *(Run(who, 8, 400) for who in ("httpx sync", "httpx2 sync", "requests", "mesh sync")),
)


@dataclass
class Results:
    """What was measured: of each run what each round told, and what was measured once."""

    rounds: dict[tuple[str, int], list[dict[str, float]]] = field(default_factory=dict)
    once: dict[str, float] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether all of them took part."""
        return set(names) <= {who for who, _ in self.rounds} | set(self.once)

    def of(self, who: str, at_once: int, what: str) -> float:
        """The median, in microseconds for times."""
        return statistics.median(each[what] for each in self.rounds[who, at_once])

    def ratio(self, one: tuple[str, int], other: tuple[str, int], what: str) -> float:
        """The median of the rounds' ratios."""
        pairs = zip(self.rounds[one], self.rounds[other], strict=True)
        return statistics.median(a[what] / b[what] for a, b in pairs)

    def more(self, one: str, other: str) -> float:
        """By how many microseconds the first takes longer than the second, one in flight."""
        pairs = zip(self.rounds[one, 1], self.rounds[other, 1], strict=True)
        return statistics.median(a["p50"] - b["p50"] for a, b in pairs)


@dataclass(frozen=True)
class Row:
    """A line of the table. `value` is asked if all that it `needs` took part."""

    title: str
    goal: str
    needs: Sequence[str]
    value: Callable[[Results], float]
    met: Callable[[float], bool]
    form: str = "{:.2f} x"


def _cpu(r: Results) -> float:
    mesh = r.rounds["mesh via mtls", 1]
    sidecars = r.rounds["lean via sidecars", 1]
    return sum(m["cpu"] for m in mesh) / sum(s["cpu"] + s["proxies"] for s in sidecars)


ROWS = (
    Row(
        "httpx API, 1 in flight, p50: bare httpx ÷ mesh",
        "≥ 2.5",
        ("httpx", "mesh"),
        lambda r: r.ratio(("httpx", 1), ("mesh", 1), "p50"),
        lambda v: v >= 2.5,
    ),
    Row(
        "httpx API, 32 in flight, requests/s: mesh ÷ bare httpx",
        "≥ 8",
        ("httpx", "mesh"),
        lambda r: r.ratio(("mesh", 32), ("httpx", 32), "rps"),
        lambda v: v >= 8,
    ),
    Row(
        "httpx API, 32 in flight, requests/s: mesh ÷ bare httpx2",
        "≥ 2.5",
        ("httpx2", "mesh"),
        lambda r: r.ratio(("mesh", 32), ("httpx2", 32), "rps"),
        lambda v: v >= 2.5,
    ),
    Row(
        "mesh, requests/s: 512 in flight ÷ 32 in flight",
        "≥ 0.75",
        ("mesh",),
        lambda r: r.ratio(("mesh", 512), ("mesh", 32), "rps"),
        lambda v: v >= 0.75,
    ),
    *(
        Row(
            f"httpx sync API, {threads} thread{'s' * (threads > 1)}, requests/s: mesh ÷ bare httpx",
            "≥ 1.5",
            ("httpx sync", "mesh sync"),
            lambda r, threads=threads: r.ratio(("mesh sync", threads), ("httpx sync", threads), "rps"),
            lambda v: v >= 1.5,
        )
        for threads in (1, 8)
    ),
    Row(
        "cost of the mesh itself, p50: rules on − off, same transport",
        "≤ 15 us",
        ("mesh", "lean"),
        lambda r: r.more("mesh", "lean"),
        lambda v: v <= 15,
        "{:.0f} us",
    ),
    Row(
        "added latency, p50: mesh with mTLS ÷ two Envoys with mTLS, same client",
        "≤ 0.25",
        ("mesh via mtls", "lean via sidecars"),
        lambda r: r.more("mesh via mtls", "lean") / r.more("lean via sidecars", "lean"),
        lambda v: v <= 0.25,
    ),
    Row(
        "CPU per request, client and proxies: mesh with mTLS ÷ two Envoys with mTLS",
        "≤ 0.33",
        ("mesh via mtls", "lean via sidecars"),
        _cpu,
        lambda v: v <= 1 / 3,
    ),
    Row(
        "import of meshlib and first response",
        "≤ 250 ms",
        ("mesh ready",),
        lambda r: r.once["mesh ready"],
        lambda v: v <= 250,
        "{:.0f} ms",
    ),
    Row(
        "resident memory over a bare httpx application",
        "≤ 40 MiB",
        ("mesh resident",),
        lambda r: r.once["mesh resident"] - r.once["httpx resident"],
        lambda v: v <= 40,
        "{:.0f} MiB",
    ),
    *(
        Row(
            f"a large {what}, bytes/s: mesh ÷ bare aiohttp",
            "≥ 0.8",
            (f"mesh {do}", f"aiohttp {do}"),
            lambda r, do=do: r.once[f"aiohttp {do}"] / r.once[f"mesh {do}"],
            lambda v: v >= 0.8,
        )
        for what, do in (("response", "download"), ("upload", "upload"))
    ),
    Row(
        "memory that a large response and upload take beside what there was",
        "flat",
        ("mesh grown",),
        lambda r: r.once["mesh grown"],
        lambda v: v <= 16,
        "{:.0f} MiB",
    ),
)


class Worker:
    """A contestant's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def order(self, **order: Any) -> dict[str, float]:
        """Does it, and gives what it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line, "a contestant ended; its error is above"
        told: dict[str, float] = json.loads(line)
        return told


@contextlib.asynccontextmanager
async def worker(who: str, url: str, settings: Mapping[str, Any]) -> AsyncIterator[Worker]:
    """One that is ready."""
    given = json.dumps({"who": who, "url": url, "settings": settings})
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.table.worker", given), stdin=pipe, stdout=pipe, env=_environment()
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"{}\n"
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
    return own | {"PYTHONPATH": os.pathsep.join((str(TESTS), own.get("PYTHONPATH", "")))}


def _installed(who: str) -> bool:
    return who not in NEEDS or importlib.util.find_spec(NEEDS[who]) is not None


def _seconds(process: int) -> float:
    """Of CPU that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _small(made: Envoys, control: SecureMesh, rounds: int, share: float) -> Results:
    """All runs, round by round."""
    ways = {"": made.plain, "mtls": made.mtls, "sidecars": made.outbound}
    results = Results()
    async with contextlib.AsyncExitStack() as stack:
        workers = {}
        for who in dict.fromkeys(run.who for run in RUNS):
            name, _, way = who.partition(" via ")
            if not _installed(name):
                print(f"\n{name} is not installed: left out", end="")
                continue
            inside = name.startswith("mesh")
            url = f"http://{way or 'plain'}.example/" if inside else f"http://127.0.0.1:{ways[way]}/"
            workers[who] = await stack.enter_async_context(worker(name, url, _settings(control)))
        runs = [run for run in RUNS if run.who in workers]
        for number in range(-1, rounds):
            for run in random.sample(runs, len(runs)):
                count = max(2 * run.at_once, int(run.count * share)) if number >= 0 else 2 * run.at_once + 10
                before = sum(_seconds(one.process) for one in made.sidecars)
                took = await workers[run.who].order(do="ask", count=count, at_once=run.at_once)
                if number >= 0:
                    proxies = sum(_seconds(one.process) for one in made.sidecars) - before
                    results.rounds.setdefault((run.who, run.at_once), []).append(
                        {
                            "p50": took["p50"] * 1e6,
                            "rps": count / took["seconds"],
                            "cpu": took["cpu"] / count * 1e6,
                            "proxies": proxies / count * 1e6,
                        }
                    )
    return results


async def _begin(made: Envoys, control: SecureMesh, rounds: int, once: dict[str, float]) -> None:
    """Import, first response, resident memory."""
    told: dict[str, list[float]] = {}
    urls = {"httpx": f"http://127.0.0.1:{made.plain}/", "mesh": "http://plain.example/"}
    for _ in range(rounds):
        for who, url in urls.items():
            command = (sys.executable, "-m", "benchmarks.table.start", who, url)
            process = await asyncio.create_subprocess_exec(
                *command,
                json.dumps(_settings(control)),
                stdout=asyncio.subprocess.PIPE,
                env=_environment(),
            )
            said, _ = await process.communicate()
            for name, value in json.loads(said).items():
                told.setdefault(f"{who} {name}", []).append(value)
    once |= {name: statistics.median(values) for name, values in told.items()}


async def _large(bulk: int, control: SecureMesh, rounds: int, size: int, once: dict[str, float]) -> None:
    """Seconds for `size` bytes down and up, and by how many MiB the mesh's process grew."""
    told: dict[str, list[float]] = {}
    urls = {"aiohttp": f"http://127.0.0.1:{bulk}/", "mesh": "http://bulk.example/"}
    async with contextlib.AsyncExitStack() as stack:
        workers = {
            who: await stack.enter_async_context(worker(who, url, _settings(control)))
            for who, url in urls.items()
            if _installed(who)
        }
        peaks = []
        for who, one in workers.items():
            for do in ("download", "upload"):
                peak = (await one.order(do=do, size=2**20))["peak"]
                peaks += [peak] if who == "mesh" else []
        for _ in range(rounds):
            for do in ("download", "upload"):
                for who, one in random.sample(list(workers.items()), len(workers)):
                    took = await one.order(do=do, size=size)
                    told.setdefault(f"{who} {do}", []).append(took["seconds"])
                    peaks += [took["peak"]] if who == "mesh" else []
        once["mesh grown"] = max(peaks) - peaks[1]
    once |= {name: statistics.median(values) for name, values in told.items()}


def _settings(control: SecureMesh) -> dict[str, Any]:
    return control.settings("productpage", 600) | {"state_dir": ""}


def _documents(ports: Mapping[str, tuple[int, str]]) -> list[str]:
    return [
        HOSTS.replace("NAME", name).replace("PORT", str(port)).replace("mode: TLS", f"mode: {mode}")
        for name, (port, mode) in ports.items()
    ]


def report(results: Results, size: int) -> None:
    """Prints the table."""
    print(f"\n\n{'':34} {'in flight':>9} {'p50 us':>8} {'requests/s':>11} {'CPU us':>7}")
    for who, at_once in results.rounds:
        p50, rps, cpu = (results.of(who, at_once, what) for what in ("p50", "rps", "cpu"))
        cpu += statistics.mean(each["proxies"] for each in results.rounds[who, at_once]) * ("via side" in who)
        print(f"{who:34} {at_once:9} {p50:8.0f} {rps:11.0f} {cpu:7.0f}")
    for name in ("httpx ready", "mesh imported", "mesh ready", "httpx resident", "mesh resident"):
        print(f"{name:34} {results.once[name]:.0f}")
    for name in [name for name in results.once if name.endswith("load")]:
        print(f"{name:34} {size / 2**20 / results.once[name]:.0f} MiB/s")
    print(
        f"\n| {'measure':75} | goal     | measured |         |\n|{'-' * 77}|----------|----------|---------|"
    )
    for row in ROWS:
        if results.has(*row.needs):
            value = row.value(results)
            met = "met" if row.met(value) else "missed"
            print(f"| {row.title:75} | {row.goal:8} | {row.form.format(value):8} | {met:7} |")


@contextlib.asynccontextmanager
async def _bulk() -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.table.bulk"), stdout=asyncio.subprocess.PIPE, env=_environment()
    )
    try:
        assert process.stdout is not None
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


@pytest.mark.timeout(1800)
async def test_table(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    whole = request.config.getoption("--benchmark-enable")
    size = (2**30 if os.environ.get("MESHLIB_BENCH_GB") else 2**28) if whole else 2**20
    with secure_mesh(tmp_path) as control:
        async with envoys(control.authority, tmp_path) as made, _bulk() as bulk:
            plain = {"plain": (made.plain, "DISABLE"), "bulk": (bulk, "DISABLE")}
            control.edit(*_documents(plain | {"mtls": (made.mtls, "ISTIO_MUTUAL")}))
            for port in (made.plain, made.outbound):
                await warm(port)
            results = await _small(made, control, 9 if whole else 1, 1.0 if whole else 0.02)
            await _begin(made, control, 5 if whole else 1, results.once)
            await _large(bulk, control, 5 if whole else 1, size, results.once)
    report(results, size)
    assert {who for who, _ in results.rounds} >= {"httpx", "mesh", "lean", "mesh via mtls", "mesh sync"}
