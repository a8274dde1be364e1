"""One small application in every framework that the mesh has a middleware for, asked in memory.

Whatever is asked of it, it says what `say` gives. It allows pages of `own` to read that, as applications do
that know nothing of the mesh.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import django
import flask
import httpx
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import re_path
from fastapi import FastAPI, Request, Response
from starlette.applications import Starlette

import meshlib
from meshlib.dataplane.gate import Gate
from meshlib_asgi import MeshMiddleware
from meshlib_fastapi import install
from meshlib_flask import Mesh
from meshlib_wsgi import MeshMiddleware as WsgiMiddleware

NAMES = ("asgi", "starlette", "fastapi", "wsgi", "flask", "django-wsgi", "django-asgi")
OWN = {"access-control-allow-origin": "own", "access-control-expose-headers": "own"}
METHODS = ["GET", "POST", "OPTIONS"]
Say = Callable[[], str]
Ask = Callable[[str, str, Mapping[str, str]], Awaitable[httpx.Response]]


def _nothing() -> str:
    return "nothing"


def _asgi(say: Say) -> Any:
    async def app(scope: Any, _: Any, send: Any) -> None:
        headers = [(name.encode(), value.encode()) for name, value in OWN.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": say().encode()})

    return app


def _wsgi(say: Say) -> Any:
    def app(_: dict[str, Any], start: Any) -> Iterator[bytes]:
        start("200 OK", list(OWN.items()))
        yield say().encode()

    return app


def _starlette(gate: Gate, say: Say) -> Starlette:
    app = Starlette()
    app.add_route("/{path:path}", lambda _: Response(say(), headers=OWN), METHODS)
    app.add_middleware(MeshMiddleware, gate)
    return app


def _fastapi(gate: Gate, say: Say) -> FastAPI:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=METHODS)
    def answer(request: Request) -> Response:
        return Response(say(), headers=OWN)

    install(app, gate)
    return app


def _flask(gate: Gate, say: Say) -> flask.Flask:
    app = flask.Flask("reviews")

    @app.route("/<path:path>", methods=METHODS)
    def answer(path: str) -> tuple[str, dict[str, str]]:
        return say(), OWN

    Mesh(app, gate)
    return app


def _django(say: Say) -> Any:
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(say(), headers=OWN)

    return type("Urls", (), {"urlpatterns": [re_path(".*", view)]})


def _made(name: str, gate: Gate, say: Say) -> Any:
    """The application, and its transport."""
    match name:
        case "asgi":
            return httpx.ASGITransport(MeshMiddleware(_asgi(say), gate))
        case "starlette":
            return httpx.ASGITransport(_starlette(gate, say))
        case "fastapi":
            return httpx.ASGITransport(_fastapi(gate, say))
        case "wsgi":
            return httpx.WSGITransport(WsgiMiddleware(_wsgi(say), gate))
        case "flask":
            return httpx.WSGITransport(_flask(gate, say))
        case "django-wsgi":
            return httpx.WSGITransport(WSGIHandler())
        case _:
            return httpx.ASGITransport(ASGIHandler())


@asynccontextmanager
async def application(name: str, gate: Gate, say: Say = _nothing) -> AsyncIterator[Ask]:
    """The application of that framework behind the gate; what is given asks it."""
    if not settings.configured:
        settings.configure()
        django.setup()
    shared = meshlib._shared.get("mesh")
    meshlib._shared["mesh"] = gate.mesh
    changed: dict[str, Any] = {
        "ROOT_URLCONF": _django(say),
        "MIDDLEWARE": ["meshlib_django.MeshMiddleware"],
        "ALLOWED_HOSTS": ["*"],
        "MESH_PORT": gate.port,
        "USE_TZ": True,
    }
    try:
        with override_settings(**changed):
            transport = _made(name, gate, say)
            if isinstance(transport, httpx.WSGITransport):
                with httpx.Client(transport=transport, base_url="http://reviews") as client:

                    async def ask(method: str, path: str, headers: Mapping[str, str]) -> httpx.Response:
                        return client.request(method, path, headers=headers)

                    yield ask
                return
            async with httpx.AsyncClient(transport=transport, base_url="http://reviews") as aclient:

                async def aask(method: str, path: str, headers: Mapping[str, str]) -> httpx.Response:
                    return await aclient.request(method, path, headers=headers)

                yield aask
    finally:
        meshlib._shared.pop("mesh", None)
        if shared is not None:
            meshlib._shared["mesh"] = shared
