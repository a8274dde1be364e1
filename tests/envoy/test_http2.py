"""HTTP/2 with a real Envoy: what it makes of misdeeds we make of them, and it serves us as a peer."""

import asyncio
import random
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from support.envoy import run_envoy
from support.fake_mesh import fake_mesh
from support.h2_server import H2Server, h2_server

import meshlib
from meshlib.core.http2 import Http2
from meshlib.core.ledger import Ledger
from meshlib.core.outbound import flow
from meshlib.core.request import Failure, RequestHead
from meshlib.core.view import View
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.decode.clusters import HTTP_OPTIONS, decode_cluster
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.drive import AsyncBody, FlightFailed, adrive
from meshlib.dataplane.http.asynchronous import Connections
from meshlib.xds import pb

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_FILE = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
_H2 = {"explicit_http_config": {"http2_protocol_options": {}}}
_OPTIONS = {HTTP_OPTIONS: {"@type": f"type.googleapis.com/{HTTP_OPTIONS}", **_H2}}

MISDEEDS = (
    *(f"reset/{code}" for code in (0, 1, 2, 3, 5, 7, 8, 10, 11, 4242)),
    *("refuse", "close", "raw/text", "raw/push", "raw/settings", "raw/data", "raw/zero"),
    *("status/200", "status/503", "early", "inform", "trailers"),
)
CONDITIONS = ("", "refused-stream", "reset", "connect-failure")
RAW = {
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "push": b"\x00\x00\x05\x05\x04STRM\x00\x00\x00\x02\x88",
    "settings": b"\x00\x00\x05\x04\x00\x00\x00\x00\x00hello",
    "data": b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x",
    "zero": b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
}


class Seen(NamedTuple):
    """What became of a request."""

    status: int
    flags: frozenset[str]
    tries: int


def seen(server: H2Server, name: str, status: int, flags: str) -> Seen:
    return Seen(status, frozenset(flags.split(",")), sum(head["x-id"] == name for _, head in server.requests))


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": address(port)}}
    return {
        "name": "c",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": _OPTIONS,
    }


def routes() -> dict[str, Any]:
    made = []
    for number, condition in enumerate(CONDITIONS):
        action: dict[str, Any] = {"cluster": "c", "timeout": "5s", "prefix_rewrite": "/"}
        if condition:
            back_off = {"base_interval": "0.001s", "max_interval": "0.001s"}
            action["retry_policy"] = {"retry_on": condition, "num_retries": 2, "retry_back_off": back_off}
        made.append({"name": f"r{number}", "match": {"prefix": f"/r{number}/"}, "route": action})
    return {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": made}]}


def bootstrap(port: int, log: Path, http: Mapping[str, Any]) -> dict[str, Any]:
    manager = {
        "@type": _HCM,
        "stat_prefix": "main",
        "route_config": routes(),
        "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
        "access_log": [
            {
                "name": "log",
                "typed_config": {
                    "@type": _FILE,
                    "path": str(log),
                    "log_format": {
                        "text_format_source": {
                            "inline_string": "%REQ(X-ID)% %RESPONSE_CODE% %RESPONSE_FLAGS%\n"
                        }
                    },
                },
            }
        ],
        **http,
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    return {
        "node": {"id": "oracle", "cluster": "oracle"},
        "static_resources": {
            "listeners": [{"name": "main", "address": address(0), "filter_chains": [chain]}],
            "clusters": [cluster(port)],
        },
    }


async def ask_envoy(server: H2Server, folder: Path) -> dict[str, Seen]:
    log = folder / "access.log"
    async with run_envoy(
        bootstrap(server.port, log, {}), folder, "--file-flush-interval-msec", "20"
    ) as envoy:
        for number, misdeed in product(range(len(CONDITIONS)), MISDEEDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", envoy.listeners["main"])
            lines = f"GET /r{number}/{misdeed} HTTP/1.1\r\nhost: a\r\nx-id: {number}-{misdeed}\r\n"
            writer.write(f"{lines}connection: close\r\n\r\n".encode())
            await asyncio.wait_for(reader.read(), 5)
            writer.close()
        while len(lines := log.read_text().splitlines()) < len(CONDITIONS) * len(MISDEEDS):
            await asyncio.sleep(0.01)
    found = {}
    for line in lines:
        name, status, flag = line.split()
        found[name] = seen(server, name, int(status), flag)
    return found


async def ask_ourselves(server: H2Server) -> dict[str, Seen]:
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, routes()))
    made = decode_cluster(pb.from_dict(pb.Cluster, cluster(server.port)))
    assert made.upstream.http2 == Http2()
    view = View("1", {"a:80": table}, {"c": made})
    # Each request on a new connection: what a kept one did not process is made anew, which is no try.
    connections = Connections(time.monotonic, longest_idle=0.0)
    ledger, dice = Ledger(), random.Random(1)

    class Hands:
        async def send(self, attempt: Any) -> Any:
            return await connections.send(attempt, b"")

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

        def mirror(self, mirror: Any) -> None:
            raise AssertionError(mirror)

    found = {}
    for number, misdeed in product(range(len(CONDITIONS)), MISDEEDS):
        name = f"{number}-{misdeed}"
        head = RequestHead("GET", "http", "a", f"/r{number}/{misdeed}", [(b"x-id", name.encode())])
        steps = flow(head, RequestBody(b""), view, "a:80", ledger, time.monotonic, dice, ("127.0.0.1", 1))
        try:
            answer = await adrive(steps, Hands())
        except FlightFailed as error:
            status = 502 if error.failed.how is Failure.PROTOCOL else 503
            found[name] = seen(server, name, status, error.facts.flag)
            continue
        if isinstance(answer.body, AsyncBody):
            async for _ in answer.body:
                pass
        found[name] = seen(server, name, answer.status, answer.facts.flag)
    connections.close()
    return found


async def test_misdeeds_of_a_peer_end_as_they_do_for_envoy(tmp_path: Path) -> None:
    with h2_server() as server:
        server.raw = RAW
        theirs = await ask_envoy(server, tmp_path)
    with h2_server() as server:
        server.raw = RAW
        ours = await ask_ourselves(server)
    assert len(theirs) == len(CONDITIONS) * len(MISDEEDS)
    differing = [
        f"{name}: Envoy {theirs[name]}, we {ours[name]}" for name in theirs if theirs[name] != ours[name]
    ]
    assert not differing, "\n".join(differing)


async def test_envoy_serves_us_and_says_farewell(tmp_path: Path) -> None:
    http = {"codec_type": "HTTP2", "common_http_protocol_options": {"max_requests_per_connection": 5}}
    with h2_server() as server:
        async with run_envoy(bootstrap(server.port, tmp_path / "log", http), tmp_path) as envoy:
            mesh = fake_mesh([envoy.listeners["main"]], http2=Http2())
            body = b"0123456789" * 300_000
            async with meshlib.AsyncClient(mesh=mesh, base_url="http://reviews:9080/r0") as client:  # type: ignore[arg-type]
                echoed = await client.post("/echo", content=body)
                assert (echoed.content, echoed.http_version) == (body, "HTTP/2")
                answers = await asyncio.gather(*(client.get("/status/200") for _ in range(60)))
                assert [answer.status_code for answer in answers] == [200] * 60
                assert (await client.head("/status/200")).status_code == 200

            def ask() -> list[int]:
                with meshlib.Client(mesh=mesh, base_url="http://reviews:9080/r0") as client:  # type: ignore[arg-type]
                    assert client.post("/echo", content=body).content == body
                    return [client.get("/status/200").status_code for _ in range(60)]

            assert await asyncio.to_thread(ask) == [200] * 60
            assert mesh.in_flight() == 0
