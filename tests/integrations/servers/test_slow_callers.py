"""Callers that send a byte now and then: each is cut off in time, and nobody waits for them meanwhile."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.ports import free_port
from support.serving import SecureMesh, gunicorn, secure_mesh, serve, until

from meshlib_gunicorn.wsgi import SyncMeshWorker, _Stranger

FLASK, FASTAPI = "support.served_flask:app", "support.served_fastapi:app"
SERVERS = {
    "sync": lambda port: gunicorn("meshlib_gunicorn.SyncMeshWorker", FLASK, port=port),
    "gthread": lambda port: gunicorn("meshlib_gunicorn.ThreadWorker", FLASK, "--threads", "6", port=port),
    "uvicorn": lambda port: gunicorn("meshlib_gunicorn.UvicornWorker", FASTAPI, port=port),
    "serve": lambda port: serve(FASTAPI, "--port", str(port)),
}
SECONDS = 2.5
"""What a caller may take; who waits for none of them is answered in less, on a busy machine, too."""
MANY = 24
"""More halves of a hello than a server has threads."""
HEAD = b"GET /seen HTTP/1.1\r\nhost: slow\r\nx: "
FIRST = b"GET /x HTTP/1.1\r\nhost: slow\r\n\r\n"
CALLERS = {
    "silent": b"",
    "hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "head": HEAD,
    "second": FIRST + HEAD,
}
"""What each says at once: nothing; half a TLS client's hello; half a head, of its first or second request."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), SERVERS) as found:
        yield found


def drip(port: int, said: bytes, held: list[float]) -> None:
    """Says that, then a byte every tenth of a second, while anybody listens; tells how long that was."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        begun = time.monotonic()
        connection.sendall(said)
        with contextlib.suppress(OSError):
            while time.monotonic() < begun + 20 * SECONDS:
                connection.sendall(b"\x01" if said[:1] == b"\x16" else b"x" * bool(said))
                connection.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(4096):
                        break
        held.append(time.monotonic() - begun)


def flood(port: int, over: threading.Event) -> None:
    """Says empty lines as fast as anybody listens."""
    while not over.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            while not over.is_set():
                connection.sendall(b"\r\n" * 8192)


def test_empty_lines_without_end_hold_nobody_up(mesh: SecureMesh) -> None:
    name, port, over = "sync", free_port(), threading.Event()
    url = f"http://{name}:9080/seen"
    with mesh.process(SERVERS[name](port), name, "front", "front", request_headers_timeout="20"):
        with mesh.client("page") as page:
            until(page, url)
        one = threading.Thread(target=flood, args=(port, over))
        one.start()
        try:
            for _ in range(3):
                with mesh.client("page") as page:
                    begun = time.monotonic()
                    assert page.get(url).json()["caller"] == "page"
                    assert time.monotonic() - begun < 5 * SECONDS
        finally:
            over.set()
            one.join(10)


@pytest.mark.parametrize("name", SERVERS)
def test_slow_callers_are_cut_off_and_hold_nobody_up(mesh: SecureMesh, name: str) -> None:
    port = free_port()
    held: dict[str, list[float]] = {said: [] for said in CALLERS}
    url = f"http://{name}:9080/seen"
    with mesh.process(SERVERS[name](port), name, "front", "front", request_headers_timeout=str(SECONDS)):
        with mesh.client("page") as page:
            until(page, url)
        with ExitStack() as stack:
            for _ in range(MANY):
                many = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
                many.sendall(CALLERS["hello"])
            for kind in CALLERS:
                one = threading.Thread(target=drip, args=(port, CALLERS[kind], held[kind]))
                one.start()
                stack.callback(one.join, 30)
            longest = 0.0
            while not all(held.values()):
                with mesh.client("page") as page:
                    begun = time.monotonic()
                    assert page.get(url).json()["caller"] == "page"
                    longest = max(longest, time.monotonic() - begun)
    assert max(times[0] for times in held.values()) < 4 * SECONDS
    assert longest < SECONDS


def test_requests_that_come_together_are_answered_one_by_one(mesh: SecureMesh) -> None:
    name, port = "gthread", free_port()
    chunk = FIRST[:-2] + b"x: " + b"x" * 4000 + b"\r\nx: "
    chunk += b"x" * (8192 - len(chunk) - 4) + b"\r\n\r\n"  # just what gunicorn reads at once
    with mesh.process(SERVERS[name](port), name, "front", "front"):
        with mesh.client("page") as page:
            until(page, f"http://{name}:9080/seen")
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            answers = b""
            for said, answered in ((chunk + FIRST + FIRST + HEAD, 3), (b"x\r\n\r\n", 4)):
                connection.sendall(said)
                while answers.count(b"HTTP/1.1 403") < answered:
                    more = connection.recv(65536)
                    assert more
                    answers += more


def test_the_sync_workers_poll_ends_when_the_first_caller_is_too_slow() -> None:
    worker: Any = object.__new__(SyncMeshWorker)
    worker.notify, worker.wait_fds, worker.patience = bool, [], 60.0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        begun = time.monotonic()
        worker._strangers = {ours: _Stranger(None, None, begun + 0.05, iter(()))}
        assert worker.wait(60) == []
        assert 0.05 <= time.monotonic() - begun < 30
