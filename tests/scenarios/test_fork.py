"""Processes that fork while the stream is open: plain, multiprocessing, gunicorn."""

import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest
from support.ports import free_port
from support.served import Served, target

HEAD = """
import os, sys, time
from meshlib.bootstrap import bootstrap
from meshlib.dataplane.mesh import Mesh
mesh = Mesh(bootstrap({{}}, control={control!r}, state_dir=""))
def until_connected():
    end = time.monotonic() + 5
    while not mesh.connected and time.monotonic() < end:
        time.sleep(0.01)
    return mesh.connected
"""


def script(served: Served, body: str) -> str:
    return HEAD.format(control=served.address) + textwrap.dedent(body)


def run(served: Served, body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script(served, body)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_script_ends_by_itself() -> None:
    with Served("5.1", target("a:80", "one")) as served:
        assert (
            run(served, "mesh.prepare('a:80'); print(mesh.view.version, 'grpc' in sys.modules)")
            == "5.1 False\n"
        )


def test_os_fork_after_use() -> None:
    body = """
    mesh.prepare('a:80')
    for _ in range(3):
        child = os.fork()
        if not child:
            mesh.prepare('a:80'); mesh.prepare('b:80')
            ok = until_connected() and len(mesh.view.tables) == 2
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        mesh.prepare('b:80')
    assert until_connected()
    print(len(mesh.view.tables))
    """
    with Served("5.1", (*target("a:80", "one"), *target("b:80", "two"))) as served:
        assert run(served, body) == "2\n"


def test_multiprocessing_fork() -> None:
    body = """
    import multiprocessing
    def work(_):
        mesh.prepare('a:80')
        return until_connected()
    mesh.prepare('a:80')
    with multiprocessing.get_context('fork').Pool(2) as pool:
        print(pool.map(work, range(4)))
    print(until_connected())
    """
    with Served("5.1", target("a:80", "one")) as served:
        assert run(served, body) == "[True, True, True, True]\nTrue\n"


@pytest.mark.parametrize("preload", [False, True])
def test_gunicorn(tmp_path: Path, preload: bool) -> None:
    app = """
    mesh.prepare('a:80')
    def app(environ, start):
        mesh.prepare('b:80')
        said = f'{os.getpid()} {until_connected()} {sorted(mesh.view.tables)}'.encode()
        start('200 OK', [('Content-Length', str(len(said)))])
        return [said]
    """
    port = free_port()
    with Served("5.1", (*target("a:80", "one"), *target("b:80", "two"))) as served:
        (tmp_path / "served_app.py").write_text(script(served, app))
        command = [sys.executable, "-m", "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "served_app:app"]
        process = subprocess.Popen(
            command + ["--preload"] * preload, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        try:
            for _ in range(4):
                assert _get(port).split(" ", 1)[1] == "True ['a:80', 'b:80']"
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
    assert "Traceback" not in errors
    assert process.returncode == 0


def _get(port: int) -> str:
    end = time.monotonic() + 15
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
                return str(reply.read().decode())
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
