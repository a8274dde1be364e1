"""A real Envoy as the judge of our picks: the same clusters and endpoints, and who answers a request.

All clusters of a test share one list of endpoints, which may change while Envoy runs: a file that it
watches. Endpoints are 127.0.0.2, 127.0.0.3, …, on one port: listeners of the same Envoy. A request names
its cluster in the header `x-cluster`; the answer's `x-host` is the endpoint that took it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.envoy import RealEnvoy, run_envoy
from support.oracle_http import Received, receive
from support.ports import free_port

from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import EndpointSet
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.endpoints import decode_endpoints
from meshlib.xds import pb

BATCH = 250
CONNECTIONS = 4
Call = tuple[str, str, Sequence[tuple[str, str]]]
"""Cluster, path, headers."""


class Balanced:
    """Envoy and this library with the same clusters and endpoints."""

    def __init__(self, envoy: RealEnvoy, port: int, folder: Path, clusters: Mapping[str, Any]) -> None:
        self._envoy, self._port, self._folder = envoy, port, folder
        self._version = 0
        self.clusters = {name: _decoded(name, said) for name, said in clusters.items()}
        self.endpoints = EndpointSet()

    def address(self, number: int) -> str:
        """The endpoint of that number, from 0."""
        return f"127.0.0.{number + 2}:{self._port}"

    def endpoint(self, number: int, **more: Any) -> dict[str, Any]:
        """An LbEndpoint; `hostname` is its Endpoint's."""
        where = {"socket_address": {"address": f"127.0.0.{number + 2}", "port_value": self._port}}
        inner = {"address": where, **({"hostname": more.pop("hostname")} if "hostname" in more else {})}
        return {"endpoint": inner, **more}

    async def change(self, localities: Sequence[Mapping[str, Any]], **policy: Any) -> None:
        """The clusters have these endpoints from now on, for both."""
        said = {"cluster_name": "all", "endpoints": list(localities), "policy": policy}
        self.endpoints = decode_endpoints(pb.from_dict(pb.ClusterLoadAssignment, said))
        self._version += 1
        version = f"v{self._version}"
        write_eds(self._folder, said, version)
        wanted = len(self.clusters)
        for _ in range(500):
            stats = (await self._envoy.get("/stats?filter=cluster.*version_text")).decode()
            if stats.count(f'"{version}"') == wanted:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"Envoy did not take the endpoints:\n{(self._folder / 'envoy.log').read_text()}")

    async def ask(self, calls: Sequence[Call], batch: int = BATCH) -> list[Received]:
        """The answers, in order. A `batch` is written at once; answers of Envoy's own bear none but 1."""
        parts = [calls[n::CONNECTIONS] for n in range(CONNECTIONS)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask_some(part, batch)) for part in parts]
        answers: list[Any] = [None] * len(calls)
        for number, task in enumerate(tasks):
            answers[number::CONNECTIONS] = task.result()
        return answers

    async def _ask_some(self, calls: Sequence[Call], batch: int) -> list[Received]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._envoy.listeners["main"])
        answers: list[Received] = []
        for start in range(0, len(calls), batch):
            some = calls[start : start + batch]
            writer.write(b"".join(map(encode, some)))
            answers += [await receive(reader) for _ in some]
        writer.close()
        await writer.wait_closed()
        return answers


def encode(call: Call) -> bytes:
    """A call on the wire."""
    cluster, path, headers = call
    lines = [f"GET {path} HTTP/1.1", "host: x", f"x-cluster: {cluster}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _decoded(name: str, said: Mapping[str, Any]) -> Cluster:
    return decode_cluster(pb.from_dict(pb.Cluster, {"name": name, "type": "EDS", **said}))


def write_eds(folder: Path, said: Mapping[str, Any], version: str) -> None:
    """The file that Envoy watches; it heeds a rename only."""
    response = {
        "version_info": version,
        "resources": [{"@type": pb.type_url(pb.ClusterLoadAssignment), **said}],
    }
    (folder / "eds.new").write_text(json.dumps(response))
    (folder / "eds.new").rename(folder / "eds.json")


@asynccontextmanager
async def balanced(
    clusters: Mapping[str, Mapping[str, Any]],
    folder: Path,
    *,
    size: int,
    routes: Mapping[str, Mapping[str, Any]] | None = None,
) -> AsyncIterator[Balanced]:
    """Envoy with these clusters, and `size` endpoints to be used. `routes`, by cluster, is what their Route
    has besides. A request with `x-fail` is answered with 503.
    """
    port = free_port()
    write_eds(folder, {"cluster_name": "all"}, "v0")
    listeners = [_who(number, port) for number in range(size)]
    listeners.append(_main({name: (routes or {}).get(name, {}) for name in clusters}))
    eds = {"eds_config": {"path_config_source": {"path": str(folder / "eds.json")}}, "service_name": "all"}
    made = [{"name": n, "type": "EDS", "eds_cluster_config": eds, **said} for n, said in clusters.items()]
    bootstrap = {
        "node": {"id": "oracle", "cluster": "oracle"},
        "static_resources": {"listeners": listeners, "clusters": made},
    }
    async with run_envoy(bootstrap, folder) as envoy:
        yield Balanced(envoy, port, folder, clusters)


def _who(number: int, port: int) -> dict[str, Any]:
    fails = {"name": "x-fail", "present_match": True}
    routes = [
        {"match": {"prefix": "/", "headers": [fails]}, "direct_response": {"status": 503}},
        {"match": {"prefix": "/"}, "direct_response": {"status": 200}},
    ]
    return _listener(f"who-{number}", f"127.0.0.{number + 2}", port, routes)


def _main(routes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    host = {"header": {"key": "x-host", "value": "%UPSTREAM_REMOTE_ADDRESS%"}}
    made = []
    for name, said in routes.items():
        named = {"name": "x-cluster", "string_match": {"exact": name}}
        action = {"cluster": name, **said.get("route", {})}
        match = {"prefix": "/", "headers": [named]}
        made.append({"response_headers_to_add": [host], **said, "match": match, "route": action})
    return _listener("main", "127.0.0.1", 0, made)


def _listener(name: str, address: str, port: int, routes: Sequence[Any]) -> dict[str, Any]:
    manager = {
        "@type": pb.type_url(pb.HttpConnectionManager),
        "stat_prefix": name,
        "http_filters": [{"name": "router", "typed_config": {"@type": pb.type_url(pb.Router)}}],
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": list(routes)}]},
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
