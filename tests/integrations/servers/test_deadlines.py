"""How long the caller still waits bounds the calls made for it, in every framework, and travels on."""

import contextlib
import contextvars
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import httpx
import pytest
from support.fake_mesh import fake_mesh
from support.frameworks import NAMES, application
from support.policed import POLICY, gate
from support.raw_server import RawServer, raw_server

import meshlib
from meshlib.dataplane import context
from meshlib.dataplane.gate import Gate
from meshlib_asgi import MeshMiddleware
from meshlib_wsgi import MeshMiddleware as WsgiMiddleware

WAITS = {"x-envoy-expected-rq-timeout-ms": "5000"}
GRPC = {"content-type": "application/grpc", "grpc-timeout": "5000m"}
TOLD = re.compile(rb"x-envoy-expected-rq-timeout-ms: (\d+)")


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Gate]:
    made = gate(tmp_path, POLICY.split("---")[0])
    yield made
    made.mesh.close()


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
async def test_the_next_service_is_told_what_is_left(name: str, guard: Gate, server: RawServer) -> None:
    mesh: Any = fake_mesh([server.port], route={"timeout": "3600s"})

    def call() -> str:
        with meshlib.Client(mesh=mesh) as client:
            return str(client.get("http://reviews:9080/echo").status_code)

    async with application(name, guard, call) as ask:
        for headers in (WAITS, GRPC):
            assert (await ask("POST", "/any", headers)).text == "200"
            found = TOLD.search(server.heads[-1])
            assert found is not None
            assert 0 < int(found[1]) <= 5000
        assert (await ask("GET", "/any", {})).text == "200"
        found = TOLD.search(server.heads[-1])
        assert found is not None
        assert int(found[1]) == 3_600_000


@pytest.mark.parametrize("name", NAMES)
async def test_a_call_for_who_has_gone_ends(name: str, guard: Gate, server: RawServer) -> None:
    mesh: Any = fake_mesh([server.port])

    def call() -> str:
        with meshlib.Client(mesh=mesh, timeout=60) as client, pytest.raises(httpx.ReadTimeout):
            client.get("http://reviews:9080/slow/5")
        return "ended"

    async with application(name, guard, call) as ask:
        began = time.monotonic()
        answer = await ask("GET", "/any", {"x-envoy-expected-rq-timeout-ms": "50"})
        assert answer.text == "ended"
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("name", NAMES)
async def test_a_thread_that_copies_its_context_is_bound_too(name: str, guard: Gate) -> None:
    def left() -> str:
        found: list[float | None] = []
        copied = contextvars.copy_context()
        thread = threading.Thread(target=lambda: found.append(copied.run(context.time_left)))
        thread.start()
        thread.join()
        return "none" if found[0] is None else f"{found[0]:.0f}"

    async with application(name, guard, left) as ask:
        assert (await ask("GET", "/any", WAITS)).text == "5"
        assert (await ask("GET", "/any", {})).text == "none"


@pytest.mark.parametrize("name", NAMES)
async def test_what_goes_on_after_the_response_is_nobodys_wait(name: str, guard: Gate) -> None:
    kept: list[contextvars.Context] = []

    def keep() -> str:
        kept.append(contextvars.copy_context())
        return f"{context.time_left() or 0:.0f}"

    async with application(name, guard, keep) as ask:
        assert (await ask("GET", "/any", WAITS)).text == "5"
        assert kept[0].run(context.time_left) is None
        assert kept[0].run(context.current) is not None


@pytest.mark.parametrize("name", NAMES)
async def test_nothing_is_sent_for_who_has_gone(name: str, guard: Gate, server: RawServer) -> None:
    mesh: Any = fake_mesh([server.port])

    def call() -> str:
        while (context.time_left() or 0) > 0:
            time.sleep(0.001)
        with meshlib.Client(mesh=mesh) as client, pytest.raises(meshlib.UpstreamTimedOut) as error:
            client.post("http://reviews:9080/echo", content=b"charge card")
        return str(error.value)

    async with application(name, guard, call) as ask:
        answer = await ask("POST", "/any", {"x-envoy-expected-rq-timeout-ms": "5"})
        assert "the caller waits no longer, so that nothing was sent [UT]" in answer.text
    assert server.heads == []


@pytest.mark.parametrize("name", ["asgi", "wsgi", "django-wsgi", "django-asgi"])
async def test_a_handler_that_fails_has_ended(name: str, guard: Gate) -> None:
    kept: list[contextvars.Context] = []

    def fail() -> str:
        kept.append(contextvars.copy_context())
        raise LookupError("not there")

    async with application(name, guard, fail) as ask:
        with contextlib.suppress(LookupError):
            await ask("GET", "/any", WAITS)
    assert kept[0].run(context.time_left) is None


async def test_an_asgi_application_works_on_after_its_response(guard: Gate) -> None:
    left: list[float | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        left.append(context.time_left())
        await send({"type": "http.response.body", "body": b"b"})
        left.append(context.time_left())

    transport = httpx.ASGITransport(MeshMiddleware(app, guard))
    async with httpx.AsyncClient(transport=transport, base_url="http://reviews") as client:
        assert (await client.get("/", headers=WAITS)).text == "ab"
    first, then = left
    assert first is not None
    assert 0 < first <= 5
    assert then is None


async def test_a_websocket_that_was_accepted_is_no_wait(guard: Gate) -> None:
    left: list[float | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        left.append(context.time_left())
        await send({"type": "websocket.accept"})
        left.append(context.time_left())

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        assert message["type"] == "websocket.accept"

    headers = [(b"host", b"reviews"), (b"x-envoy-expected-rq-timeout-ms", b"5000")]
    scope = {"type": "websocket", "headers": headers, "path": "/", "scheme": "ws", "client": ("10.0.0.9", 1)}
    await MeshMiddleware(app, guard)(scope, receive, send)
    assert left[0] is not None
    assert left[1] is None


def test_a_streamed_wsgi_body_is_served_when_it_was_read_or_closed(guard: Gate) -> None:
    kept: list[contextvars.Context] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        kept.append(contextvars.copy_context())
        yield b"a"
        yield b"b"

    def ask() -> Any:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ["HTTP_X_ENVOY_EXPECTED_RQ_TIMEOUT_MS"] = "5000"
        return WsgiMiddleware(app, guard)(environ, lambda *_: None)

    read, closed = ask(), ask()
    assert next(read) == next(closed) == b"a"
    assert all(one.run(context.time_left) is not None for one in kept)
    assert list(read) == [b"b"]
    closed.close()
    assert [one.run(context.time_left) for one in kept] == [None, None]
