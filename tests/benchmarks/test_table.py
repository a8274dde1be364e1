"""The table of docs/reference/performance.md: with the mesh against without, side by side in one run.

    pytest tests/benchmarks/test_table.py --benchmark-enable -s

Every contestant is a client in a process of its own (`table/contestants.py`); the upstream is an Envoy that
answers by itself, 100 bytes, with one thread; none of the clients keeps it busy. Rounds are interleaved in an
order that changes; a ratio is the median of the rounds' ratios. The mesh is a real one: a control service
with a certificate authority, routes, retries, circuit breaker, outlier detection, and an SDK for metrics:
`meshlib.MeterProvider`, with a reader that exports every second.
`MESHLIB_BENCH_GB=1` moves a GiB instead of 256 MiB; with it `-k gib` does that and nothing else. Nothing is
asserted but that all of it works: what the numbers are, the table says. Without --benchmark-enable one round
of a few requests.
"""

import asyncio
import json
import os
import random
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from benchmarks.table.envoys import Envoys, envoys, warm
from benchmarks.table.rows import ROWS, RUNS, Results, Run
from benchmarks.table.workers import bulk_server, environment, installed, seconds_of_cpu, started
from support.secure_mesh import SecureMesh, secure_mesh

FEW = ("httpx", "mesh via mtls", "lean via sidecars", "mesh sync")
"""Who takes part if it is only seen whether all works."""
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
    route: [{destination: {host: NAME.example, subset: v1}}]
  - match: [{uri: {prefix: /admin}}]
    redirect: {uri: /}
  - timeout: 15s
    retries: {attempts: 2, perTryTimeout: 5s, retryOn: "connect-failure,refused-stream,unavailable"}
    route:
    - {destination: {host: NAME.example, subset: v1}, weight: 90}
    - {destination: {host: NAME.example}, weight: 10}
"""


async def _small(made: Envoys, control: SecureMesh, runs: list[Run], rounds: int) -> Results:
    """All runs, round by round; the first round is not counted."""
    ways = {"": made.plain, "mtls": made.mtls, "sidecars": made.outbound}
    given = {}
    for who in dict.fromkeys(run.who for run in runs):
        name, _, way = who.partition(" via ")
        inside = name.startswith("mesh")
        url = f"http://{way or 'plain'}.example/" if inside else f"http://127.0.0.1:{ways[way]}/"
        given[who] = (name, url, _settings(control))
    results = Results()
    async with started(given) as workers:
        for number in range(rounds + 1):
            for run in random.sample(runs, len(runs)):
                count = run.count if number else 2 * run.at_once
                before = sum(seconds_of_cpu(one.process) for one in made.sidecars)
                took = await workers[run.who].order(do="ask", count=count, at_once=run.at_once)
                proxies = sum(seconds_of_cpu(one.process) for one in made.sidecars) - before
                if number:
                    results.rounds.setdefault((run.who, run.at_once), []).append(
                        {
                            "p50": took["p50"] * 1e6,
                            "rps": count / took["seconds"],
                            "cpu": took["cpu"] / count * 1e6,
                            "proxies": proxies / count * 1e6,
                        }
                    )
    return results


async def _begin(
    made: Envoys, control: SecureMesh, folder: Path, rounds: int, once: dict[str, float]
) -> None:
    """Import, first response, resident memory. With bytecode, as what was installed has it: the round that
    writes it is not counted.
    """
    told: dict[str, list[float]] = {}
    urls = {"httpx": f"http://127.0.0.1:{made.plain}/", "mesh": "http://plain.example/"}
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder)}
    for number in range(rounds + 1):
        for who, url in urls.items():
            command = (sys.executable, "-m", "benchmarks.table.start", who, url)
            process = await asyncio.create_subprocess_exec(
                *command,
                json.dumps(_settings(control)),
                stdout=asyncio.subprocess.PIPE,
                env=environment() | bytecode,
            )
            said, _ = await process.communicate()
            for name, value in json.loads(said).items() if number else ():
                told.setdefault(f"{who} {name}", []).append(value)
    once |= {name: statistics.median(values) for name, values in told.items()}


async def _large(bulk: int, control: SecureMesh, rounds: int, size: int, once: dict[str, float]) -> None:
    """Seconds for `size` bytes down and up, and by how many MiB the mesh's process grew."""
    told: dict[str, list[float]] = {}
    urls = {"aiohttp": f"http://127.0.0.1:{bulk}/", "mesh": "http://bulk.example/"}
    given = {who: (who, url, _settings(control)) for who, url in urls.items() if installed(who)}
    async with started(given) as workers:
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
        if name in results.once:
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


@pytest.mark.timeout(1800)
async def test_table(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    whole = request.config.getoption("--benchmark-enable")
    size = (2**30 if os.environ.get("MESHLIB_BENCH_GB") else 2**28) if whole else 2**20
    runs = [run for run in RUNS if installed(run.name)]
    if not whole:
        runs = [Run(who, 2, 10) for who in FEW]
    if absent := sorted({run.name for run in RUNS if not installed(run.name)}):
        print(f"\nnot installed, and left out: {', '.join(absent)}")
    with secure_mesh(tmp_path) as control:
        async with envoys(control.authority, tmp_path) as made, bulk_server() as bulk:
            plain = {"plain": (made.plain, "DISABLE"), "bulk": (bulk, "DISABLE")}
            control.edit(*_documents(plain | {"mtls": (made.mtls, "ISTIO_MUTUAL")}))
            for port in (made.plain, made.outbound):
                await warm(port)
            results = await _small(made, control, runs, 9 if whole else 1)
            await _begin(made, control, tmp_path / "bytecode", 11 if whole else 1, results.once)
            await _large(bulk, control, 5 if whole else 1, size, results.once)
    if whole:
        report(results, size)
    assert {who for who, _ in results.rounds} >= set(FEW)
    assert {"mesh ready", "mesh resident", "mesh download", "mesh upload", "mesh grown"} <= set(results.once)


if os.environ.get("MESHLIB_BENCH_GB"):

    @pytest.mark.timeout(1800)
    async def test_a_gib_and_nothing_else(tmp_path: Path) -> None:
        results = Results()
        with secure_mesh(tmp_path) as control:
            async with bulk_server() as bulk:
                control.edit(*_documents({"bulk": (bulk, "DISABLE")}))
                await _large(bulk, control, 5, 2**30, results.once)
        report(results, 2**30)


def test_each_row_is_made_of_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    results = Results()
    for number, run in enumerate(RUNS):
        told = {"p50": 100.0 + number, "rps": 2.0, "cpu": 3.0, "proxies": 1.0}
        results.rounds[run.who, run.at_once] = [told]
    for who in ("httpx", "mesh"):
        results.once |= {f"{who} {what}": 7.0 for what in ("imported", "ready", "resident", "grown")}
    results.once |= {f"{who} {do}": 7.0 for who in ("aiohttp", "mesh") for do in ("download", "upload")}
    report(results, 2**20)
    printed = capsys.readouterr().out
    assert printed.count("met") + printed.count("missed") >= len(ROWS)
    assert all(row.title in printed for row in ROWS)
