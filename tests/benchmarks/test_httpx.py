"""What a request through the mesh costs against one through bare httpx: paired, interleaved, one server.

The mesh is one as users have it: a control service in a process of its own says where the server is.

    pytest tests/benchmarks/test_httpx.py --benchmark-enable -s

Each round times bare httpx and the mesh one after the other, in alternating order; the ratio of a
round is mesh ÷ bare, and the table shows the median of the ratios. Goal: at most 1.
Without --benchmark-enable one short round only checks that everything works.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.commands import control
from support.hello_server import hello_server

import meshlib
from meshlib.dataplane.mesh import Mesh

DOCUMENTS = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hello}
spec:
  hosts: [hello.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{name: http, number: 80, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: PORT}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hello}
spec:
  hosts: [hello.example]
  http:
  - timeout: 15s
    route: [{destination: {host: hello.example}}]
"""
THROUGH_THE_MESH = "http://hello.example/"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with hello_server() as found:
        yield found


@pytest.fixture
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Rounds, and requests a round."""
    return (31, 200) if request.config.getoption("--benchmark-enable") else (1, 40)


def report(kind: str, in_flight: int, requests: int, rounds: list[tuple[float, float]]) -> None:
    bare, mesh = (statistics.median(times) / requests * 1e6 for times in zip(*rounds, strict=True))
    ratio = statistics.median(m / b for b, m in rounds)
    print(f"\n{kind:5} {in_flight:2} in flight: httpx {bare:6.0f} us, mesh {mesh:6.0f} us, ratio {ratio:.2f}")


@pytest.fixture(scope="module")
def connected(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that a control service has told of the server."""
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "hello.yaml").write_text(DOCUMENTS.replace("PORT", str(port)))
    with (
        control(folder) as served,
        meshlib.connect(served.address, state_dir="", allow_plaintext=True) as mesh,
    ):
        mesh.prepare("hello.example:80")
        yield mesh


def url_for(client: httpx.Client | httpx.AsyncClient, port: int) -> str:
    ours = isinstance(client, meshlib.Client | meshlib.AsyncClient)
    return THROUGH_THE_MESH if ours else f"http://127.0.0.1:{port}/"


def test_it_is_the_mesh_that_is_measured(port: int, connected: Mesh) -> None:
    with meshlib.Client(mesh=connected) as client:
        facts = client.get(THROUGH_THE_MESH).extensions["meshlib"]
    assert facts.source == "hello.yaml:18"
    assert (facts.cluster, facts.endpoint) == ("outbound|80||hello.example", f"127.0.0.1:{port}")


@pytest.mark.parametrize("in_flight", [1, 32])
def test_client(port: int, connected: Mesh, in_flight: int, shape: tuple[int, int]) -> None:
    rounds, requests = shape
    with (
        httpx.Client(trust_env=False) as bare,
        meshlib.Client(mesh=connected) as mesh,
        ThreadPoolExecutor(in_flight) as threads,
    ):

        def timed(client: httpx.Client) -> float:
            url = url_for(client, port)
            start = time.perf_counter()
            if in_flight == 1:
                assert all(client.get(url).text == "hello" for _ in range(requests))
            else:
                assert all(threads.map(lambda _: client.get(url).text == "hello", range(requests)))
            return time.perf_counter() - start

        report("sync", in_flight, requests, [pair(n, timed, bare, mesh) for n in range(rounds)])


def pair(
    number: int, timed: Callable[[httpx.Client], float], bare: httpx.Client, mesh: httpx.Client
) -> tuple[float, float]:
    if number % 2:
        second = timed(mesh)
        return timed(bare), second
    return timed(bare), timed(mesh)


@pytest.mark.parametrize("in_flight", [1, 32])
async def test_async_client(port: int, connected: Mesh, in_flight: int, shape: tuple[int, int]) -> None:
    rounds, requests = shape

    async def timed(client: httpx.AsyncClient) -> float:
        url = url_for(client, port)
        left = iter(range(requests))

        async def work() -> None:
            for _ in left:
                assert (await client.get(url)).text == "hello"

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(in_flight)))
        return time.perf_counter() - start

    async with (
        httpx.AsyncClient(trust_env=False) as bare,
        meshlib.AsyncClient(mesh=connected) as mesh,
    ):
        report("async", in_flight, requests, [await apair(n, timed, bare, mesh) for n in range(rounds)])


async def apair(
    number: int,
    timed: Callable[[httpx.AsyncClient], Awaitable[float]],
    bare: httpx.AsyncClient,
    mesh: httpx.AsyncClient,
) -> tuple[float, float]:
    if number % 2:
        second = await timed(mesh)
        return await timed(bare), second
    return await timed(bare), await timed(mesh)
