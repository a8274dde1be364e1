"""What a gRPC call through the mesh costs against one over gRPC's own channel.

    pytest tests/benchmarks/test_grpc.py --benchmark-enable -s

Each round times bare and mesh one after the other, in alternating order; shown are medians of the times and
of the differences, in wall and in CPU time of this process. The server is another process. Goals, on an idle
machine: threads at most 40 us more, tasks 60. Without --benchmark-enable one short round only checks that
everything works.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from support.fake_mesh import fake_mesh
from support.grpc_server import PATH

import meshlib_grpc

_TESTS = Path(__file__).parents[1]
_SERVE = "from support.grpc_server import serve; serve()"


class Times(NamedTuple):
    """Of one round, in seconds."""

    wall: float
    cpu: float


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, cwd=_TESTS) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


@pytest.fixture
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Rounds, and calls a round."""
    return (31, 300) if request.config.getoption("--benchmark-enable") else (1, 20)


def report(name: str, calls: int, rounds: list[tuple[Times, Times]]) -> None:
    for kind in ("wall", "cpu"):
        bare = [getattr(one, kind) / calls * 1e6 for one, _ in rounds]
        mesh = [getattr(one, kind) / calls * 1e6 for _, one in rounds]
        more = statistics.median(m - b for b, m in zip(bare, mesh, strict=True))
        ratio = statistics.median(m / b for b, m in zip(bare, mesh, strict=True))
        print(
            f"\n{name} {kind}: {statistics.median(bare):.0f} us, mesh {statistics.median(mesh):.0f} us, "
            f"{more:+.0f} us, {ratio:.2f}"
        )


def test_threads(port: int, shape: tuple[int, int]) -> None:
    rounds, calls = shape
    mesh = fake_mesh([port], route={"timeout": "15s"})
    with (
        meshlib_grpc.channel("reviews:9080", mesh) as ours,
        grpc.insecure_channel(f"127.0.0.1:{port}") as bare,
    ):

        def timed(call: Callable[[bytes], bytes]) -> Times:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                assert call(b"hello") == b"v1"
            return Times(time.perf_counter() - wall, time.process_time() - cpu)

        both = bare.unary_unary(PATH + "who"), ours.unary_unary(PATH + "who")
        found = []
        for number in range(rounds + 1):
            turn = both if number % 2 else both[::-1]
            seen = [timed(call) for call in turn]
            found.append((seen[0], seen[1]) if number % 2 else (seen[1], seen[0]))
    report("threads", calls, found[1:])


async def test_tasks(port: int, shape: tuple[int, int]) -> None:
    rounds, calls = shape
    mesh = fake_mesh([port], route={"timeout": "15s"})
    async with (
        meshlib_grpc.aio_channel("reviews:9080", mesh) as ours,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as bare,
    ):

        async def timed(call: Callable[[bytes], Awaitable[bytes]]) -> Times:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                assert await call(b"hello") == b"v1"
            return Times(time.perf_counter() - wall, time.process_time() - cpu)

        both = bare.unary_unary(PATH + "who"), ours.unary_unary(PATH + "who")
        found = []
        for number in range(rounds + 1):
            turn = both if number % 2 else both[::-1]
            seen = [await timed(call) for call in turn]
            found.append((seen[0], seen[1]) if number % 2 else (seen[1], seen[0]))
    report("tasks", calls, found[1:])
