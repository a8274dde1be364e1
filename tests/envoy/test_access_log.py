"""A real Envoy's access log, in Istio's format, and the library's, for the same requests to the same server.

What only a proxy has is left out of the comparison: times, the addresses of the connections before and behind
it, and why a connection failed in its own words.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.envoy import run_envoy
from support.fake_mesh import fake_mesh
from support.ports import free_port
from support.raw_server import RawServer, raw_server
from support.telemetry import Told

import meshlib
from meshlib.bootstrap import bootstrap
from meshlib.core.view import View
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import accesslog, pb

WHO = bootstrap({}, service="productpage", state_dir="")
ONLY_OF_A_PROXY = (
    *("start_time", "duration", "upstream_local_address", "downstream_local_address"),
    *("downstream_remote_address", "upstream_transport_failure_reason"),
)
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
FILE = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"


def clusters(port: int, closed: int) -> list[dict[str, Any]]:
    """One that serves, one whose port is closed, one without an endpoint."""
    return [_cluster("serves", port), _cluster("closed", closed), _cluster("empty")]


def _cluster(name: str, *ports: int) -> dict[str, Any]:
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
        for port in ports
    ]
    full = f"outbound|9080||{name}.default.svc.cluster.local"
    return {
        "name": full,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": full, "endpoints": [{"lb_endpoints": endpoints}]},
    }


def routes() -> dict[str, Any]:
    """By the first part of the path."""

    def to(prefix: str, cluster: str, timeout: str = "0s") -> dict[str, Any]:
        action = {"cluster": f"outbound|9080||{cluster}.default.svc.cluster.local", "timeout": timeout}
        return {"name": f"to-{cluster}", "match": {"prefix": prefix}, "route": action}

    listed = [
        to("/closed", "closed"),
        to("/empty", "empty"),
        to("/slow", "serves", "0.2s"),
        {
            "name": "direct",
            "match": {"prefix": "/direct"},
            "direct_response": {"status": 418, "body": {"inline_string": "tea"}},
        },
        {"name": "away", "match": {"prefix": "/away"}, "redirect": {"path_redirect": "/home"}},
        {
            "name": "lost",
            "match": {"prefix": "/lost"},
            "route": {"cluster": "outbound|1||lost", "timeout": "0s"},
        },
        to("/status", "serves"),
        to("/halfbody", "serves"),
        to("/close", "serves"),
    ]
    host = {"name": "v", "domains": ["*"], "routes": listed}
    return {
        "name": "r",
        "ignore_port_in_host_matching": True,
        "validate_clusters": False,
        "virtual_hosts": [host],
    }


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


PATHS = (
    *("/status/201/?q=1", "/closed/a", "/empty/b", "/slow/2", "/direct", "/away", "/lost", "/nowhere"),
    *("/halfbody", "/close"),
)


RESET = "upstream_reset_before_response_started{remote_connection_failure"
BROKEN = "upstream_reset_after_response_started"
DIFFERENT = {
    # Where Envoy answers with a body of its own, the application is raised an error.
    "/closed/a": {
        "bytes_sent": (0, 98),
        "response_code_details": (f"{RESET}}}", f"{RESET}|delayed_connect_error:_Connection_refused}}"),
    },
    "/slow/2": {"bytes_sent": (0, 24)},
    # A body that is shorter than announced counts as a lost connection, for the caller's errors, too.
    "/halfbody": {
        "response_code_details": (f"{BROKEN}{{connection_termination}}", f"{BROKEN}{{protocol_error}}"),
        "response_flags": ("UC", "UPE"),
    },
}


async def test_the_lines_are_envoys(server: RawServer, tmp_path: Path) -> None:
    closed = free_port()
    theirs = await _theirs(clusters(server.port, closed), tmp_path)
    ours = await asyncio.to_thread(_ours, clusters(server.port, closed), tmp_path)
    assert list(ours) == list(theirs) == list(PATHS)
    different = {
        path: {name: (ours[path][name], value) for name, value in line.items() if ours[path][name] != value}
        for path, line in theirs.items()
    }
    assert {path: found for path, found in different.items() if found} == DIFFERENT


def test_the_formats_name_the_same_operators() -> None:
    text = {piece for piece in accesslog.TEXT.split("%")[1::2] if piece}
    assert text == {value.strip("%") for value in accesslog.JSON.values()}


def _ask(client: httpx.Client, base: str) -> None:
    for number, path in enumerate(PATHS):
        headers = {"user-agent": "tests", "x-request-id": f"id-{number}", "host": "reviews:9080"}
        try:
            # Where nobody reads a body, it is chance whether Envoy has seen it by then.
            body = b"" if path in ("/halfbody", "/closed/a") else b"four"
            client.post(f"{base}{path}", content=body, headers=headers)
        except httpx.TransportError:
            continue


async def _theirs(listed: list[dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "envoy-access.log"
    form = {"text_format_source": {"inline_string": accesslog.TEXT}}
    logs = [
        {
            "name": "text",
            "typed_config": {"@type": FILE, "path": str(folder / "envoy-text.log"), "log_format": form},
        },
        {
            "name": "json",
            "typed_config": {
                "@type": FILE,
                "path": str(path),
                "log_format": {"json_format": dict(accesslog.JSON)},
            },
        },
    ]
    manager = {
        "@type": HCM,
        "stat_prefix": "x",
        "route_config": routes(),
        "access_log": logs,
        "access_log_options": {"flush_access_log_on_new_request": False},
        "preserve_external_request_id": True,
        "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
    }
    listener = {
        "name": "l",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    static = {"static_resources": {"listeners": [listener], "clusters": listed}}
    async with run_envoy(static, folder, "--file-flush-interval-msec", "20") as envoy:
        with httpx.Client(trust_env=False) as client:
            await asyncio.to_thread(_ask, client, f"http://127.0.0.1:{envoy.listeners['l']}")
        return await asyncio.to_thread(_read, path)


def _ours(listed: list[dict[str, Any]], folder: Path, encoding: str = "JSON") -> dict[str, dict[str, Any]]:
    path = folder / "access.log"
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, routes()))
    known = {one["name"]: decode_cluster(pb.from_dict(pb.Cluster, one)) for one in listed}
    mesh: Any = fake_mesh([1])
    mesh.view = View("1", {"reviews:9080": table}, known, {})
    told = Told()
    settings = replace(WHO, access_log=str(path), access_log_encoding=encoding)
    mesh.telemetry = told.telemetry(settings, lambda: mesh.view, tracers=None, meters=None)
    with meshlib.Client(mesh=mesh) as client:
        _ask(client, "http://reviews:9080")
    told.close()
    return _read(path) if encoding == "JSON" else {}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The lines by path; waits until all are there."""
    until = time.monotonic() + 5
    while len(lines := path.read_text().splitlines() if path.exists() else []) < len(PATHS):
        assert time.monotonic() < until, lines
        time.sleep(0.02)
    found = [json.loads(line) for line in lines]
    for line in found:
        line["upstream_service_time"] = (line["upstream_service_time"] or "").isdigit()
    return {line["path"]: {k: v for k, v in line.items() if k not in ONLY_OF_A_PROXY} for line in found}


async def test_a_line_of_text_is_envoys(server: RawServer, tmp_path: Path) -> None:
    theirs = await _theirs(clusters(server.port, free_port()), tmp_path)
    assert theirs
    lines = (tmp_path / "envoy-text.log").read_text().splitlines()
    ours = await asyncio.to_thread(_ours, clusters(server.port, free_port()), tmp_path, "TEXT")
    assert ours == {}
    mine = (tmp_path / "access.log").read_text().splitlines()
    for number in (0, 2, 4, 5, 6, 7):
        assert _plain(mine[number]) == _plain(lines[number])


def _plain(line: str) -> str:
    """Without times, and without the connections before and behind a proxy."""
    line = re.sub(r"^\[[^]]+\]", "[TIME]", line)
    line = re.sub(r'" (\d+) (\d+) \d+ (\d+|-) "', r'" \1 \2 DURATION WAITED "', line)
    return re.sub(r"\S+ \S+ \S+ - (\S+)$", r"ADDRESSES - \1", line)
