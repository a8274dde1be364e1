"""Every supported server and framework in a secure mesh of real processes.

Caller (account page) ──mutual TLS──► the server under test (front) ──► back, which says what reached it.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.serving import SecureMesh, gunicorn, secure_mesh, serve, until

SENT = {
    "end-user": "jason",
    "x-request-id": "b7a1c7a2-0000-4000-8000-000000000001",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
FLASK, FASTAPI = "support.served_flask:app", "support.served_fastapi:app"
DJANGO, DJANGO_ASGI = "support.served_django:app", "support.served_django:asgi"
SERVERS = {
    "serve-fastapi": (serve(FASTAPI), "/hop"),
    "serve-flask": (serve(FLASK, "--workers", "2"), "/hop"),
    "serve-django": (serve(DJANGO), "/hop"),
    "serve-django-asgi": (serve(DJANGO_ASGI), "/ahop"),
    "sync-flask": (gunicorn("meshlib_gunicorn.SyncWorker", FLASK, "-w", "2"), "/hop"),
    "gthread-django": (
        gunicorn("meshlib_gunicorn.ThreadWorker", DJANGO, "-w", "2", "--threads", "4", "--preload"),
        "/hop",
    ),
    "uvicorn-fastapi": (gunicorn("meshlib_gunicorn.UvicornWorker", FASTAPI, "-w", "2"), "/hop"),
}
FORKING = {
    "sync": gunicorn("meshlib_gunicorn.SyncWorker", FLASK, "-w", "2"),
    "gthread": gunicorn("meshlib_gunicorn.ThreadWorker", FLASK, "-w", "2", "--threads", "4"),
    "uvicorn": gunicorn("meshlib_gunicorn.UvicornWorker", FASTAPI, "-w", "2"),
    "serve": serve(FLASK, "--workers", "2"),
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    names = [*SERVERS, *(f"{name}-drain" for name in FORKING)]
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
