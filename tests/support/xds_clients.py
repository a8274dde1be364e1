"""gRPC's own xDS clients, in Python and in Node.js, as processes that are asked to make calls.

A process of its own, because gRPC reads its xDS bootstrap once a process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent
Ask = Callable[..., dict[str, Any]]


def command(kind: str, target: str) -> list[str]:
    """Which program calls that target: kind is python or node."""
    if kind == "python":
        return [sys.executable, str(SUPPORT / "grpcio_client.py"), target]
    return ["node", str(SUPPORT.parent / "scenarios/grpcjs/client.js"), target]


@contextmanager
def client(command: list[str], bootstrap: Path) -> Iterator[Ask]:
    """The program, until the block ends, and how it is asked."""
    env = os.environ | {"GRPC_XDS_BOOTSTRAP": str(bootstrap)}
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(fails: str = "", **what: Any) -> dict[str, Any]:
        """Makes calls; each succeeds, or fails in a way that begins with `fails`."""
        print(json.dumps(what), file=process.stdin, flush=True)
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        told = dict(json.loads(line))
        failed = {error.partition(" ")[0] for error in told["errors"]}
        assert failed == ({fails} if fails else set()), told
        return dict(told["answers"])

    try:
        yield ask
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()  # type: ignore[union-attr]
