"""What is told of outbound requests: by a real SDK, with a real server, for both clients."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from support.fake_mesh import FakeMesh, fake_mesh
from support.ports import free_port
from support.raw_server import RawServer, raw_server
from support.telemetry import Told

import meshlib
from meshlib.bootstrap import Bootstrap, bootstrap
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.request import RequestHead
from meshlib.core.view import View
from meshlib.dataplane import context

WHO = bootstrap(
    {}, service="productpage", namespace="shop", state_dir="", labels="app=productpage,version=v1"
)
CLUSTER = "outbound|9080|v2|reviews.default.svc.cluster.local"
METADATA = (
    ("istio/app", "reviews"),
    ("istio/version", "v2"),
    ("istio/workload", "reviews-v2;default;reviews;v2;Kubernetes"),
)
SOURCE = {
    "reporter": "source",
    "source_workload": "productpage",
    "source_canonical_service": "productpage",
    "source_canonical_revision": "v1",
    "source_workload_namespace": "shop",
    "source_principal": "unknown",
    "source_app": "productpage",
    "source_version": "v1",
    "source_cluster": "Kubernetes",
    "connection_security_policy": "unknown",
    "request_protocol": "http",
    "grpc_response_status": "",
}
REVIEWS = {
    "destination_workload": "reviews-v2",
    "destination_workload_namespace": "default",
    "destination_principal": "unknown",
    "destination_app": "reviews",
    "destination_version": "v2",
    "destination_service": "reviews.default.svc.cluster.local",
    "destination_canonical_service": "reviews",
    "destination_canonical_revision": "v2",
    "destination_service_name": "reviews",
    "destination_service_namespace": "default",
    "destination_cluster": "Kubernetes",
}


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.close()


def mesh_to(port: int, told: Told | None, settings: Bootstrap = WHO, **more: Any) -> FakeMesh:
    """A mesh whose only route leads to reviews v2."""
    made = fake_mesh([port], ("reviews:9080",), route={"cluster": CLUSTER})
    endpoints = EndpointSet((LocalityEndpoints("", 0, 1, (Endpoint("127.0.0.1", port, metadata=METADATA),)),))
    cluster = replace(
        made.view.clusters["c"],
        name=CLUSTER,
        endpoints_name=CLUSTER,
        service=("reviews.default.svc.cluster.local", "reviews", "default"),
    )
    made.view = View("1", made.view.tables, {CLUSTER: cluster}, {CLUSTER: endpoints})
    if told is not None:
        made.telemetry = told.telemetry(settings, lambda: made.view, **more)
    return made


class Caller:
    """Makes requests with one of the two clients."""

    def __init__(self, kind: str, mesh: FakeMesh) -> None:
        self.kind, self.mesh = kind, mesh

    async def post(self, url: str, body: bytes = b"", **headers: str) -> httpx.Response:
        """The whole response."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        mesh: Any = self.mesh
        if self.kind == "threads":
            with meshlib.Client(mesh=mesh) as client:
                return client.post(url, content=body, headers=named)
        async with meshlib.AsyncClient(mesh=mesh) as aclient:
            return await aclient.post(url, content=body, headers=named)


both = pytest.mark.parametrize("kind", ["threads", "tasks"])


@both
async def test_a_request_has_exactly_istios_labels(kind: str, server: RawServer, told: Told) -> None:
    caller = Caller(kind, mesh_to(server.port, told))
    for _ in range(3):
        assert (await caller.post("http://reviews:9080/echo")).status_code == 200
    assert told.requests() == [(3, {**SOURCE, **REVIEWS, "response_code": "200", "response_flags": "-"})]
    assert told.units() == {
        "istio_request_duration_milliseconds": "ms",
        "istio_request_bytes": "By",
        "istio_response_bytes": "By",
        "istio_requests_total": "{request}",
    }


@both
async def test_sizes_are_of_head_and_body(kind: str, server: RawServer, told: Told) -> None:
    response = await Caller(kind, mesh_to(server.port, told)).post("http://reviews:9080/echo", b"x" * 1000)
    found = told.metrics()
    (sent,), (received,) = found["istio_request_bytes"], found["istio_response_bytes"]
    assert sent.sum == len(server.heads[0]) + 1000
    assert (
        received.sum == len(response.content) + sum(len(n) + len(v) + 4 for n, v in response.headers.raw) + 19
    )
    assert dict(sent.attributes) == dict(received.attributes)
    assert sent.explicit_bounds == (
        *(0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000),
        *(30000, 60000, 300000, 600000, 1800000, 3600000),
    )


@both
async def test_a_connection_that_is_refused_is_503_uf(kind: str, told: Told) -> None:
    with pytest.raises(httpx.ConnectError):
        await Caller(kind, mesh_to(free_port(), told)).post("http://reviews:9080/")
    assert told.requests() == [(1, {**SOURCE, **REVIEWS, "response_code": "503", "response_flags": "UF"})]
    (span,) = told.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error"] == "true"
    assert span.attributes["response_flags"] == "UF"


@both
async def test_a_span_is_as_envoy_makes_it_and_the_server_is_told(
    kind: str, server: RawServer, told: Told
) -> None:
    caller = Caller(kind, mesh_to(server.port, told))
    response = await caller.post(
        "http://reviews:9080/echo?q=1", b"four", user_agent="tests", x_request_id="r1"
    )
    (span,) = told.spans
    assert span.name == "reviews.default.svc.cluster.local:9080/*"
    assert span.kind is SpanKind.CLIENT
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    attributes = dict(span.attributes or {})
    assert attributes.pop("node_id")
    assert attributes == {
        "component": "proxy",
        "http.method": "POST",
        "http.url": "http://reviews:9080/echo?q=1",
        "http.protocol": "HTTP/1.1",
        "http.status_code": "200",
        "request_size": "4",
        "response_size": str(len(response.content)),
        "response_flags": "-",
        "guid:x-request-id": "r1",
        "user_agent": "tests",
        "peer.address": "127.0.0.1",
        "upstream_cluster": CLUSTER,
        "upstream_cluster.name": CLUSTER,
        "upstream_address": f"127.0.0.1:{server.port}",
        "istio.canonical_service": "productpage",
        "istio.canonical_revision": "v1",
        "istio.mesh_id": "cluster.local",
        "istio.namespace": "shop",
        "istio.cluster_id": "Kubernetes",
    }
    assert span.context is not None
    known = f"traceparent: 00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
    assert known.encode() in server.heads[0]


@both
async def test_the_current_span_is_the_parent(kind: str, server: RawServer, told: Told) -> None:
    with told.tracers.get_tracer("application").start_as_current_span("work") as own:
        await Caller(kind, mesh_to(server.port, told)).post("http://reviews:9080/echo")
    assert told.spans[0].parent == own.get_span_context()


@both
async def test_what_the_application_says_itself_is_the_parent(
    kind: str, server: RawServer, told: Told
) -> None:
    said = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with told.tracers.get_tracer("application").start_as_current_span("work"):
        await Caller(kind, mesh_to(server.port, told)).post(
            "http://reviews:9080/echo", traceparent=said, tracestate="a=1"
        )
    span = told.spans[0]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert server.heads[0].count(b"traceparent") == 1
    assert b"tracestate: a=1" in server.heads[0]
    assert said.encode() not in server.heads[0]


INBOUND = RequestHead(
    "GET",
    "http",
    "productpage:9080",
    "/",
    [
        (b"x-request-id", b"from-outside"),
        (b"x-b3-traceid", b"0af7651916cd43dd8448eb211c80319c"),
        (b"x-b3-spanid", b"b7ad6b7169203331"),
        (b"x-b3-sampled", b"1"),
        (b"end-user", b"jason"),
        (b"cookie", b"secret=1"),
    ],
)


@both
async def test_without_an_sdk_headers_are_handed_on_as_they_came(kind: str, server: RawServer) -> None:
    caller = Caller(kind, mesh_to(server.port, None))
    with context.entered(context.handed(INBOUND, None, frozenset((b"end-user",)))):
        await caller.post("http://reviews:9080/echo")
    head = server.heads[0]
    for name, value in INBOUND.headers[:5]:
        assert name + b": " + value + b"\r\n" in head
    assert b"secret" not in head
    assert b"traceparent" not in head


@both
async def test_with_an_sdk_the_span_replaces_what_came_in(kind: str, server: RawServer, told: Told) -> None:
    caller = Caller(kind, mesh_to(server.port, told))
    with context.entered(context.handed(INBOUND, None, frozenset((b"end-user",)))):
        await caller.post("http://reviews:9080/echo")
    (span,) = told.spans
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    head = server.heads[0]
    assert f"traceparent: 00-0af7651916cd43dd8448eb211c80319c-{span.context.span_id:016x}-01".encode() in head  # type: ignore[union-attr]
    assert b"x-b3-" not in head
    assert b"x-request-id: from-outside" in head
    assert b"end-user: jason" in head


@pytest.mark.parametrize(
    ("formats", "names"),
    [
        ("b3", {"b3"}),
        ("b3multi", {"x-b3-traceid", "x-b3-spanid", "x-b3-sampled"}),
        ("tracecontext,b3,baggage", {"traceparent", "b3"}),
        ("none", set()),
    ],
)
def test_otel_propagators_names_what_goes_out(
    formats: str, names: set[str], server: RawServer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", formats)
    mesh: Any = mesh_to(server.port, told)
    with meshlib.Client(mesh=mesh) as client:
        client.get("http://reviews:9080/echo")
    sent = {line.partition(":")[0].lower() for line in server.heads[0].decode().split("\r\n")}
    assert {name for name in sent if "b3" in name or "trace" in name} == names


def test_a_span_that_is_not_sampled_still_joins_the_trace(server: RawServer) -> None:
    told = Told(ALWAYS_OFF)
    mesh: Any = mesh_to(server.port, told)
    with meshlib.Client(mesh=mesh) as client:
        client.get("http://reviews:9080/echo")
    assert told.spans == []
    assert re.search(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00\r\n", server.heads[0])
    told.close()


def test_a_host_outside_of_the_mesh_is_told_nothing_but_the_trace(server: RawServer) -> None:
    made = fake_mesh([server.port], ("example.org:80",))
    host = replace(made.view.tables["example.org:80"].hosts[0], name="allow_any")
    table = type(made.view.tables["example.org:80"])("r", (host,), ignore_port=True)
    made.view = replace(made.view, tables={"example.org:80": table})
    mesh: Any = made
    with (
        context.entered(context.handed(INBOUND, None, frozenset((b"end-user",)))),
        meshlib.Client(mesh=mesh) as client,
    ):
        client.get("http://example.org/echo")
    assert b"x-b3-traceid" in server.heads[0]
    assert b"end-user" not in server.heads[0]


@both
async def test_the_callers_deadline_bounds_the_call(kind: str, server: RawServer) -> None:
    inbound = RequestHead("GET", "http", "a", "/", [(b"x-envoy-expected-rq-timeout-ms", b"80")])
    with context.entered(context.handed(inbound, None)), pytest.raises(httpx.ReadTimeout):
        await Caller(kind, mesh_to(server.port, None)).post("http://reviews:9080/slow/5")


def test_a_body_that_is_closed_early_is_dc(server: RawServer, told: Told) -> None:
    mesh: Any = mesh_to(server.port, told)
    with meshlib.Client(mesh=mesh) as client, client.stream("GET", "http://reviews:9080/big/9999999"):
        assert told.requests() == []
    assert told.requests() == [(1, {**SOURCE, **REVIEWS, "response_code": "200", "response_flags": "DC"})]


def test_a_host_without_a_route_is_404_nr(told: Told) -> None:
    mesh: Any = mesh_to(1, told)
    mesh.view = replace(mesh.view, tables={})
    with meshlib.Client(mesh=mesh) as client:
        assert client.get("http://nowhere:80/").status_code == 404
    ((count, found),) = told.requests()
    assert count == 1
    assert found == {
        **SOURCE,
        **dict.fromkeys(REVIEWS, "unknown"),
        "destination_service": "nowhere",
        "response_code": "404",
        "response_flags": "NR",
    }


def test_a_line_of_the_access_log(server: RawServer, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    mesh: Any = mesh_to(server.port, None)
    made = Told()
    mesh.telemetry = made.telemetry(
        replace(WHO, access_log=str(path)), lambda: mesh.view, tracers=None, meters=None, wall=lambda: 1.5
    )
    with meshlib.Client(mesh=mesh) as client:
        response = client.post(
            "http://reviews:9080/echo?q=1",
            content=b"four",
            headers={"user-agent": "tests", "x-request-id": "r1"},
        )
    with_duration = re.sub(r' \d+ \d+ "-" "tests', ' DURATION WAITED "-" "tests', path.read_text())
    assert with_duration == (
        '[1970-01-01T00:00:01.500Z] "POST /echo?q=1 HTTP/1.1" 200 - via_upstream - "-" '
        f'4 {len(response.content)} DURATION WAITED "-" "tests" "r1" "reviews:9080" '
        f'"127.0.0.1:{server.port}" {CLUSTER} - - - - x\n'
    )
    made.close()


def test_a_line_as_json(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    mesh: Any = mesh_to(1, None)
    mesh.view = replace(mesh.view, endpoints={})
    settings = replace(WHO, access_log=str(path), access_log_encoding="JSON")
    mesh.telemetry = Told().telemetry(
        settings, lambda: mesh.view, tracers=None, meters=None, wall=lambda: 0.0
    )
    with meshlib.Client(mesh=mesh) as client:
        client.get("http://reviews:9080/", headers={"user-agent": 'a "b"', "x-request-id": "r1"})
    found = json.loads(path.read_text())
    assert found.pop("duration") >= 0
    assert found == {
        "start_time": "1970-01-01T00:00:00.000Z",
        "route_name": "x",
        "method": "GET",
        "path": "/",
        "protocol": "HTTP/1.1",
        "response_code": 503,
        "response_flags": "UH",
        "response_code_details": "no_healthy_upstream",
        "connection_termination_details": None,
        "bytes_received": 0,
        "bytes_sent": 19,
        "upstream_service_time": None,
        "x_forwarded_for": None,
        "user_agent": 'a "b"',
        "request_id": "r1",
        "authority": "reviews:9080",
        "upstream_host": None,
        "upstream_cluster": CLUSTER,
        "upstream_local_address": None,
        "downstream_local_address": None,
        "downstream_remote_address": None,
        "requested_server_name": None,
        "upstream_transport_failure_reason": None,
    }


def test_nothing_is_current_in_the_end(server: RawServer, told: Told) -> None:
    mesh: Any = mesh_to(server.port, told)
    with meshlib.Client(mesh=mesh) as client:
        client.get("http://reviews:9080/echo")
    assert trace.get_current_span() is trace.INVALID_SPAN
