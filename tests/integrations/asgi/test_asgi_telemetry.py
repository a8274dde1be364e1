"""What is told of inbound requests, and two hops: a caller, an application, and whom that calls."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from support.fake_mesh import FakeMesh, fake_mesh
from support.raw_server import RawServer, raw_server
from support.telemetry import Told

import meshlib
from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.core.authz.rbac import Rbac, Rules, Verb
from meshlib.core.inbound import Inbound
from meshlib.core.mtls import InboundMode, ServerTls
from meshlib.core.request import Peer
from meshlib.dataplane import context
from meshlib.dataplane.gate import Gate
from meshlib.dataplane.telemetry.workload import peer_metadata
from meshlib.xds.names import inbound_listener
from meshlib_asgi import MeshMiddleware
from meshlib_asgi.peers import Application, Receive, Scope, Send, WithPeer

PORT = 9080
DENY_ALL = Rbac(rules=Rules(Verb.ALLOW, ()))
WHO = bootstrap({}, service="reviews", namespace="default", state_dir="", labels="app=reviews,version=v2")
CALLER = bootstrap(
    {}, service="productpage", namespace="lies", state_dir="", labels="app=productpage,version=v1"
)
OWN = "spiffe://cluster.local/ns/default/sa/reviews"
PRINCIPAL = "spiffe://cluster.local/ns/shop/sa/productpage"
PEER = Peer(("10.0.0.7", 4711), ("10.0.0.8", PORT), PRINCIPAL, "outbound_.9080_._.reviews", True)
DESTINATION = {
    "reporter": "destination",
    "destination_workload": "reviews",
    "destination_workload_namespace": "default",
    "destination_app": "reviews",
    "destination_version": "v2",
    "destination_service": "reviews.default.svc.cluster.local",
    "destination_canonical_service": "reviews",
    "destination_canonical_revision": "v2",
    "destination_service_name": "reviews",
    "destination_service_namespace": "default",
    "destination_cluster": "Kubernetes",
    "request_protocol": "http",
    "grpc_response_status": "",
}
STRANGER = {
    "source_workload": "unknown",
    "source_canonical_service": "unknown",
    "source_canonical_revision": "unknown",
    "source_workload_namespace": "unknown",
    "source_principal": "unknown",
    "source_app": "unknown",
    "source_version": "unknown",
    "source_cluster": "unknown",
    "destination_principal": "unknown",
    "connection_security_policy": "none",
}
PRODUCTPAGE = {
    "source_workload": "productpage",
    "source_canonical_service": "productpage",
    "source_canonical_revision": "v1",
    "source_workload_namespace": "shop",
    "source_principal": PRINCIPAL,
    "source_app": "productpage",
    "source_version": "v1",
    "source_cluster": "Kubernetes",
    "destination_principal": OWN,
    "connection_security_policy": "mutual_tls",
}


class Serving(FakeMesh):
    """A mesh in which this process serves a port, under a policy that lets everybody in."""

    def __init__(self, told: Told | None, settings: Bootstrap = WHO, port: int = 1, **more: Any) -> None:
        made = fake_mesh([port], ("ratings:9080",))
        name = inbound_listener(PORT)
        policy = Inbound(name, ServerTls(InboundMode.PERMISSIVE))
        super().__init__(replace(made.view, inbound={name: policy}))
        self.bootstrap, self.certs, self.contexts = settings, None, None
        if told is not None:
            self.telemetry = told.telemetry(settings, lambda: self.view, OWN, **more)

    def on_close(self, call: Callable[[], None]) -> None:
        """It is never closed."""

    async def aprepare_inbound(self, port: int) -> Inbound:
        return self.view.inbound[inbound_listener(port)]

    def serving(self, app: Application, peer: Peer | None = None) -> httpx.AsyncClient:
        """A client whose requests go straight into the application."""
        mesh: Any = self
        guarded: Any = MeshMiddleware(app, Gate(mesh, PORT))
        if peer is not None:
            guarded = WithPeer(guarded, peer)
        transport = httpx.ASGITransport(guarded, client=("10.0.0.9", 1234), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://reviews:9080")


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 201, "headers": [(b"x-a", b"b")]})
    await send({"type": "http.response.body", "body": b"hello ", "more_body": True})
    await send({"type": "http.response.body", "body": b"world"})


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("no")


async def fails_late(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("no")


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.fixture(autouse=True)
async def _nothing_stays_current() -> AsyncIterator[None]:
    yield
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_stranger_in_plain_text(told: Told) -> None:
    async with Serving(told).serving(hello) as client:
        assert (await client.post("/a", content=b"four")).text == "hello world"
    assert told.requests() == [
        (1, {**DESTINATION, **STRANGER, "response_code": "201", "response_flags": "-"})
    ]
    found = told.metrics()
    (sent,) = found["istio_response_bytes"]
    assert sent.sum == 19 + len("x-a") + len("b") + 4 + len("hello world")


async def test_a_peer_of_the_mesh_says_what_it_is_and_not_where(told: Told) -> None:
    headers = {"x-envoy-peer-metadata": peer_metadata(CALLER).decode()}
    async with Serving(told).serving(hello, PEER) as client:
        await client.get("/", headers=headers)
    assert told.requests() == [
        (1, {**DESTINATION, **PRODUCTPAGE, "response_code": "201", "response_flags": "-"})
    ]


async def test_without_mutual_tls_nobody_says_what_it_is(told: Told) -> None:
    headers = {"x-envoy-peer-metadata": peer_metadata(CALLER).decode()}
    async with Serving(told).serving(hello) as client:
        await client.get("/", headers=headers)
    assert told.requests() == [
        (1, {**DESTINATION, **STRANGER, "response_code": "201", "response_flags": "-"})
    ]


@pytest.mark.parametrize("value", ["", "%%%", "AAAA", "x" * 20_000, "CgUKA0FCQw=="])
async def test_metadata_that_can_not_be_read_counts_as_absent(value: str, told: Told) -> None:
    async with Serving(told).serving(hello, PEER) as client:
        assert (await client.get("/", headers={"x-envoy-peer-metadata": value})).status_code == 201
    ((count, found),) = told.requests()
    assert count == 1
    assert found["source_workload"] == "unknown"
    assert found["source_principal"] == PRINCIPAL


async def test_a_refusal_is_told_too(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    mesh = Serving(told, replace(WHO, access_log=str(path)))
    name = inbound_listener(PORT)
    policy = replace(mesh.view.inbound[name], filters=(DENY_ALL,))
    mesh.view = replace(mesh.view, inbound={name: policy})
    async with mesh.serving(hello, PEER) as client:
        assert (await client.get("/")).status_code == 403
    ((count, found),) = told.requests()
    assert (count, found["response_code"], found["response_flags"]) == (1, "403", "-")
    assert " 403 - rbac_access_denied_matched_policy[none] " in path.read_text()
    (span,) = told.spans
    assert span.attributes is not None
    assert span.attributes["http.status_code"] == "403"


@pytest.mark.parametrize(("app", "status"), [(fails, "500"), (fails_late, "200")])
async def test_an_application_that_fails(app: Application, status: str, told: Told) -> None:
    async with Serving(told).serving(app) as client:
        await client.get("/")
    ((count, found),) = told.requests()
    assert (count, found["response_code"], found["response_flags"]) == (1, status, "-")


async def test_a_caller_that_leaves_is_dc(told: Told) -> None:
    began = asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        await asyncio.Event().wait()

    async with Serving(told).serving(waits) as client:
        asking = asyncio.ensure_future(client.get("/"))
        await began.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    ((count, found),) = told.requests()
    assert (count, found["response_code"], found["response_flags"]) == (1, "0", "DC")


async def test_grpc_says_its_own_status(told: Told) -> None:
    async def grpc(scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": [], "trailers": True}
        await send(start)
        await send({"type": "http.response.body", "body": b"x"})
        await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"5")]})

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/a.B/C",
        "scheme": "http",
        "http_version": "2",
        "headers": [(b"host", b"reviews"), (b"content-type", b"application/grpc")],
        "query_string": b"",
        "client": ("10.0.0.9", 1),
        "server": ("10.0.0.8", PORT),
        "extensions": {},
    }
    mesh: Any = Serving(told)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        pass

    await MeshMiddleware(grpc, Gate(mesh, PORT))(scope, receive, send)
    ((_, found),) = told.requests()
    assert found["request_protocol"] == "grpc"
    assert found["grpc_response_status"] == "5"
    assert found["response_code"] == "200"


async def test_a_line_of_the_access_log(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    settings = replace(WHO, access_log=str(path))
    mesh = Serving(told, settings, tracers=None, meters=None, wall=lambda: 1.5)
    headers = {"user-agent": "tests", "x-request-id": "r1", "x-forwarded-for": "1.2.3.4"}
    async with mesh.serving(hello, PEER) as client:
        await client.post("/a?b=c", content=b"four", headers=headers)
    assert re.sub(r" \d+ - \"1", ' DURATION - "1', path.read_text()) == (
        '[1970-01-01T00:00:01.500Z] "POST /a?b=c HTTP/1.1" 201 - via_upstream - "-" '
        '4 11 DURATION - "1.2.3.4" "tests" "r1" "reviews:9080" '
        '"-" inbound|9080|| - 10.0.0.8:9080 10.0.0.7:4711 outbound_.9080_._.reviews default\n'
    )


async def test_a_request_without_an_id_is_given_one(told: Told, tmp_path: Path) -> None:
    path, seen = tmp_path / "access.log", []
    mesh = Serving(told, replace(WHO, access_log=str(path)), tracers=None, meters=None)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        handed = context.current()
        assert handed is not None
        seen.extend([dict(scope["headers"])[b"x-request-id"], dict(handed.headers)[b"x-request-id"]])
        await hello(scope, receive, send)

    async with mesh.serving(app, PEER) as client:
        await client.get("/")
        await client.get("/")
    one, handed_on, two, _ = seen
    assert one == handed_on != two
    assert re.fullmatch(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", one)
    assert [line.split('" "')[2] for line in path.read_text().splitlines()] == [one.decode(), two.decode()]


async def test_two_hops_are_one_trace(server: RawServer, told: Told) -> None:
    mesh: Any = Serving(told, port=server.port)

    async def calls(scope: Scope, receive: Receive, send: Send) -> None:
        with trace.get_tracer("application", tracer_provider=told.tracers).start_as_current_span("handler"):
            async with meshlib.AsyncClient(mesh=mesh) as client:
                await client.get("http://ratings:9080/echo")
        await hello(scope, receive, send)

    said = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"traceparent": said, "end-user": "jason", "x-request-id": "r1", "baggage": "a=b"}
    async with mesh.serving(calls) as client:
        await client.get("/", headers=headers)
    outbound, handler, inbound = told.spans
    assert (inbound.kind, outbound.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert inbound.name == "reviews.default.svc.cluster.local:9080/*"
    assert [f"{span.context.trace_id:032x}" for span in told.spans] == [
        "0af7651916cd43dd8448eb211c80319c"
    ] * 3  # type: ignore[union-attr]
    assert f"{inbound.parent.span_id:016x}" == "b7ad6b7169203331"  # type: ignore[union-attr]
    assert handler.parent == inbound.context
    assert outbound.parent == handler.context
    head = server.heads[0].decode()
    assert f"traceparent: 00-0af7651916cd43dd8448eb211c80319c-{outbound.context.span_id:016x}-01\r\n" in head  # type: ignore[union-attr]
    assert "end-user: jason\r\n" in head
    assert "baggage: a=b\r\n" in head
    assert "x-request-id: r1\r\n" in head


async def test_two_hops_without_an_sdk(server: RawServer) -> None:
    mesh: Any = Serving(None, port=server.port)

    async def calls(scope: Scope, receive: Receive, send: Send) -> None:
        async with meshlib.AsyncClient(mesh=mesh) as client:
            await client.get("http://ratings:9080/echo")
        await hello(scope, receive, send)

    said = {"b3": "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1", "end-user": "jason"}
    async with mesh.serving(calls) as client:
        await client.get("/", headers=said)
    head = server.heads[0].decode()
    for name, value in said.items():
        assert f"{name}: {value}\r\n" in head
    assert "traceparent" not in head
