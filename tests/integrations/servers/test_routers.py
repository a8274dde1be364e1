"""Each framework asked itself: where its router runs a handler of a path, a policy on that path was asked."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import django
import flask
import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path as django_path
from django.urls import re_path
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from support.policed import POLICY, gate
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from meshlib.dataplane.gate import Gate
from meshlib_asgi import MeshMiddleware
from meshlib_wsgi import MeshMiddleware as WsgiMiddleware
from meshlib_wsgi.behind_asgi import behind_asgi

Ran = list[str]
HANDLERS = ["/admin", "/admin/delete", "/things/a.secret", "/caf\u00e9", "/a b", "/semi;colon", "/sub/admin"]
DENIED = ["/admin", "/admin/delete", "*.secret", "/caf\u00e9", "/a b", "/semi;colon", "/sub/*"]
RULES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: paths}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  action: DENY
  rules: [{{to: [{{operation: {{paths: {0}}}}}]}}]
"""
PLAIN = [
    b"/admin",
    b"/admin/delete",
    b"/things/a.secret",
    b"/caf%C3%A9",
    b"/a%20b",
    b"/semi;colon",
    b"/sub/admin",
]
TRICKS: list[Callable[[bytes], bytes]] = [
    lambda path: path,
    *(
        lambda path, before=before: before + path
        for before in (b"/", b"//", b"/.", b"/./", b"/.//", b"/x/..")
    ),
    *(
        lambda path, before=before: before + path
        for before in (b"/x/..//", b"/%2e/", b"/%2e//", b"/%2f", b"/\\")
    ),
    *(lambda path, before=before: before + path for before in (b"/;", b"/;x=/", b"/%00", b"/%20", b"/%0a")),
    *(
        lambda path, after=after: path + after
        for after in (b"/", b"//", b"/.", b"/..", b"/../", b"/x/..", b";x")
    ),
    *(
        lambda path, after=after: path + after
        for after in (b"%0a", b"%0A%0A", b"%0d", b"%0d%0a", b"%20", b"%09")
    ),
    *(
        lambda path, after=after: path + after
        for after in (b"%00", b"%23", b"%3f", b"%3b", b"%2f", b"%ff", b"?")
    ),
    *(lambda path, after=after: path + after for after in (b"%0b", b"%0c", b"%1c", b"%c2%85", b"%e2%80%a8")),
    lambda path: path.replace(b"/", b"//"),
    lambda path: path.replace(b"/", b"///") + b"%0a",
    lambda path: path.replace(b"/", b"/./"),
    lambda path: path[:1] + path[1:].replace(b"/", b"%2f"),
    lambda path: path[:1] + path[1:].replace(b"/", b"%5c"),
    lambda path: path[:1] + path[1:].replace(b"/", b"\\"),
    lambda path: path.upper(),
    lambda path: path.replace(b"a", b"%61"),
    lambda path: path.replace(b"a", b"%2561"),
    lambda path: path.replace(b"a", b"%ef%bd%81"),  # a full-width a
    lambda path: b"//" + path.replace(b"a", b"%61") + b"%0A",
]
TRICKY = list(dict.fromkeys(trick(path) for path in PLAIN for trick in TRICKS))


def flask_app(ran: Ran, *, merge: bool = True, name: str = "reviews") -> flask.Flask:
    app = flask.Flask(name)
    app.url_map.merge_slashes = merge

    def handler(path: str) -> Callable[[], str]:
        def handle() -> str:
            ran.append(path)
            return path

        return handle

    for path in HANDLERS:
        app.add_url_rule(path, path.replace(".", "-"), handler(path))
    return app


def mounted_flask(ran: Ran) -> Any:
    inner = flask.Flask("inner")
    inner.add_url_rule("/admin", "admin", lambda: ran.append("/sub/admin") or "")
    return DispatcherMiddleware(flask_app(ran).wsgi_app, {"/sub": inner.wsgi_app})


def starlette_app(ran: Ran) -> Any:
    def handler(path: str) -> Callable[[Request], Any]:
        async def handle(_: Request) -> PlainTextResponse:
            ran.append(path)
            return PlainTextResponse(path)

        return handle

    routes = [Route(path, handler(path)) for path in HANDLERS if not path.startswith("/sub")]
    return Starlette(routes=[Mount("/sub", routes=[Route("/admin", handler("/sub/admin"))]), *routes])


def fastapi_app(ran: Ran) -> Any:
    app = FastAPI(openapi_url=None)

    def handler(path: str) -> Callable[[], Any]:
        async def handle() -> str:
            ran.append(path)
            return path

        return handle

    for path in HANDLERS:
        app.add_api_route(path, handler(path))
    return app


class Urls:
    """A Django project's URLs, by `path` and by expressions that end as most people end them."""

    def __init__(self, ran: Ran) -> None:
        def handler(path: str) -> Callable[[HttpRequest], HttpResponse]:
            def handle(_: HttpRequest) -> HttpResponse:
                ran.append(path)
                return HttpResponse(path)

            return handle

        self.urlpatterns = [django_path(path[1:], handler(path)) for path in HANDLERS]
        self.urlpatterns.append(re_path("^admin/delete$", handler("/admin/delete")))


class Drive:
    """A framework's application, with and without the mesh before it; `ask` sends it a path."""

    def __init__(self, kind: str, guard: Gate) -> None:
        self.ran: Ran = []
        self.asgi = kind in ("starlette", "fastapi", "django-asgi", "flask-behind-asgi")
        bare: Any
        match kind:
            case "flask" | "flask-strict":
                bare = flask_app(self.ran, merge=kind == "flask").wsgi_app
            case "flask-mounted":
                bare = mounted_flask(self.ran)
            case "flask-behind-asgi":
                bare = behind_asgi(flask_app(self.ran).wsgi_app, 1)
            case "starlette":
                bare = starlette_app(self.ran)
            case "fastapi":
                bare = fastapi_app(self.ran)
            case "django-asgi":
                bare = django_app(self.ran, ASGIHandler)
            case _:
                bare = django_app(self.ran, WSGIHandler)
        self._bare = bare
        self._met = MeshMiddleware(bare, guard) if self.asgi else WsgiMiddleware(bare, guard)

    async def ask(self, path: bytes, *, bare: bool) -> None:
        """Asks and forgets the answer."""
        app: Any = self._bare if bare else self._met
        raw, _, query = path.partition(b"?")
        if not self.asgi:
            list(app(environ(path, raw, query), lambda *_: None))
            return

        bodies = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not bodies:
                await asyncio.Event().wait()
            return bodies.pop()

        async def send(_: Any) -> None:
            """Nothing."""

        await app(scope(raw, query), receive, send)


def environ(path: bytes, raw: bytes, query: bytes) -> dict[str, Any]:
    """As gunicorn makes it."""
    return {
        "REQUEST_METHOD": "GET",
        "RAW_URI": path.decode("latin-1"),
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(raw).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "SERVER_NAME": "reviews",
        "SERVER_PORT": "9080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "reviews",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
    }


def scope(raw: bytes, query: bytes) -> dict[str, Any]:
    """As uvicorn makes it."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(raw.decode("latin-1")),
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"reviews")],
        "server": ("10.0.0.1", 9080),
        "client": ("10.0.0.7", 40001),
    }


def django_app(ran: Ran, handler: Callable[[], Any]) -> Any:
    settings.ROOT_URLCONF = Urls(ran)
    return handler()


@pytest.fixture
def project() -> Iterator[None]:
    """Django's, which its middleware asks nothing of."""
    if not settings.configured:
        settings.configure()
        django.setup()
    with override_settings(MIDDLEWARE=[], ALLOWED_HOSTS=["*"], USE_TZ=True):
        yield


FORGIVING = {
    "flask": [b"//admin", b"///admin", b"//%61dmin"],
    "flask-strict": [b"//admin"],
    "flask-mounted": [b"/sub//admin"],
    "flask-behind-asgi": [b"//admin"],
    "starlette": [b"/admin%0a"],
    "fastapi": [b"/admin%0a", b"/admin/delete%0A"],
    "django": [],
    "django-asgi": [],
}
"""What runs a handler of another path there."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning:fastapi")
@pytest.mark.parametrize("kind", FORGIVING)
async def test_no_handler_runs_whose_path_is_denied(project: None, tmp_path: Path, kind: str) -> None:
    guard = gate(tmp_path, POLICY.split("---")[0] + "---" + RULES.format(json.dumps(DENIED)))
    async with guard.mesh:
        await guard.aprepare()
        drive = Drive(kind, guard)
        for path in (*PLAIN, *FORGIVING[kind]):
            before = len(drive.ran)
            await drive.ask(path, bare=True)
            assert len(drive.ran) == before + 1, path
        drive.ran.clear()
        for path in (*TRICKY, *FORGIVING[kind]):
            await drive.ask(path, bare=False)
            assert drive.ran == [], path
