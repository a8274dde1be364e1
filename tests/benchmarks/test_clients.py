"""What a request through the mesh costs against one through the bare library, for every library but httpx.

    pytest tests/benchmarks/test_clients.py --benchmark-enable -s

Each round times bare and mesh one after the other, in alternating order; the table shows the medians of the
rounds' times and ratios (mesh ÷ bare), in wall and in CPU time of this process. Goals: requests at most 0.67;
aiohttp at most 1.25 with 32 in flight. Without --benchmark-enable one short round only checks that everything
works.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import aiohttp
import httpx2
import pytest
import requests
import urllib3
from support.fake_mesh import fake_mesh
from support.hello_server import hello_server

import meshlib_aiohttp
import meshlib_httpx2
import meshlib_requests
import meshlib_urllib3

MESH_URL = "http://reviews:9080/"


class Times(NamedTuple):
    """Of one round, in seconds."""

    wall: float
    cpu: float


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with hello_server() as found:
        yield found


@pytest.fixture
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Rounds, and requests a round."""
    return (31, 200) if request.config.getoption("--benchmark-enable") else (1, 40)


def report(name: str, in_flight: int, requests_: int, rounds: list[tuple[Times, Times]]) -> None:
    def middle(pick: Callable[[Times], float]) -> tuple[float, float, float]:
        bare, mesh = [pick(b) for b, _ in rounds], [pick(m) for _, m in rounds]
        ratio = statistics.median(m / b for b, m in zip(bare, mesh, strict=True))
        return statistics.median(bare) / requests_ * 1e6, statistics.median(mesh) / requests_ * 1e6, ratio

    wall, cpu = middle(lambda t: t.wall), middle(lambda t: t.cpu)
    print(
        f"\n{name:12} {in_flight:2} in flight: wall {wall[0]:5.0f} us, mesh {wall[1]:5.0f} us, {wall[2]:.2f};"
        f" CPU {cpu[0]:5.0f} us, mesh {cpu[1]:5.0f} us, {cpu[2]:.2f}"
    )


def test_blocking(port: int, shape: tuple[int, int]) -> None:
    rounds, number = shape
    bare_url = f"http://127.0.0.1:{port}/"
    mesh: Any = fake_mesh([port])
    with (
        requests.Session() as session,
        meshlib_requests.Session(mesh=mesh) as mesh_session,
        urllib3.PoolManager() as http,
        meshlib_urllib3.PoolManager(mesh=mesh) as mesh_http,
        httpx2.Client(trust_env=False) as client,
        meshlib_httpx2.Client(mesh=mesh) as mesh_client,
    ):
        pairs: dict[str, tuple[Callable[[], bytes], Callable[[], bytes]]] = {
            "requests": (lambda: session.get(bare_url).content, lambda: mesh_session.get(MESH_URL).content),
            "urllib3": (
                lambda: http.request("GET", bare_url).data,
                lambda: mesh_http.request("GET", MESH_URL).data,
            ),
            "httpx2": (lambda: client.get(bare_url).content, lambda: mesh_client.get(MESH_URL).content),
        }

        def timed(ask: Callable[[], bytes]) -> Times:
            wall, cpu = time.perf_counter(), time.process_time()
            assert all(ask() == b"hello" for _ in range(number))
            return Times(time.perf_counter() - wall, time.process_time() - cpu)

        for name, (bare, ours) in pairs.items():
            found = []
            for turn in range(rounds):
                first, second = (bare, ours) if turn % 2 else (ours, bare)
                one, two = timed(first), timed(second)
                found.append((one, two) if turn % 2 else (two, one))
            report(name, 1, number, found)


@pytest.mark.parametrize("in_flight", [1, 32])
async def test_asynchronous(port: int, shape: tuple[int, int], in_flight: int) -> None:
    rounds, number = shape
    bare_url = f"http://127.0.0.1:{port}/"
    mesh: Any = fake_mesh([port])
    async with (
        aiohttp.ClientSession() as session,
        meshlib_aiohttp.ClientSession(mesh=mesh) as mesh_session,
        httpx2.AsyncClient(trust_env=False) as client,
        meshlib_httpx2.AsyncClient(mesh=mesh) as mesh_client,
    ):

        async def by_aiohttp(made: aiohttp.ClientSession, url: str) -> bytes:
            async with made.get(url) as response:
                return await response.read()

        async def by_httpx2(made: httpx2.AsyncClient, url: str) -> bytes:
            return (await made.get(url)).content

        async def timed(ask: Callable[[], Awaitable[bytes]]) -> Times:
            left = iter(range(number))

            async def work() -> None:
                for _ in left:
                    assert await ask() == b"hello"

            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(work() for _ in range(in_flight)))
            return Times(time.perf_counter() - wall, time.process_time() - cpu)

        pairs: dict[str, tuple[Callable[[], Awaitable[bytes]], Callable[[], Awaitable[bytes]]]] = {
            "aiohttp": (lambda: by_aiohttp(session, bare_url), lambda: by_aiohttp(mesh_session, MESH_URL)),
            "httpx2": (lambda: by_httpx2(client, bare_url), lambda: by_httpx2(mesh_client, MESH_URL)),
        }
        for name, (bare, ours) in pairs.items():
            found = []
            for turn in range(rounds):
                first, second = (bare, ours) if turn % 2 else (ours, bare)
                one, two = await timed(first), await timed(second)
                found.append((one, two) if turn % 2 else (two, one))
            report(name, in_flight, number, found)
