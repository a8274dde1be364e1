"""What others may read otherwise is refused by every middleware, whatever its server let pass."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import flask
import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings
from support.policed import POLICY, gate

import meshlib
from meshlib.dataplane.gate import Gate
from meshlib_asgi import MeshMiddleware
from meshlib_flask import Mesh
from meshlib_wsgi import MeshMiddleware as WsgiMiddleware

TWO = [("host", "internal.example"), ("host", "public")]
ONE = [("host", "public")]
BOTH = [*ONE, ("transfer-encoding", "chunked"), ("content-length", "5")]
urlpatterns: list[Any] = []
"""Whatever is let in is answered with 404."""


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Of a port without policies. Django's middleware takes the process's own mesh."""
    if not settings.configured:
        settings.configure()
        django.setup()
    found = gate(tmp_path, POLICY.split("---")[0])
    monkeypatch.setattr(meshlib, "_shared", {"mesh": found.mesh})
    changed: dict[str, Any] = {"ROOT_URLCONF": __name__, "ALLOWED_HOSTS": ["*"], "USE_TZ": True}
    with (
        found.mesh,
        override_settings(MIDDLEWARE=["meshlib_django.MeshMiddleware"], MESH_PORT=9080, **changed),
    ):
        yield found


async def not_found(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def wsgi_not_found(_: Any, start_response: Any) -> list[bytes]:
    start_response("404 Not Found", [])
    return []


def application(kind: str, guard: Gate) -> Any:
    match kind:
        case "asgi":
            return MeshMiddleware(not_found, guard)
        case "wsgi":
            return WsgiMiddleware(wsgi_not_found, guard)
        case "flask":
            app = flask.Flask("reviews")
            Mesh(app, guard)
            return app
        case "django-asgi":
            return ASGIHandler()
        case _:
            return WSGIHandler()


async def ask(kind: str, app: Any, version: str, headers: list[tuple[str, str]]) -> tuple[int, list[str]]:
    """The status, and the names of the answer's headers of the connection."""
    if "asgi" in kind:
        answers: list[Any] = []
        bodies = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if not bodies:
                await asyncio.Event().wait()
            return bodies.pop()

        async def send(message: Any) -> None:
            answers.append(message)

        await app(scope(version, headers), receive, send)
        return answers[0]["status"], [
            name.decode() for name, _ in answers[0]["headers"] if name == b"connection"
        ]
    started: list[Any] = []
    list(app(environ(version, headers), lambda status, headers, *_: started.append((status, headers))))
    ((status, given),) = started
    return int(status[:3]), [name for name, _ in given if name.lower() == "connection"]


def scope(version: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """As uvicorn makes it."""
    return {
        "type": "http",
        "http_version": version,
        "method": "GET",
        "scheme": "http",
        "path": "/zzz",
        "raw_path": b"/zzz",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "server": ("10.0.0.1", 9080),
        "client": ("10.0.0.7", 40001),
    }


def environ(version: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """As WSGI's servers make it, which join headers."""
    made: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/zzz",
        "SERVER_NAME": "reviews",
        "SERVER_PORT": "9080",
        "SERVER_PROTOCOL": f"HTTP/{version}",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
    }
    for name, value in headers:
        key = "CONTENT_LENGTH" if name == "content-length" else f"HTTP_{name.upper().replace('-', '_')}"
        made[key] = f"{made[key]},{value}" if key in made else value
    return made


CASES = [
    *((version, TWO, 400) for version in ("0.9", "1.0", "1.1", "1.7", "2.0", "9.9")),
    *((version, ONE, 400) for version in ("0.9", "1.2", "2.1")),
    *((version, ONE, 404) for version in ("1", "1.0", "1.1")),
    ("1.1", BOTH, 400),
    ("1.1", [], 400),
    ("1.0", [], 404),
]


@pytest.mark.parametrize("kind", ["asgi", "wsgi", "flask", "django", "django-asgi"])
async def test_what_is_unclear_is_refused(guard: Gate, kind: str) -> None:
    await guard.aprepare()
    app = application(kind, guard)
    found = [(version, headers, await ask(kind, app, version, headers)) for version, headers, _ in CASES]
    assert [(version, headers, status) for version, headers, (status, _) in found] == CASES
    # Of a connection only ASGI's applications may speak (PEP 3333); Django's may run under either.
    ended = ["connection"] if kind == "asgi" else []
    assert [told for *_, (status, told) in found if status == 400] == [ended] * 11


@pytest.mark.parametrize("kind", ["asgi", "django-asgi"])
async def test_in_http2_one_host_may_stand_there_twice(guard: Gate, kind: str) -> None:
    await guard.aprepare()
    app = application(kind, guard)
    assert await ask(kind, app, "2", [*ONE, *ONE]) == (404, [])
    assert await ask(kind, app, "2", TWO) == (400, [])


async def test_a_servers_later_headers_are_none(guard: Gate) -> None:
    """As uvicorn adds trailers to the list that it gave."""
    await guard.aprepare()
    asked = scope("1.1", [*ONE, ("x-request-id", "1")])
    given = asked["headers"]
    seen: list[Any] = []

    async def app(own: Any, _: Any, __: Any) -> None:
        given.append((b"x-forwarded-client-cert", b"URI=spiffe://cluster.local/ns/default/sa/productpage"))
        seen.extend(own["headers"])

    nothing: Any = None
    await MeshMiddleware(app, guard)(asked, nothing, nothing)
    assert seen == [(b"host", b"public"), (b"x-request-id", b"1")]
