"""How often a call is sent if its peer breaks off, leaves or breaks the rules; gRPC's goes through Envoy."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
from support.envoy import run_envoy
from support.fake_mesh import fake_mesh
from support.grpc_peer import PATH, GrpcPeer, grpc_peer

import meshlib_grpc
from meshlib.dataplane.decode.clusters import HTTP_OPTIONS

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_H2 = {"explicit_http_config": {"http2_protocol_options": {}}}
_ROUTE = {
    "timeout": "15s",
    "retry_policy": {
        "retry_on": "reset,unavailable",
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.001s"},
    },
}
METHODS = (
    "only14",
    "head-message-status14",
    "head-wait-status14",
    "named-wait-status14",
    "named-message-status14",
    "head-message-wait-close",
    "named-message-wait-close",
    "head-message-wait-reset2",
    "head-wait-close",
    "named-wait-close",
    "named-wait-reset2",
    "goaway",
    "reset2",
    "reset7",
    "reset8",
    "close",
    "garbage",
    "huge",
    "head-message-wait-garbage",
    "unpacked",
)
BARE = {"head-wait-status14", "head-wait-close"}
"""A head that says nothing and has no message after it: gRPC's library does not say that it came."""
DROPPED = {
    "head-message-status14",
    "head-message-wait-close",
    "head-message-wait-reset2",
    "head-message-wait-garbage",
}
"""The message of a call with one response that ends badly: gRPC's library for tasks drops it."""
Came = tuple[str, int]


def _bootstrap(port: int) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c", **_ROUTE}}
    manager = {
        "@type": _HCM,
        "stat_prefix": "x",
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    cluster = {
        "name": "c",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: {"@type": f"type.googleapis.com/{HTTP_OPTIONS}", **_H2}
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _call(channel: grpc.Channel, peer: GrpcPeer, method: str, *, streams: bool) -> Came:
    peer.asked.clear()
    code = "OK"
    try:
        if streams:
            for _ in channel.unary_stream(PATH + method)(b"x", timeout=20):
                pass
        else:
            channel.unary_unary(PATH + method)(b"x", timeout=20)
    except grpc.RpcError as error:
        code = error.code().name
    return code, peer.asked[method]


async def _acall(channel: grpc.aio.Channel, peer: GrpcPeer, method: str, *, streams: bool) -> Came:
    peer.asked.clear()
    code = "OK"
    try:
        if streams:
            async for _ in channel.unary_stream(PATH + method)(b"x", timeout=20):
                pass
        else:
            await channel.unary_unary(PATH + method)(b"x", timeout=20)
    except grpc.RpcError as error:
        code = error.code().name
    return code, peer.asked[method]


async def test_a_call_is_sent_as_often_as_envoy_sends_it(tmp_path: Path) -> None:
    cases = [(method, streams) for method in METHODS for streams in (False, True)]

    def all_of(channel: grpc.Channel) -> list[Came]:
        with channel:
            return [_call(channel, peer, method, streams=streams) for method, streams in cases]

    with grpc_peer() as peer:
        async with run_envoy(_bootstrap(peer.port), tmp_path) as envoy:
            once = [("grpc.enable_retries", 0)]
            theirs = await asyncio.to_thread(
                all_of, grpc.insecure_channel(f"127.0.0.1:{envoy.listeners['in']}", once)
            )
        mesh: Any = fake_mesh([peer.port], route=_ROUTE)
        ours = await asyncio.to_thread(all_of, meshlib_grpc.channel("reviews:9080", mesh))
        async with meshlib_grpc.aio_channel("reviews:9080", mesh) as channel:
            tasks = [await _acall(channel, peer, method, streams=streams) for method, streams in cases]
    differ = []
    for (method, streams), seen, mine, of_tasks in zip(cases, theirs, ours, tasks, strict=True):
        # After a head Envoy resets the stream, which is INTERNAL for gRPC's client; ours is UpstreamReset.
        wanted = ("UNAVAILABLE", seen[1]) if seen == ("INTERNAL", 1) else seen
        known = (("UNAVAILABLE", 3), ("UNAVAILABLE", 3)) if method in BARE else (wanted, wanted)
        if method in DROPPED and not streams:
            known = (wanted, ("UNAVAILABLE", 3))
        if (mine, of_tasks) != known or (known != (wanted, wanted) and wanted[1] != 1):
            differ.append(f"{method}, {streams=}: Envoy {seen}, threads {mine}, tasks {of_tasks}")
    assert not differ, "\n".join(differ)
