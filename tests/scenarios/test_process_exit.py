"""Scripts end by themselves, whatever they left open, and without a word; what is closed leaves nothing."""

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from support.commands import wait_until
from support.resources import target
from support.served import Served

import meshlib
from meshlib.bootstrap import bootstrap
from meshlib.dataplane.mesh import Mesh

SCRIPTS = {
    "an open mesh": "mesh.prepare('a:80')",
    "an open client": """
        client = meshlib.Client(mesh=mesh)
        mesh.prepare('a:80')
    """,
    "an open client of asyncio": """
        import asyncio
        async def main():
            client = meshlib.AsyncClient(mesh=mesh)
            await mesh.aprepare('a:80')
        asyncio.run(main())
    """,
    "a registration": """
        joined = meshlib.register(ports={'http': 1}, drain=0)
        assert joined.wait(60)
    """,
    "a daemon that waits for a target": """
        import threading
        threading.Thread(target=mesh.prepare, args=('nobody:1',), daemon=True).start()
    """,
    "threads that end later": """
        import threading, time
        def work():
            time.sleep(0.2)
            mesh.prepare('a:80')
        threading.Thread(target=work).start()
    """,
    "sys.exit": """
        import sys
        mesh.prepare('a:80')
        sys.exit(0)
    """,
}


def run(body: str, address: str, state: Path) -> subprocess.CompletedProcess[str]:
    script = "import meshlib\nmesh = meshlib.connect()\n" + textwrap.dedent(body)
    environ = {
        "MESHLIB_CONTROL": address,
        "MESHLIB_ALLOW_PLAINTEXT": "true",
        "MESHLIB_STATE_DIR": str(state),
        "PYTHONWARNINGS": "error",
    }
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=90, env=environ
    )


@pytest.mark.parametrize("body", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_ends(body: str, tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served:
        done = run(body, served.address, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_ends_though_control_is_down(tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served:
        assert run("mesh.prepare('a:80')", served.address, tmp_path).returncode == 0
    done = run("mesh.prepare('a:80'); print(mesh.view.version)", served.address, tmp_path)
    assert (done.returncode, done.stdout) == (0, "5.1\n")
    assert "serving by the last good configuration" in done.stderr


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_close_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served:
        settings = bootstrap(
            {}, allow_plaintext=True, control=served.address, state_dir=tmp_path, ports={"http": 1}, drain=0
        )
        least, before = 0, set(threading.enumerate())
        for _ in range(4):
            with Mesh(settings) as mesh, meshlib.Client(mesh=mesh):
                mesh.prepare("a:80")
            meshlib.register(control=served.address, allow_plaintext=True, ports={"http": 1}, drain=0).close()
            ours = set(threading.enumerate()) - before
            assert [t.name for t in ours if t.name.startswith("meshlib")] == []
            if not least:
                least = _settled()
        # The server's ends close a moment later than ours.
        wait_until(lambda: descriptors() <= least, 20, "the server's ends")


def _settled() -> int:
    """The lowest count within a moment."""
    until, least = time.monotonic() + 0.3, 10**6
    while time.monotonic() < until:
        least = min(least, descriptors())
        time.sleep(0.02)
    return least


def test_a_closed_mesh_says_so(tmp_path: Path) -> None:
    with Served("5.1", target("a:80", "one")) as served:
        mesh = Mesh(bootstrap({}, allow_plaintext=True, control=served.address, state_dir=tmp_path))
        mesh.prepare("a:80")
        mesh.close()
        mesh.close()
        assert "closed" in repr(mesh)
        with pytest.raises(meshlib.Closed):
            mesh.prepare("a:80")
