"""Processes that fork while the stream is open: plain, multiprocessing, gunicorn."""

import itertools
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from support.named_server import named_server
from support.ports import free_port
from support.resources import target
from support.served import Served

HEAD = """
import os, sys, time
from meshlib.bootstrap import bootstrap
from meshlib.dataplane.mesh import Mesh
mesh = Mesh(bootstrap({{}}, allow_plaintext=True, control={control!r}, state_dir=""))
def until_connected():
    end = time.monotonic() + 60
    while not mesh.connected and time.monotonic() < end:
        time.sleep(0.01)
    return mesh.connected
"""


def script(served: Served, body: str) -> str:
    return HEAD.format(control=served.address) + textwrap.dedent(body)


def run(served: Served, body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script(served, body)], capture_output=True, text=True, timeout=100
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


def test_requests_on_both_sides_of_a_fork() -> None:
    body = """
    import meshlib
    client = meshlib.Client(mesh=mesh)
    def ask(count):
        for _ in range(count):
            assert client.get('http://a:80/').text == 'up GET /'
    ask(3)
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            ask(20)
            os._exit(0)
        children.append(child)
        ask(20)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    ask(3)
    print('done')
    """
    with named_server("up") as port, Served("5.1", target("a:80", "one", port)) as served:
        assert run(served, body) == "done\n"


def test_asyncio_in_children() -> None:
    body = """
    import asyncio, meshlib
    async def ask():
        async with meshlib.AsyncClient(mesh=mesh) as client:
            replies = await asyncio.gather(*(client.get('http://a:80/') for _ in range(4)))
            assert [reply.text for reply in replies] == ['up GET /'] * 4
    asyncio.run(ask())
    child = os.fork()
    asyncio.run(ask())
    if not child:
        os._exit(0)
    print(os.waitpid(child, 0)[1])
    """
    with named_server("up") as port, Served("5.1", target("a:80", "one", port)) as served:
        assert run(served, body) == "0\n"


def test_a_fork_while_everything_changes() -> None:
    body = """
    import threading
    def ask():
        while True:
            mesh.prepare('a:80')
    for _ in range(2):
        threading.Thread(target=ask, daemon=True).start()
    for _ in range(25):
        child = os.fork()
        if not child:
            mesh.prepare('a:80'); mesh.prepare('b:80')
            os._exit(0 if until_connected() and len(mesh.view.tables) == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
    print('done')
    """
    with Served("5.1", (*target("a:80", "one"), *target("b:80", "two"))) as served:
        end = threading.Event()

        def change() -> None:
            for number in itertools.count(2):
                if end.wait(0.003):
                    return
                cluster = "one" if number % 2 else "other"
                served.publish(f"5.{number}", (*target("a:80", cluster, number), *target("b:80", "two")))

        changing = threading.Thread(target=change)
        changing.start()
        try:
            assert run(served, body) == "done\n"
        finally:
            end.set()
            changing.join()


@pytest.mark.parametrize("options", [[], ["--preload"], ["--threads", "4"]], ids=" ".join)
def test_gunicorn(tmp_path: Path, options: list[str]) -> None:
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
        process = subprocess.Popen([*command, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            for _ in range(4):
                assert _get(port).split(" ", 1)[1] == "True ['a:80', 'b:80']"
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode == 0


def _get(port: int) -> str:
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as reply:
                return str(reply.read().decode())
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
