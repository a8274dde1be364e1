"""What gRPC calls cost on each way through a mesh, against gRPC's own channel without one.

    pytest tests/benchmarks/test_grpc_ways.py --benchmark-enable -s

`bare` goes straight to the server; `mesh` is our channel; `xds` gRPC's own xDS client; `one` goes through an
Envoy, `two` through a second one beside the server, too. One control service feeds all but the second Envoy.
All of it is plain text. The server and the Envoys, with one thread each, are processes of their own; all
callers are this one. In each round every way is timed, in an order that changes: a call after another (p50),
and many in flight (calls/s). Shown are medians of the rounds, and of each round's ratio to bare. Without
--benchmark-enable one short round only checks that everything works.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import grpc
import grpc.experimental
import pytest
from support.commands import control
from support.envoy import run_envoy
from support.envoy_client import HTTP_OPTIONS, envoy
from support.grpc_server import PATH
from support.ports import free_port

import meshlib
import meshlib_grpc

_TESTS = Path(__file__).parents[1]
_SERVE = "from support.grpc_server import serve; serve()"
WAYS = ("bare", "mesh", "xds", "one", "two")
IN_FLIGHT = {"threads": 8, "tasks": 32}
RULES = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  ports: [{{number: {port}, name: grpc, protocol: GRPC}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: {to}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec: {{hosts: [{name}], http: [{{timeout: 15s, route: [{{destination: {{host: {name}}}}}]}}]}}
"""


class Ways(NamedTuple):
    """Targets, and what is needed for them."""

    server: int
    port: int
    """Of the mesh's services, and of the first Envoy."""
    control: str


class Took(NamedTuple):
    """Of one way in one round."""

    p50: float
    cpu: float
    """Seconds of this process for a call, one in flight."""
    rate: float
    """Calls a second, many in flight."""


@pytest.fixture
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Rounds, and calls a round."""
    return (25, 300) if request.config.getoption("--benchmark-enable") else (1, 32)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, cwd=_TESTS) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


@asynccontextmanager
async def mesh(server: int, folder: Path) -> AsyncIterator[tuple[Ways, meshlib.Mesh]]:
    """A control service, both Envoys, and the mesh of this process."""
    rules = folder / "mesh"
    rules.mkdir()
    async with run_envoy(_second(server), folder) as second:
        port = free_port()
        listed = (("reviews", server), ("two", second.listeners["in"]))
        text = "---".join(RULES.format(name=name, port=port, to=to) for name, to in listed)
        (rules / "rules.yaml").write_text(text)
        with ExitStack() as stack:
            served = stack.enter_context(control(rules))
            stack.enter_context(envoy(served.address, True))
            made = stack.enter_context(meshlib.connect(served.address, allow_plaintext=True, state_dir=""))
            ways = Ways(server, port, served.address)
            with patch.dict(os.environ, GRPC_XDS_BOOTSTRAP_CONFIG=_bootstrap(ways)):
                yield ways, made


def _bootstrap(ways: Ways) -> str:
    server = {"server_uri": ways.control, "channel_creds": [{"type": "insecure"}]}
    return json.dumps({"xds_servers": [server], "node": {"id": "xds", "metadata": {"NAMESPACE": "default"}}})


def _second(server: int) -> dict[str, Any]:
    """An Envoy that passes everything on to the server, as a sidecar's inbound side."""
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}},
        ],
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": server}}}}
    options = {
        "@type": f"type.googleapis.com/{HTTP_OPTIONS}",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    cluster = {
        "name": "app",
        "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {HTTP_OPTIONS: options},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def channels(kind: str, ways: Ways, made: meshlib.Mesh) -> dict[str, Any]:
    """A channel for each way."""
    library: Any = grpc if kind == "threads" else grpc.aio
    ours = meshlib_grpc.channel if kind == "threads" else meshlib_grpc.aio_channel
    plain = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
    alone = ("grpc.use_local_subchannel_pool", 1)

    def through(host: str) -> Any:
        options = (("grpc.default_authority", f"{host}:{ways.port}"), alone)
        return library.insecure_channel(f"127.0.0.1:{ways.port}", options)

    return {
        "bare": library.insecure_channel(f"127.0.0.1:{ways.server}", (alone,)),
        "mesh": ours(f"reviews:{ways.port}", made),
        "xds": library.secure_channel(f"xds:///reviews:{ways.port}", plain, (alone,)),
        "one": through("reviews"),
        "two": through("two"),
    }


def timed(call: Callable[[bytes], bytes], calls: int) -> Took:
    cpu, took = time.process_time(), []
    for _ in range(calls):
        begun = time.perf_counter()
        assert call(b"") == b"v1"
        took.append(time.perf_counter() - begun)
    cpu = (time.process_time() - cpu) / calls
    with ThreadPoolExecutor(IN_FLIGHT["threads"]) as pool:
        begun = time.perf_counter()
        assert set(pool.map(call, [b""] * calls)) == {b"v1"}
        return Took(statistics.median(took), cpu, calls / (time.perf_counter() - begun))


async def atimed(call: Callable[[bytes], Awaitable[bytes]], calls: int) -> Took:
    cpu, took = time.process_time(), []
    for _ in range(calls):
        begun = time.perf_counter()
        assert await call(b"") == b"v1"
        took.append(time.perf_counter() - begun)
    cpu = (time.process_time() - cpu) / calls
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            assert await call(b"") == b"v1"

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT["tasks"])))
    return Took(statistics.median(took), cpu, calls / (time.perf_counter() - begun))


def turns(rounds: int) -> Iterator[tuple[str, ...]]:
    """The order of each round."""
    for number in range(rounds):
        turned = WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]
        yield turned if number % 2 else turned[::-1]


def report(kind: str, found: list[dict[str, Took]]) -> None:
    many = f"calls/s, {IN_FLIGHT[kind]} in flight"
    print(f"\n| {kind} | p50, us | to bare | CPU, us | to bare | {many} | to bare |")
    for way in WAYS:
        cells = []
        for name, unit in (("p50", 1e6), ("cpu", 1e6), ("rate", 1.0)):
            values = [getattr(one[way], name) for one in found]
            ratios = [getattr(one[way], name) / getattr(one["bare"], name) for one in found]
            cells += [f"{statistics.median(values) * unit:.0f}", f"{statistics.median(ratios):.2f}"]
        print(f"| {way} | {' | '.join(cells)} |")


@pytest.mark.parametrize("kind", IN_FLIGHT)
async def test_ways(kind: str, server: int, shape: tuple[int, int], tmp_path: Path) -> None:
    rounds, calls = shape
    async with mesh(server, tmp_path) as (ways, made):
        opened = channels(kind, ways, made)
        each = {way: channel.unary_unary(PATH + "who") for way, channel in opened.items()}
        found: list[dict[str, Took]] = []
        try:
            for call in each.values():
                first = call(b"", wait_for_ready=True, timeout=60)
                assert (first if kind == "threads" else await first) == b"v1"
            for order in turns(rounds):
                if kind == "threads":
                    took = {way: await asyncio.to_thread(timed, each[way], calls) for way in order}
                else:
                    took = {way: await atimed(each[way], calls) for way in order}
                found.append(took)
        finally:
            for channel in opened.values():
                closed = channel.close()
                if closed is not None:
                    await closed
    report(kind, found)
