"""A folder of YAML instead of a control service: one process, no network but that of the requests."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import meshlib

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: http}]
"""
SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""
ROUTES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews, subset: SUBSET}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "services.yaml").write_text(SERVICE + "---" + SUBSETS)
    (tmp_path / "mesh" / "routes.yaml").write_text(ROUTES.replace("SUBSET", "v1"))
    return tmp_path / "mesh"


@pytest.fixture
def server() -> Iterator[Callable[[str], int]]:
    """Starts a server that answers with this text; gives its port."""
    made: list[ThreadingHTTPServer] = []

    def start(text: str) -> int:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        made.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=made[-1].serve_forever, args=(0.01,)).start()
        return int(made[-1].server_address[1])

    yield start
    for one in made:
        one.shutdown()
        one.server_close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


OTHERS: set[threading.Thread] = set()
"""Threads that were there before the test."""


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.clear()
    OTHERS.update(threading.enumerate())


def local_threads() -> list[str]:
    return [t.name for t in set(threading.enumerate()) - OTHERS if t.name.startswith("meshlib")]


def test_registers_routes_and_follows_edits(folder: Path, server: Callable[[str], int]) -> None:
    def joined(version: str) -> meshlib.Registration:
        labels = {"app": "reviews", "version": version}
        return meshlib.register(control=folder, labels=labels, ports={"http": server(version)}, drain=0)

    with joined("v1") as first, joined("v2"), meshlib.Client(control=folder) as client:
        assert first.joined
        assert first.address == "127.0.0.1"
        assert [client.get("http://reviews:9080/").text for _ in range(4)] == ["v1"] * 4
        (folder / "routes.yaml").write_text(ROUTES.replace("SUBSET", "v2"))
        until(lambda: client.get("http://reviews:9080/").text == "v2")
        (folder / "routes.yaml").unlink()
        until(lambda: {client.get("http://reviews:9080/").text for _ in range(8)} == {"v1", "v2"})
        first.close()
        until(lambda: {client.get("http://reviews:9080/").text for _ in range(8)} == {"v2"})
    assert local_threads() == []


def test_all_by_the_environment(
    folder: Path, server: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"CONTROL": str(folder), "LABELS": "app=reviews,version=v1", "DRAIN": "0"}
    for name, text in {**settings, "PORTS": f"http={server('v1')}"}.items():
        monkeypatch.setenv(f"MESHLIB_{name}", text)
    with meshlib.register(), meshlib.default(), meshlib.Client() as client:
        assert client.get("http://reviews:9080/").text == "v1"
    assert local_threads() == []


def test_what_a_file_says_moves_no_cursor_of_who_reads_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "hostile.yaml").write_text(
        'apiVersion: v1\nkind: "Serv\\eice\\x9b\\u202e"\nmetadata: {name: "a\\e[2J"}\nspec: {}\n---\n'
        'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: "b\\e[2J\\x9b\\u202e"}\n'
        'spec: {"h\\e[2J\\x9b\\u202e": 1}\n'
    )
    with meshlib.connect(str(folder)) as mesh:
        mesh.prepare("reviews:9080")
    told = [record.message for record in caplog.records if "hostile.yaml" in record.message]
    assert told
    assert any("\\x1b" in message for message in told)
    assert all(message.isprintable() for message in told)


def test_a_broken_edit_changes_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with meshlib.connect(folder) as mesh:
        mesh.prepare("reviews:9080")
        version = mesh.view.version
        assert mesh.connected
        assert set(mesh.view.clusters) == {"outbound|9080|v1|reviews.default.svc.cluster.local"}
        (folder / "routes.yaml").write_text("kind: VirtualService\nspec: [")
        until(lambda: any("routes.yaml" in r.message and r.levelno == logging.ERROR for r in caplog.records))
        assert mesh.view.version == version
        assert set(mesh.view.tables) == {"reviews:9080"}


async def test_asyncio(folder: Path) -> None:
    async with meshlib.connect(folder) as mesh:
        await mesh.aprepare("reviews:9080")
        assert set(mesh.view.tables) == {"reviews:9080"}


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(meshlib.ConfigError, match="absent: no such file or folder"):
        meshlib.connect(tmp_path / "absent")


def test_a_registration_without_an_address(folder: Path) -> None:
    with pytest.raises(meshlib.ConfigError, match=r"found '0\.0\.0\.0'; allowed is the IP address"):
        meshlib.register(control=folder, ports={"http": 1}, address="0.0.0.0")


SCRIPT = """
import os, meshlib
mesh = meshlib.connect('FOLDER')
mesh.prepare('reviews:9080')
child = os.fork()
mesh.prepare('details:9080')
os.write(1, f'{sorted(mesh.view.tables)}\\n'.encode())
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_script_that_forks_ends_by_itself(folder: Path) -> None:
    script = SCRIPT.replace("FOLDER", str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=90)
    assert done.stderr == ""
    assert done.stdout == "['details:9080', 'reviews:9080']\n" * 2
    assert done.returncode == 0
