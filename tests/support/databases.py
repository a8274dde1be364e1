"""A real PostgreSQL and a real Redis on loopback, each a process of its own with nothing in it."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from socket import create_connection

from support.commands import wait_until
from support.ports import free_port

NOBODY = "nobody"
"""As whom PostgreSQL runs if the tests are root's, as whom it does not."""


def _program(name: str) -> str:
    """Debian keeps PostgreSQL's programs apart, by version."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    found = str(kept[0]) if kept else shutil.which(name)
    assert found, f"the tests need {name}: apt-get install postgresql redis-server"
    return found


@contextlib.contextmanager
def _running(command: list[str], port: int, log: Path, user: str | None) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, user=user, cwd="/"
        )
    try:
        wait_until(lambda: process.poll() is not None or _answers(port), 30, command[0])
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


@contextlib.contextmanager
def postgres() -> Iterator[int]:
    """Its port. The user `postgres` needs no password."""
    user = NOBODY if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgres", ignore_cleanup_errors=True) as folder:
        where, port = Path(folder), free_port()
        if user is not None:
            shutil.chown(where, user)
        subprocess.run(
            [_program("initdb"), "-D", f"{where}/data", "-U", "postgres", "-A", "trust", "-N", "--locale=C"],
            check=True,
            capture_output=True,
            user=user,
            cwd="/",
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "8MB",
            "dynamic_shared_memory_type": "mmap",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [_program("postgres"), "-D", f"{where}/data", *options]
        with _running(command, port, where / "log", user):
            yield port


@contextlib.contextmanager
def redis() -> Iterator[int]:
    """Its port."""
    with tempfile.TemporaryDirectory(prefix="redis") as folder:
        port = free_port()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with _running([_program("redis-server"), *options], port, Path(folder) / "log", None):
            yield port
