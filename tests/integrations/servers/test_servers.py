"""Every supported server and framework in a secure mesh of real processes.

Caller (account page) ──mutual TLS──► the server under test (front) ──► back, which says what reached it.
"""

import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from support.commands import wait_until
from support.ports import free_port
from support.serving import SecureMesh, gunicorn, secure_mesh, serve, until

import meshlib

SENT = {
    "end-user": "jason",
    "x-request-id": "b7a1c7a2-0000-4000-8000-000000000001",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
FLASK, FASTAPI = "support.served_flask:app", "support.served_fastapi:app"
DJANGO, DJANGO_ASGI = "support.served_django:app", "support.served_django:asgi"
EVERYWHERE = "0.0.0.0"
SERVERS = {
    "serve-fastapi": (serve(FASTAPI), "/hop"),
    "serve-flask": (serve(FLASK, "--workers", "2"), "/hop"),
    "serve-django": (serve(DJANGO), "/hop"),
    "serve-django-asgi": (serve(DJANGO_ASGI), "/ahop"),
    "sync-flask": (
        gunicorn("meshlib_gunicorn.SyncMeshWorker", FLASK, "-w", "2", "--threads", "2", host=EVERYWHERE),
        "/hop",
    ),
    "gthread-django": (
        gunicorn(
            "meshlib_gunicorn.ThreadWorker", DJANGO, "-w", "2", "--threads", "4", "--preload", host=EVERYWHERE
        ),
        "/hop",
    ),
    "uvicorn-fastapi": (
        gunicorn("meshlib_gunicorn.UvicornWorker", FASTAPI, "-w", "2", host=EVERYWHERE),
        "/hop",
    ),
}
FORKING = {
    "sync": gunicorn("meshlib_gunicorn.SyncMeshWorker", FLASK, "-w", "2"),
    "gthread": gunicorn("meshlib_gunicorn.ThreadWorker", FLASK, "-w", "2", "--threads", "4"),
    "uvicorn": gunicorn("meshlib_gunicorn.UvicornWorker", FASTAPI, "-w", "2"),
    "serve": serve(FLASK, "--workers", "2"),
}
PLAIN = {
    "hypercorn": ["hypercorn", "support.served_plain:app", "--bind", "127.0.0.1:PORT"],
    "granian": [
        "granian",
        "--interface",
        "asgi",
        "--host",
        "127.0.0.1",
        "--port",
        "PORT",
        "support.served_plain:app",
    ],
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    names = [
        *SERVERS,
        *(f"{name}-drain" for name in FORKING),
        "strict",
        "silent",
        "reload",
        *PLAIN,
        *(f"{name}-strict" for name in PLAIN),
    ]
    with secure_mesh(tmp_path_factory.mktemp("mesh"), names) as found:
        yield found


@pytest.mark.parametrize("name", SERVERS)
def test_a_server(mesh: SecureMesh, name: str) -> None:
    command, path = SERVERS[name]
    url = f"http://{name}:9080"
    with mesh.process(command, name, "front", "front"), mesh.client("page") as page:
        assert until(page, f"{url}/seen").status_code == 200
        reply = page.get(url + path, headers=SENT)
        assert reply.status_code == 200, reply.text
        told = reply.json()
        assert (told["caller"], told["headers"]) == ("page", SENT)
        # What is handed on stays the trace's; its span may be another.
        behind = told["next"]
        assert (behind["caller"], behind["headers"]["end-user"]) == ("front", "jason")
        assert behind["headers"]["x-request-id"] == SENT["x-request-id"]
        assert behind["headers"]["traceparent"].split("-")[1] == SENT["traceparent"].split("-")[1]
        with mesh.client("stranger") as stranger:
            refused = stranger.get(f"{url}/seen")
        assert (refused.status_code, refused.text) == (403, "RBAC: access denied")


@pytest.mark.parametrize("name", FORKING)
def test_forked_workers_and_a_drain_without_a_lost_request(mesh: SecureMesh, name: str) -> None:
    service, command = f"{name}-drain", FORKING[name]
    url = f"http://{service}:9080/hop"
    answered: list[tuple[int, str]] = []
    end = threading.Event()

    def ask(client: meshlib.Client) -> None:
        while not end.is_set():
            reply = client.get(url, headers={"end-user": "jason"})
            told = reply.json() if reply.status_code == 200 else {}
            answered.append((reply.status_code, told.get("next", {}).get("caller", "")))
            time.sleep(0.02)

    with ExitStack() as stack:
        place = stack.enter_context(mesh.workload("page"))
        page = stack.enter_context(meshlib.Client(mesh=place, timeout=20))
        leaving = stack.enter_context(mesh.process(fresh(command), service, "front", "front"))
        until(page, url)
        one = ["1" if part == "2" else part for part in fresh(command)]  # worker is enough to stay
        staying = stack.enter_context(mesh.process(one, service, "front", "front"))
        processes: set[int] = set()

        def of_a_new_connection() -> int:
            time.sleep(0.05)
            with meshlib.Client(mesh=place, timeout=20) as client:
                processes.add(client.get(url).json()["process"])
            return len(processes)

        wait_until(lambda: of_a_new_connection() == 3, 90, "all workers of both servers")
        pool = stack.enter_context(ThreadPoolExecutor(4))
        stack.callback(end.set)
        asking = [pool.submit(ask, page) for _ in range(4)]
        wait_until(lambda: len(answered) > 50, 60, "requests")
        leaving.end()
        before = len(answered)
        wait_until(lambda: len(answered) > before + 50, 60, "requests after the end")
        end.set()
        for one in asking:
            one.result(20)
        staying.end()
    assert set(answered) == {(200, "front")}


def fresh(command: list[str]) -> list[str]:
    """The command with a port of its own."""
    return [f"127.0.0.1:{free_port()}" if one.startswith("127.0.0.1:") else one for one in command]


def test_strict_at_gunicorns_port(mesh: SecureMesh) -> None:
    port = free_port()
    command = gunicorn("meshlib_gunicorn.ThreadWorker", FLASK, "--threads", "2", port=port)
    with mesh.process(command, "strict", "front", "front"), mesh.client("page") as page:
        until(page, "http://strict:9080/seen")
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), 5) as plain:
                plain.sendall(b"GET /seen HTTP/1.1\r\nhost: strict\r\n\r\n")
                with pytest.raises(ConnectionResetError):
                    assert plain.recv(100) == b"?"
        assert page.get("http://strict:9080/seen").json()["caller"] == "page"
        assert page.get("http://strict:9080/x/seen", headers={"SCRIPT_NAME": "/x"}).status_code == 404


@pytest.mark.parametrize("worker", ["SyncMeshWorker", "ThreadWorker"])
def test_silent_connections_hold_nobody_up(mesh: SecureMesh, worker: str) -> None:
    options = ("--threads", "2") if worker == "ThreadWorker" else ()
    port = free_port()
    command = gunicorn(f"meshlib_gunicorn.{worker}", FLASK, *options, port=port)
    with ExitStack() as stack:
        # They are cut off when nobody waits for an answer any more.
        stack.enter_context(mesh.process(command, "silent", "front", "front", request_headers_timeout="60"))
        page = stack.enter_context(mesh.client("page"))
        until(page, "http://silent:9080/seen")
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(20)]
        for _ in range(5):
            with mesh.client("page") as fresh_page:
                assert until(fresh_page, "http://silent:9080/seen").json()["caller"] == "page"
        assert select.select(silent, [], [], 0)[0] == []  # none was cut off to make room


@pytest.mark.parametrize("worker", ["SyncMeshWorker", "ThreadWorker", "UvicornWorker"])
def test_gunicorns_own_certificates_are_refused(mesh: SecureMesh, worker: str) -> None:
    roots = str(mesh.folder / "state" / "roots.pem")
    options = ("--certfile", roots, "--keyfile", roots)
    command = gunicorn(f"meshlib_gunicorn.{worker}", FASTAPI, *options)
    environ = mesh.environ("front", labels="app=front")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 3
    assert "certfile, keyfile: the mesh secures the port; leave them out" in done.stderr


@pytest.mark.parametrize("name", PLAIN)
def test_a_server_that_shows_no_certificate(mesh: SecureMesh, name: str) -> None:
    """It serves plain text: policies hold, and nobody is known."""
    with plain_server(mesh, name, name, "plain"), mesh.client("page") as page:
        until(page, f"http://{name}:9080/hop")
        told = page.get(f"http://{name}:9080/hop", headers=SENT).json()
        assert (told["caller"], told["headers"]) == ("", SENT)
        assert (told["next"]["caller"], told["next"]["headers"]["end-user"]) == ("front", "jason")
        assert page.get(f"http://{name}:9080/admin").text == "RBAC: access denied"


@pytest.mark.parametrize("name", PLAIN)
def test_strict_holds_where_the_server_can_not_refuse(mesh: SecureMesh, name: str) -> None:
    with (
        plain_server(mesh, name, f"{name}-strict", "strict") as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=False) as client,
    ):
        end = time.monotonic() + 60
        while True:
            try:
                reply = client.get("/hop")
                break
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.05)
    assert (reply.status_code, reply.text) == (403, "mutual TLS is required")


@contextmanager
def plain_server(mesh: SecureMesh, name: str, service: str, tier: str) -> Iterator[int]:
    """One of PLAIN; gives its port."""
    port = free_port()
    command = [sys.executable, "-m", *(one.replace("PORT", str(port)) for one in PLAIN[name])]
    with mesh.process(["/usr/bin/env", f"PORT={port}", *command], service, "front", tier):
        yield port


def test_without_a_policy_gunicorn_ends(mesh: SecureMesh, tmp_path: Path) -> None:
    command = gunicorn("meshlib_gunicorn.SyncMeshWorker", FLASK)
    nowhere = {"control": f"127.0.0.1:{free_port()}", "first_call_timeout": "1", "state_dir": str(tmp_path)}
    environ = mesh.environ("front", **nowhere)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 3
    assert f"the control service {nowhere['control']} was not reached within 1 s" in done.stderr


def test_gunicorn_registers_once_whatever_its_workers_do(mesh: SecureMesh) -> None:
    command = gunicorn("meshlib_gunicorn.SyncMeshWorker", FLASK, "-w", "2", "--max-requests", "3")
    with mesh.process(command, "reload", "front", "front") as served, mesh.client("page") as page:
        url = "http://reload:9080/seen"
        processes = {until(page, url).json()["process"]}
        served.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 60
        while len(processes) < 5 and time.monotonic() < end:
            reply = page.get(url)
            assert reply.status_code == 200
            processes.add(reply.json()["process"])
        assert len(processes) >= 5
        assert [line[:15] for line in mesh.log.splitlines() if "app=reload" in line] == ["+ server joined"]


@pytest.mark.parametrize("name", ["sync", "gthread", "uvicorn"])
def test_workers_do_not_outlive_their_arbiter(mesh: SecureMesh, name: str) -> None:
    command = fresh(FORKING[name])
    bound = next(one for one in command if one.startswith("127.0.0.1:"))
    arbiter = subprocess.Popen(command, env=mesh.environ("front"), stderr=subprocess.DEVNULL)

    def taken() -> bool:
        try:
            socket.create_connection(("127.0.0.1", int(bound.rpartition(":")[2])), 1).close()
        except OSError:
            return False
        return True

    try:
        wait_until(lambda: len(children(arbiter.pid)) == 2, 60, "its workers")
        wait_until(taken, 60, "the port")
    finally:
        arbiter.kill()
        arbiter.wait()
    wait_until(lambda: not taken(), 60, "the end of its workers")


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()
