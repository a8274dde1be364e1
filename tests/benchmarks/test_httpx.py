"""What a request through the mesh costs against one through bare httpx: paired, interleaved, one server.

    pytest tests/benchmarks/test_httpx.py --benchmark-enable -s

Each round times bare httpx and the mesh one after the other, in alternating order; the ratio of a
round is mesh ÷ bare, and the table shows the median of the ratios. Goal: at most 1.
Without --benchmark-enable one short round only checks that everything works.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.fake_mesh import FakeMesh, fake_mesh

import meshlib

SERVER = """
import asyncio, sys
class P(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.seen = transport, b""
    def data_received(self, data):
        self.seen += data
        while b"\\r\\n\\r\\n" in self.seen:
            _, _, self.seen = self.seen.partition(b"\\r\\n\\r\\n")
            self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
async def main():
    server = await asyncio.get_running_loop().create_server(P, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that does next to nothing, in a process of its own."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.communicate("")


@pytest.fixture
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Rounds, and requests a round."""
    return (31, 200) if request.config.getoption("--benchmark-enable") else (1, 40)


def report(kind: str, in_flight: int, requests: int, rounds: list[tuple[float, float]]) -> None:
    bare, mesh = (statistics.median(times) / requests * 1e6 for times in zip(*rounds, strict=True))
    ratio = statistics.median(m / b for b, m in rounds)
    print(f"\n{kind:5} {in_flight:2} in flight: httpx {bare:6.0f} us, mesh {mesh:6.0f} us, ratio {ratio:.2f}")


def mesh_for(port: int) -> FakeMesh:
    return fake_mesh([port], (f"127.0.0.1:{port}",), route={"timeout": "15s"})


@pytest.mark.parametrize("in_flight", [1, 32])
def test_client(port: int, in_flight: int, shape: tuple[int, int]) -> None:
    rounds, requests = shape
    url = f"http://127.0.0.1:{port}/"
    with (
        httpx.Client(trust_env=False) as bare,
        meshlib.Client(mesh=mesh_for(port)) as mesh,  # type: ignore[arg-type]
        ThreadPoolExecutor(in_flight) as threads,
    ):

        def timed(client: httpx.Client) -> float:
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
async def test_async_client(port: int, in_flight: int, shape: tuple[int, int]) -> None:
    rounds, requests = shape
    url = f"http://127.0.0.1:{port}/"

    async def timed(client: httpx.AsyncClient) -> float:
        left = iter(range(requests))

        async def work() -> None:
            for _ in left:
                assert (await client.get(url)).text == "hello"

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(in_flight)))
        return time.perf_counter() - start

    async with (
        httpx.AsyncClient(trust_env=False) as bare,
        meshlib.AsyncClient(mesh=mesh_for(port)) as mesh,  # type: ignore[arg-type]
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
