"""What a gRPC server in the mesh costs a call, against a bare one, over the same TLS or none.

    pytest tests/benchmarks/test_grpc_server.py --benchmark-enable -s

`own`: gRPC takes the connections, and the interceptor stands before the handlers; goals, on an idle machine:
at most 40 us more for threads, 60 for tasks. `port`: connections come through a port of the mesh, which leads
their bytes on. One policy on paths holds. Each round times all three one after the other, from a client in
another process; shown are medians, of the times and of the differences, and the server's CPU. Without
--benchmark-enable one short round only checks that everything works.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.grpc_inbound import KINDS, PATH, serving, serving_of_grpcs
from support.policed_mesh import DNS, OWN, PolicedMesh
from support.small_ca import SmallCa

import meshlib_grpc
from meshlib_grpc.inbound.credentials import rotating

_TESTS = Path(__file__).parents[1]
_ASK = "from benchmarks.test_grpc_server import ask; ask()"
POLICY = "allow(p):\n  rules: [{to: [{operation: {notPaths: [/test.Service/admin]}}]}]\n"


def ask() -> None:
    """Times calls as the standard input says: a port and a number a line; answers with seconds."""
    options = json.loads(sys.stdin.readline())
    channels: dict[int, Any] = {}
    for line in sys.stdin:
        port, calls = json.loads(line)
        if port not in channels:
            channels[port] = _channel(port, options).unary_unary(PATH + "bounce")
        call = channels[port]
        begun = time.perf_counter()
        for _ in range(calls):
            call(b"hello")
        print(time.perf_counter() - begun, flush=True)


def _channel(port: int, options: dict[str, str]) -> Any:
    if not options:
        return grpc.insecure_channel(f"127.0.0.1:{port}")
    credentials = grpc.ssl_channel_credentials(*(options[one].encode() for one in ("roots", "key", "chain")))
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials, (("grpc.ssl_target_name_override", DNS),))


@pytest.fixture
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Rounds, and calls a round."""
    return (21, 300) if request.config.getoption("--benchmark-enable") else (1, 10)


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", KINDS)
def test_calls(kind: str, secured: bool, shape: tuple[int, int]) -> None:
    rounds, calls = shape
    ca = SmallCa()
    own, page = ca.held(OWN, dns=[DNS]), ca.held("spiffe://cluster.local/ns/foo/sa/sleep")
    mesh: Any = PolicedMesh(POLICY, own)
    make = meshlib_grpc.aio_server_interceptor if kind == "tasks" else meshlib_grpc.server_interceptor
    options = (
        {"roots": own.roots_pem, "key": page.key_pem.decode(), "chain": page.chain_pem} if secured else {}
    )
    with (
        serving_of_grpcs(kind, None, rotating(lambda: own) if secured else None) as bare,
        serving_of_grpcs(kind, make(mesh, 9080), rotating(lambda: own) if secured else None) as interceptor,
        serving(kind, mesh) as port,
        asking(options) as client,
    ):
        servers = {"bare": bare.port, "own": interceptor.port, "port": port.port}
        for one in servers.values():
            client(one, 20)
        walls: dict[str, list[float]] = {name: [] for name in servers}
        cpus = dict.fromkeys(servers, 0.0)
        for _ in range(rounds):
            for name, one in servers.items():
                before = time.process_time()
                walls[name].append(client(one, calls) / calls * 1e6)
                cpus[name] += (time.process_time() - before) / calls / rounds * 1e6
    print(f"\n{kind} {'tls' if secured else 'plain'}", end="")
    for name, found in walls.items():
        more = statistics.median(one - base for base, one in zip(walls["bare"], found, strict=True))
        print(f"; {name} {statistics.median(found):.0f} us {more:+.0f}, cpu {cpus[name]:.0f}", end="")
    print()


@contextmanager
def asking(options: dict[str, str]) -> Iterator[Any]:
    """A client in another process: called with a port and a number it gives the seconds."""
    path = os.pathsep.join((str(_TESTS), os.environ.get("PYTHONPATH", "")))
    with subprocess.Popen(
        [sys.executable, "-c", _ASK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_TESTS,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def tell(what: Any) -> None:
            process.stdin.write(json.dumps(what) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]

        def timed(port: int, calls: int) -> float:
            tell([port, calls])
            return float(process.stdout.readline())  # type: ignore[union-attr]

        tell(options)
        yield timed
        process.stdin.close()
