"""WSGI applications behind the ASGI middleware, as `meshlib serve` runs them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.policed import PAGE, gate, peer

from meshlib.dataplane import context
from meshlib.dataplane.gate import Gate
from meshlib_asgi import MeshMiddleware, WithPeer
from meshlib_wsgi import CALLER
from meshlib_wsgi import MeshMiddleware as WsgiMiddleware
from meshlib_wsgi.behind_asgi import behind_asgi


@pytest.fixture
async def reviews(tmp_path: Path) -> AsyncIterator[Gate]:
    found = gate(tmp_path)
    async with found.mesh:
        yield found


def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
    start("200 OK", [("content-type", "text/plain")])
    handed = context.current()
    yield f"{environ[CALLER].service_account} {environ.get('HTTP_X_MINE', '-')} ".encode()
    yield b"nothing" if handed is None else dict(handed.headers)[b"end-user"]


async def ask(gate: Gate, wsgi: Any, principal: str, **headers: str) -> tuple[int, str]:
    asgi: Any = WithPeer(MeshMiddleware(behind_asgi(wsgi, 2), gate), peer(principal))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(asgi), base_url="http://reviews:9080"
    ) as client:
        reply = await client.get("/x", headers=headers)
        return reply.status_code, reply.text


async def test_the_caller_and_the_context_reach_the_thread(reviews: Gate) -> None:
    sent = {"end-user": "jason", "x-mine": "1"}
    assert await ask(reviews, app, PAGE, **sent) == (200, "productpage 1 jason")


async def test_who_is_refused(reviews: Gate) -> None:
    assert await ask(reviews, app, "") == (403, "RBAC: access denied")


async def test_a_middleware_of_its_own_changes_nothing(reviews: Gate) -> None:
    both = WsgiMiddleware(app, reviews)
    assert await ask(reviews, both, PAGE, **{"end-user": "jason"}) == (200, "productpage - jason")


async def test_an_underscore_is_no_dash(reviews: Gate) -> None:
    sent = {"end-user": "jason", "x_mine": "forged"}
    assert await ask(reviews, app, PAGE, **sent) == (200, "productpage - jason")
