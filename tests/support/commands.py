"""The command line: in this process if it is soon over, in a process of its own if it goes on.

To start Python with its libraries costs more than what most commands do.
"""

import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from support.ports import free_port

from meshlib.cli import main

MESHLIB = [sys.executable, "-m", "meshlib.cli"]


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Asks until it holds; fails after that many seconds."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.01)


def meshlib(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end, in this process: as `process` would, but for what starts and ends one."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        patch.object(sys, "argv", ["meshlib", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def process(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end in a process of its own."""
    return subprocess.run(
        [*MESHLIB, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


@dataclass
class Control:
    """A running `meshlib control`."""

    address: str
    process: subprocess.Popen[str]
    asking: tuple[str, ...] = ("--allow-plaintext",)
    """Options of `meshlib status`."""

    def status(self) -> dict[str, Any]:
        """What `meshlib status --output json` says."""
        done = meshlib("status", "--control", self.address, "--output", "json", *self.asking)
        assert done.returncode == 0, done.stderr + done.stdout
        return dict(json.loads(done.stdout))

    def refusals(self) -> list[str]:
        """Every kind of which a connected client ever sent a NACK, with the text if it still stands."""
        return [
            f"{client['id']} {kind['kind']} {kind['nacked']}: {kind['nack']}"
            for client in self.status()["clients"]
            for kind in client["kinds"]
            if kind["nacked"]
        ]


@contextmanager
def control(folder: Path, *options: str, address: str = "") -> Iterator[Control]:
    """`meshlib control folder` in plaintext on a free loopback port, until the block ends."""
    address = address or f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [*MESHLIB, "control", str(folder), "--listen", address, "--allow-plaintext", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    served = Control(address, process)
    try:
        wait_until(lambda: answers(served), 60, "the control service")
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def answers(served: Control) -> bool:
    """Whether the service takes connections; fails at once when its process ended."""
    if served.process.poll() is not None:
        raise AssertionError(f"meshlib control ended: {served.process.communicate()[0]}")
    host, _, port = served.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 0.2).close()
    except OSError:
        return False
    return True
