"""Django in the mesh, by one line in MIDDLEWARE: WSGI and ASGI, sync and async views."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import django
import httpx
import pytest
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from support.policed import PAGE, STRANGER, gate, peer
from support.telemetry import Told

import meshlib
from meshlib.core.authz.body import Shown
from meshlib.core.authz.external import Check
from meshlib.core.authz.opinion import Opinion, Passed
from meshlib.dataplane import context
from meshlib.dataplane.gate import Gate, Gates
from meshlib_asgi import WithPeer
from meshlib_wsgi import PEER


def _said(request: Any) -> str:
    handed = context.current()
    user = "nobody" if handed is None else dict(handed.headers)[b"end-user"].decode()
    return f"{request.mesh.namespace}/{request.mesh.service_account} for {user}"


def sync_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(_said(request))


async def async_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(_said(request))


def sync_stream(request: HttpRequest) -> StreamingHttpResponse:
    def body() -> Iterator[str]:
        yield _said(request)

    return StreamingHttpResponse(body())


async def async_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[str]:
        yield _said(request)

    return StreamingHttpResponse(body())


def seen(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{request.path} {request.headers.get('x-mine', '-')}")


def form(request: HttpRequest) -> HttpResponse:
    return HttpResponse("&".join(f"{name}={value}" for name, value in request.POST.items()))


def body(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body)


def stream(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"".join(iter(lambda: request.read(3), b"")))


urlpatterns = [
    path("form", form),
    path("body", body),
    path("stream", stream),
    path("sync", sync_view),
    path("async", async_view),
    path("sync-stream", sync_stream),
    path("async-stream", async_stream),
    path("seen", seen),
]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A project, whose process is the workload `reviews`."""
    if not settings.configured:
        settings.configure()
        django.setup()
    monkeypatch.setattr(meshlib, "_shared", {})
    found = gate(tmp_path)
    meshlib._shared["mesh"] = found.mesh
    changed: dict[str, Any] = {
        "ROOT_URLCONF": __name__,
        "MIDDLEWARE": ["meshlib_django.MeshMiddleware", "django.middleware.common.CommonMiddleware"],
        "ALLOWED_HOSTS": ["*"],
        "MESH_PORT": 9080,
        "USE_TZ": True,
    }
    with found.mesh, override_settings(**changed):
        yield


async def ask_asgi(principal: str, target: str, app: Any = None, **headers: str) -> tuple[int, str]:
    transport = httpx.ASGITransport(WithPeer(app or get_asgi_application(), peer(principal)))
    async with httpx.AsyncClient(transport=transport, base_url="http://reviews:9080") as client:
        reply = await client.get(target, headers={"end-user": "jason", **headers})
        return reply.status_code, reply.text


def ask_wsgi(principal: str, target: str, **headers: str) -> tuple[int, str]:
    made: Any = get_wsgi_application()

    def app(environ: dict[str, Any], start: Any) -> Any:
        return made({**environ, PEER: peer(principal)}, start)

    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://reviews:9080") as client:
        reply = client.get(target, headers={"end-user": "jason", **headers})
        return reply.status_code, reply.text


@pytest.mark.parametrize("view", ["/sync", "/async", "/sync-stream"])
def test_wsgi(view: str) -> None:
    assert ask_wsgi(PAGE, view) == (200, "default/productpage for jason")


@pytest.mark.parametrize("view", ["/sync", "/async", "/async-stream"])
async def test_asgi(view: str) -> None:
    assert await ask_asgi(PAGE, view) == (200, "default/productpage for jason")


@pytest.mark.parametrize(("principal", "target"), [("", "/sync"), (PAGE, "/admin"), ("", "/nowhere")])
async def test_who_is_refused(principal: str, target: str) -> None:
    assert ask_wsgi(principal, target) == (403, "RBAC: access denied")
    assert await ask_asgi(principal, target) == (403, "RBAC: access denied")


async def test_what_is_not_there() -> None:
    assert ask_wsgi(PAGE, "/nowhere")[0] == 404
    assert (await ask_asgi(PAGE, "/nowhere"))[0] == 404


async def test_an_underscore_is_no_dash() -> None:
    assert await ask_asgi(PAGE, "/seen", x_mine="forged") == (200, "/seen -")
    sent = {"x_mine": "forged", "x-mine": "1"}
    assert await ask_asgi(PAGE, "/seen", None, **sent) == (200, "/seen 1")


async def test_the_path_that_was_judged_is_the_path_that_is_routed() -> None:
    inner: Any = get_asgi_application()

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        scope["path"], scope["raw_path"] = "/admin/../seen", b"/admin/../seen"
        await inner(scope, receive, send)

    assert await ask_asgi(PAGE, "/x", raw) == (200, "/seen -")


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    mesh = meshlib._shared["mesh"]
    mesh.telemetry = made.telemetry(mesh.bootstrap, lambda: mesh.view)
    yield made
    made.close()


@pytest.mark.parametrize("target", ["/sync", "/async", "/async-stream"])
async def test_what_is_told_over_asgi(target: str, told: Told) -> None:
    assert (await ask_asgi(PAGE, target))[0] == 200
    await ask_asgi(STRANGER, target)
    _check(told, target)


@pytest.mark.parametrize("target", ["/sync", "/async", "/sync-stream"])
def test_what_is_told_over_wsgi(target: str, told: Told) -> None:
    assert ask_wsgi(PAGE, target)[0] == 200
    ask_wsgi(STRANGER, target)
    _check(told, target)


def _check(told: Told, target: str) -> None:
    found = {
        labels["response_code"]: (count, labels["source_principal"]) for count, labels in told.requests()
    }
    assert found == {"200": (1, PAGE), "403": (1, STRANGER)}
    first = told.spans[0]
    attributes = dict(first.attributes or {})
    assert attributes["http.url"] == f"http://reviews:9080{target}"
    assert attributes["response_size"] == str(len("default/productpage for jason"))
    assert attributes["http.protocol"] == "HTTP/1.1"


ASKED = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh}
extensionProviders:
- name: whole
  envoyExtAuthzHttp: {service: authz.mesh, port: 80, includeRequestBodyInCheck: {maxRequestBytes: 8}}
- name: part
  envoyExtAuthzHttp:
    service: authz.mesh
    port: 80
    includeRequestBodyInCheck: {maxRequestBytes: 8, allowPartialMessage: true}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: authz}
spec: {hosts: [authz.mesh], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask}
spec: {action: CUSTOM, provider: {name: %s}, rules: [{}]}
"""


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[Shown | None]]]:
    """What an authority is shown from now on, which lets everybody in; it is asked as `provider` says."""
    seen: list[Shown | None] = []

    def ask(check: Check) -> Opinion:
        seen.append(check.body)
        return Passed()

    async def aask(check: Check) -> Opinion:
        return ask(check)

    with contextlib.ExitStack() as stack:

        def begin(provider: str) -> list[Shown | None]:
            mesh = stack.enter_context(gate(tmp_path, ASKED % provider).mesh)
            asking = Gate(mesh, 9080, ask=ask, aask=aask)
            monkeypatch.setattr(Gates, "at", lambda *_: asking)
            return seen

        yield begin


def posted(target: str, **how: Any) -> str:
    return (
        httpx.Client(transport=httpx.WSGITransport(_told_who(get_wsgi_application())))
        .post(f"http://reviews:9080{target}", **how)
        .text
    )


def _told_who(app: Any) -> Any:
    return lambda environ, start: app({**environ, PEER: peer(PAGE)}, start)


async def aposted(target: str, **how: Any) -> str:
    transport = httpx.ASGITransport(WithPeer(get_asgi_application(), peer(PAGE)))
    async with httpx.AsyncClient(transport=transport, base_url="http://reviews:9080") as client:
        return (await client.post(target, **how)).text


async def test_a_body_is_shown_and_then_read(shown: Callable[[str], list[Shown | None]]) -> None:
    seen = shown("whole")
    for view in ("/form", "/body", "/stream"):
        sent = {"data": {"name": "me"}}
        assert (posted(view, **sent), await aposted(view, **sent)) == ("name=me", "name=me")
    assert seen == [Shown(b"name=me", True, 7)] * 6
    seen.clear()
    too_much = {"data": {"name": "myselves"}}
    assert [posted("/body", **too_much), await aposted("/body", **too_much)] == ["Payload Too Large"] * 2
    assert [posted("/body"), await aposted("/body")] == ["", ""]
    assert seen == [None, None]


async def test_a_body_that_is_shown_in_part_is_read_whole(shown: Callable[[str], list[Shown | None]]) -> None:
    seen = shown("part")
    for view in ("/form", "/body", "/stream"):
        sent = {"data": {"name": "myselves"}}
        assert (posted(view, **sent), await aposted(view, **sent)) == ("name=myselves", "name=myselves")
    assert [(one.data, one.whole) for one in seen if one] == [(b"name=mys", False)] * 6
