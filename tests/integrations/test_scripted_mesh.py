"""Applications of every framework under test: policies, and calls that are scripted, without a server."""

from collections.abc import Iterator

import fastapi
import flask
import httpx
import pytest
from django.conf import settings
from django.http import HttpRequest, HttpResponse

import meshlib
import meshlib_fastapi
import meshlib_flask
from meshlib.testing import Response, ScriptedMesh
from meshlib_django import MeshMiddleware
from meshlib_wsgi import PEER

RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: ratings, subset: v2}}]
  - route: [{destination: {host: ratings, subset: v1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings}
spec:
  host: ratings
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: page}
spec:
  selector: {matchLabels: {app: page}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/gateway]}}]
    to: [{operation: {methods: [GET], ports: ["80", "9080"]}}]
"""
PROVIDER = """
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
extensionProviders:
- name: opa
  envoyExtAuthz{}: {{service: opa.default.svc.cluster.local, port: 8181}}
"""
CUSTOM = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asks}
spec:
  action: CUSTOM
  provider: {name: opa}
  rules: [{to: [{operation: {paths: [/asked]}}]}]
"""
JASON = {"end-user": "jason"}
CLIENT, ASYNC_CLIENT = meshlib.Client(), meshlib.AsyncClient()
"""As applications have them: made before any test, kept over all of them."""


def stars() -> str:
    return CLIENT.get("http://ratings:9080/").text


FLASK = flask.Flask("page")
FLASK.add_url_rule("/", "page", stars)
FLASK.add_url_rule("/asked", "asked", stars)
meshlib_flask.Mesh(FLASK)

FASTAPI = fastapi.FastAPI()
meshlib_fastapi.install(FASTAPI)


@FASTAPI.get("/")
async def page() -> fastapi.Response:
    return fastapi.Response((await ASYNC_CLIENT.get("http://ratings:9080/")).text)


@pytest.fixture
def mesh() -> Iterator[ScriptedMesh]:
    with ScriptedMesh(RULES, service="page") as made:
        made.serve("ratings", text="one", version="v1")
        made.serve("ratings", text="two", version="v2")
        yield made


@pytest.mark.parametrize("_", range(2))
def test_flask(mesh: ScriptedMesh, _: int) -> None:
    web = FLASK.test_client()
    gateway = {PEER: mesh.peer("gateway")}
    assert web.get("/", environ_overrides=gateway).text == "one"
    assert web.get("/", environ_overrides=gateway, headers=JASON).text == "two"
    assert web.get("/", environ_overrides={PEER: mesh.peer("mallory")}).status_code == 403
    assert web.get("/").status_code == 403
    assert [call.subset for call in mesh.calls()] == ["v1", "v2"]


@pytest.mark.parametrize("_", range(2))
async def test_fastapi(mesh: ScriptedMesh, _: int) -> None:
    shown = {"meshlib": {"peer": mesh.peer("gateway", port=9080)}}

    async def by_the_gateway(scope: dict[str, object], receive: object, send: object) -> None:
        await FASTAPI({**scope, "extensions": shown}, receive, send)  # type: ignore[arg-type]

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(by_the_gateway), base_url="http://page:9080"
    ) as web:
        assert (await web.get("/")).text == "one"
        assert (await web.get("/", headers=JASON)).text == "two"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(FASTAPI), base_url="http://page:9080") as web:
        assert (await web.get("/")).status_code == 403
    assert [call.subset for call in mesh.calls()] == ["v1", "v2"]


def django_page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(stars())


def test_django(mesh: ScriptedMesh) -> None:
    if not settings.configured:
        settings.configure(DEBUG=True, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
    from django.test import RequestFactory

    answer = MeshMiddleware(django_page)
    gateway = {PEER: mesh.peer("gateway")}
    host = {"host": "page"}  # Django's own client sends none, which HTTP/1.1 does not allow
    assert answer(RequestFactory().get("/", headers=host, **gateway)).content == b"one"
    assert answer(RequestFactory().get("/", headers=JASON | host, **gateway)).content == b"two"
    assert answer(RequestFactory().get("/", headers=host)).status_code == 403


def test_an_external_authority_is_scripted_as_anybody_is(mesh: ScriptedMesh) -> None:
    mesh.apply(PROVIDER.format("Http"), CUSTOM)
    mesh.serve("opa", 401, Response(200))
    web, gateway = FLASK.test_client(), {PEER: mesh.peer("gateway")}
    assert web.get("/asked", environ_overrides=gateway).status_code == 401
    assert web.get("/asked", environ_overrides=gateway).text == "one"
    mesh.assert_called("opa", times=2, path="/asked", port=8181)
    mesh.apply(PROVIDER.format("Grpc"))
    assert web.get("/asked", environ_overrides=gateway).status_code == 403  # nobody answers
