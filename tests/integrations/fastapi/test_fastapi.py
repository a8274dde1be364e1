"""FastAPI and Starlette in the mesh, by one line."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fastapi
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from support.policed import PAGE, gate, peer

from meshlib.dataplane import context
from meshlib.dataplane.gate import Gate
from meshlib_asgi import WithPeer
from meshlib_fastapi import Caller, install


@pytest.fixture
async def reviews(tmp_path: Path) -> AsyncIterator[Gate]:
    found = gate(tmp_path)
    async with found.mesh:
        yield found


def handed_user() -> str:
    handed = context.current()
    return "nobody" if handed is None else dict(handed.headers)[b"end-user"].decode()


async def ask(app: Any, principal: str, path: str = "/") -> tuple[int, str]:
    transport = httpx.ASGITransport(WithPeer(app, peer(principal)))
    async with httpx.AsyncClient(transport=transport, base_url="http://reviews:9080") as client:
        reply = await client.get(path, headers={"end-user": "jason"})
        return reply.status_code, reply.text


async def test_fastapi(reviews: Gate) -> None:
    app = fastapi.FastAPI()
    install(app, reviews)

    @app.get("/")
    async def page(caller: Caller, request: fastapi.Request) -> str:
        assert request.state.mesh is caller
        return f"{caller.namespace}/{caller.service_account} for {handed_user()}"

    @app.get("/thread")
    def thread(caller: Caller) -> str:
        return f"{caller.service_account} for {handed_user()}"

    assert await ask(app, PAGE) == (200, '"default/productpage for jason"')
    assert await ask(app, PAGE, "/thread") == (200, '"productpage for jason"')
    assert await ask(app, "") == (403, "RBAC: access denied")
    assert await ask(app, PAGE, "/x/../admin") == (403, "RBAC: access denied")
    assert (await ask(app, PAGE, "/nowhere"))[0] == 404
    assert app.openapi()["paths"]["/thread"]["get"].get("parameters") is None


async def test_the_path_that_was_judged_is_the_path_that_is_routed(reviews: Gate) -> None:
    app = fastapi.FastAPI()
    install(app, reviews)

    @app.get("/r")
    async def page(request: fastapi.Request) -> str:
        return request.url.path

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        scope["path"], scope["raw_path"] = "/admin/../r", b"/admin/../r"
        await app(scope, receive, send)

    assert await ask(raw, PAGE) == (200, '"/r"')


async def test_starlette(reviews: Gate) -> None:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{request.state.mesh.service_account} for {handed_user()}")

    app = Starlette(routes=[Route("/", page)])
    install(app, reviews)
    assert await ask(app, PAGE) == (200, "productpage for jason")
    assert await ask(app, "") == (403, "RBAC: access denied")


async def test_twice_is_once(reviews: Gate) -> None:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.headers["x-forwarded-client-cert"])

    app = Starlette(routes=[Route("/", page)])
    install(app, reviews)
    install(app, reviews)
    assert await ask(app, PAGE) == (200, f'Subject="";URI={PAGE}')
