"""gRPC calls over our channel, and over gRPC's own through a real Envoy, by the same routes."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from support.envoy import run_envoy
from support.fake_mesh import fake_mesh
from support.grpc_server import PATH, Seen, grpc_server

import meshlib_grpc
from meshlib.core.view import View
from meshlib.dataplane.decode.clusters import HTTP_OPTIONS
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_FAULT = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
_H2 = {"explicit_http_config": {"http2_protocol_options": {}}}
_OPTIONS = {HTTP_OPTIONS: {"@type": f"type.googleapis.com/{HTTP_OPTIONS}", **_H2}}
_BACK_OFF = {"base_interval": "0.001s"}
WORDS = {1: "cancelled", 4: "deadline-exceeded", 8: "resource-exhausted", 13: "internal", 14: "unavailable"}


class Case(NamedTuple):
    """A route, and a call."""

    name: str
    route: dict[str, Any]
    method: str = "who"
    message: bytes = b""
    failing: int = 0
    stalling: int = 0
    extra: dict[str, Any] = {}  # noqa: RUF012 - never changed
    """Of the route beside its action."""


class Came(NamedTuple):
    """What came of it."""

    code: str
    details: str
    calls: int
    metadata: frozenset[tuple[str, str]]


def _retry(on: str, **more: Any) -> dict[str, Any]:
    return {"retry_policy": {"retry_on": on, "num_retries": 2, "retry_back_off": _BACK_OFF, **more}}


def _fault(**abort: Any) -> dict[str, Any]:
    fault = {"@type": _FAULT, "abort": {"percentage": {"numerator": 100}, **abort}}
    return {"typed_per_filter_config": {"envoy.filters.http.fault": fault}}


def _hedged(on: str, retries: int = 2) -> dict[str, Any]:
    hedge = {"hedge_policy": {"hedge_on_per_try_timeout": True}}
    return {**_retry(on, num_retries=retries, per_try_timeout="0.4s"), **hedge, "timeout": "1.5s"}


CASES = [
    *(
        Case(f"{word} {number}", _retry(word), "status", b"%d words" % number)
        for word in (*WORDS.values(), "5xx", "unavailable,internal")
        for number in (*WORDS, 2, 5, 16)
    ),
    Case("status after a head", _retry("unavailable"), "headed"),
    Case("heals", _retry("unavailable"), failing=2),
    Case("does not heal", _retry("unavailable"), failing=3),
    Case("try's time", _retry("5xx", num_retries=1, per_try_timeout="0.5s"), "slow", b"30"),
    Case("route's time", {"timeout": "0.5s"}, "slow", b"30"),
    Case("hedged", _hedged("cancelled"), stalling=1),
    Case("hedged again", _hedged("cancelled"), stalling=2),
    Case("fails, and the next is slow", _hedged("unavailable", retries=1), failing=1, stalling=1),
    Case("hedged, and none answers", _hedged("cancelled", retries=1), stalling=2),
    Case("not hedged", _hedged("unavailable"), failing=2),
    Case("rewritten", {"regex_rewrite": {"pattern": {"regex": "nowhere"}, "substitution": "who"}}, "nowhere"),
    Case("added", {}, extra={"request_headers_to_add": [{"header": {"key": "x-added", "value": "yes"}}]}),
    Case("removed", {}, extra={"request_headers_to_remove": ["x-mine"]}),
    Case("no such cluster", {"cluster": "nobody"}),
    Case("nobody listens", {"cluster": "closed"}),
    *(Case(f"aborted {number}", {}, extra=_fault(grpc_status=number)) for number in (0, 5, 14)),
    *(
        Case(f"aborted {status}", {}, extra=_fault(http_status=status))
        for status in (400, 401, 403, 404, 429, 503)
    ),
    *(
        Case(f"answered {status}", {}, extra={"direct_response": {"status": status}})
        for status in (200, 403, 404, 503)
    ),
    Case("redirected", {}, extra={"redirect": {"host_redirect": "elsewhere"}}),
]


def _config() -> dict[str, Any]:
    routes = []
    for number, case in enumerate(CASES):
        wanted = {"name": "x-case", "string_match": {"exact": str(number)}}
        made: dict[str, Any] = {
            "name": case.name,
            "match": {"prefix": "/", "headers": [wanted]},
            **case.extra,
        }
        if "direct_response" not in made and "redirect" not in made:
            made["route"] = {"cluster": "c", "timeout": "15s", **case.route}
        routes.append(made)
    hosts = [{"name": "v", "domains": ["*"], "routes": routes}]
    return {"name": "r", "virtual_hosts": hosts, "validate_clusters": False}


def _cluster(name: str, port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": _OPTIONS,
    }


def _bootstrap(port: int) -> dict[str, Any]:
    manager = {
        "@type": _HCM,
        "stat_prefix": "x",
        "route_config": _config(),
        "http_filters": [
            {"name": "envoy.filters.http.fault", "typed_config": {"@type": _FAULT}},
            {"name": "router", "typed_config": {"@type": _ROUTER}},
        ],
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    clusters = [_cluster("c", port), _cluster("closed", 1)]
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def _mesh(port: int) -> Any:
    mesh = fake_mesh([port])
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, _config())).of("1")
    other = fake_mesh([1]).view
    closed = replace(other.clusters["c"], name="closed", endpoints_name="closed")
    clusters = {**mesh.view.clusters, "closed": closed}
    endpoints = {**mesh.view.endpoints, "closed": other.endpoints["c"]}
    mesh.view = View("1", {"reviews:9080": table}, clusters, endpoints)
    return mesh


def _ask(channel: grpc.Channel, server: Seen, number: int) -> Came:
    case = CASES[number]
    server.calls.clear()
    server.failing = {case.method: case.failing}
    server.stalling = {case.method: case.stalling}
    server.metadata = []
    metadata = (("x-case", str(number)), ("x-mine", "here"))
    call: Callable[..., Any] = channel.unary_unary(PATH + case.method)
    code, details = "OK", ""
    try:
        call(case.message, metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        code, details = error.code().name, error.details() or ""
    kept = frozenset(
        one for one in server.metadata if one[0] in ("x-mine", "x-added", "x-envoy-original-path")
    )
    return Came(code, details if details in ("words", "told to") else "", sum(server.calls.values()), kept)


async def test_the_same_comes_of_calls_by_the_same_routes(tmp_path: Path) -> None:
    def ask_all(channel: grpc.Channel, server: Seen) -> list[Came]:
        with channel:
            return [_ask(channel, server, number) for number in range(len(CASES))]

    with grpc_server() as server:
        async with run_envoy(_bootstrap(server.port), tmp_path) as envoy:
            options = [("grpc.default_authority", "reviews:9080")]
            theirs = await asyncio.to_thread(
                ask_all, grpc.insecure_channel(f"127.0.0.1:{envoy.listeners['in']}", options), server
            )
        ours = await asyncio.to_thread(
            ask_all, meshlib_grpc.channel("reviews:9080", _mesh(server.port)), server
        )
    # Envoy answers 504 in gRPC's words, UNAVAILABLE; ours is what gRPC says of any other time that ran out.
    late = {"try's time", "route's time", "hedged, and none answers", "fails, and the next is slow"}
    for number, case in enumerate(CASES):
        if case.name in late:
            assert (theirs[number].code, ours[number].code) == ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            theirs[number] = theirs[number]._replace(code="DEADLINE_EXCEEDED")
    differ = [
        f"{case.name}: Envoy {seen}, ours {mine}"
        for case, seen, mine in zip(CASES, theirs, ours, strict=True)
        if seen != mine
    ]
    assert not differ, "\n".join(differ)
