"""Access logs that the compiler makes of Istio's YAML: a real Envoy takes them, and its lines are ours.

One Envoy and one client make the same requests; formats and filters are compared line by line.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support.envoy import run_envoy
from support.fake_mesh import fake_mesh
from support.raw_server import raw_server
from support.telemetry import Told

import meshlib
from meshlib.bootstrap import bootstrap
from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.sources.text import documents_in
from meshlib.core.view import TargetListener, View
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.listeners import listener_value
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import accesslog, pb
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour
from tests.envoy.test_access_log import HCM, ROUTER, clusters, routes

WHO = bootstrap({}, service="productpage", state_dir="")
PATHS = ("/status/201/?q=1", "/empty/b", "/direct", "/away", "/lost", "/nowhere")
"""For these an Envoy and a client know the same."""
FORMATS: dict[str, dict[str, Any]] = {
    "text": {
        "text": "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ_WITHOUT_QUERY(:PATH)% %PROTOCOL% "
        "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT%"
    },
    "more": {
        "text": "%% %ROUTE_NAME% %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW% "
        "%REQ(X-MISSING?USER-AGENT):3% %REQ(X-MISSING)% [%REQ(X-EMPTY)%] %START_TIME(%Y)% %HOSTNAME% "
        "%FILTER_STATE(none:PLAIN)% %REQ(X-ENVOY-ORIGINAL-PATH)% →"
    },
    "sparse": {"text": "%REQ(X-MISSING)%|%RESPONSE_FLAGS%|%REQ(:PATH)%"},
    "json": {
        "labels": {
            "path": "%REQ(:PATH)%",
            "code": "%RESPONSE_CODE%",
            "none": "%REQ(X-MISSING)%",
            "deep": {"text": "%PROTOCOL% %RESPONSE_CODE%", "list": ["%BYTES_RECEIVED%", 1, 1.5, True, None]},
            "agent": "%REQ(USER-AGENT)%",
        }
    },
    "sparse-json": {"labels": {"path": "%REQ(:PATH)%", "none": "%REQ(X-MISSING)%", "mixed": "%REQ(X-A)% x"}},
}
FILTERS = (
    "response.code >= 400",
    "response.code / 100 == 4 && response.code % 100 == 18",
    "response.code in [201, 404]",
    "response.code_details == 'direct_response' || response.code == 503",
    "request.path.startsWith('/status') && request.url_path.endsWith('/') && request.query == 'q=1'",
    "request.headers['x-missing'] == 'x'",
    "request.headers['x-missing'] != 'x'",
    "request.headers['x-missing'] == 'x' || response.code == 404",
    "response.code == 404 || request.headers['x-missing'] == 'x'",
    "!(request.headers['x-missing'] == 'x' && response.code < 0)",
    "'X-Empty' in request.headers && !('x-missing' in request.headers)",
    "request.headers['X-Empty'] == ''",
    "has(request.headers.referer) || request.useragent == 'tests'",
    "request.method == 'POST' && request.scheme == 'http' && request.protocol == 'HTTP/1.1'",
    "request.host.contains('reviews') && size(request.host) == 12",
    "request.path.matches('a|o') && !request.path.matches('^/[a-z]*$')",
    "request.duration < duration('1m') && request.duration >= duration('0s')",
    "request.size == 4",
    "xds.route_name == 'direct'",
    "xds.cluster_name.contains('empty')",
    "request.referer == ''",
    "response.code > 500 ? request.path == '/empty/b' : request.path == '/direct'",
    "connection.mtls",
    "response.code / 0 == 1 || response.code == 418",
    "-7 / 2 == -3 && -7 % 2 == -1 && response.code == 404",
)
OMITTING = ("sparse", "sparse-json")


def providers(folder: Path) -> dict[str, Any]:
    """A MeshConfig with a provider for each format and filter, all of them by default."""
    listed = [
        {
            "name": name,
            "envoyFileAccessLog": {
                "path": str(folder / name),
                "logFormat": form,
                "omitEmptyValues": name in OMITTING,
            },
        }
        for name, form in FORMATS.items()
    ]
    plain = {"text": "%REQ(:PATH)%"}
    listed += [
        {"name": f"filter{n}", "envoyFileAccessLog": {"path": str(folder / f"filter{n}"), "logFormat": plain}}
        for n, _ in enumerate(FILTERS)
    ]
    return {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshConfig",
        "extensionProviders": listed,
    }


def document(folder: Path) -> str:
    """All that the compiler is given."""
    entries: list[dict[str, Any]] = [{"providers": [{"name": name} for name in FORMATS]}]
    entries += [
        {"providers": [{"name": f"filter{n}"}], "filter": {"expression": text}}
        for n, text in enumerate(FILTERS)
    ]
    telemetry = {
        "apiVersion": "telemetry.istio.io/v1",
        "kind": "Telemetry",
        "metadata": {"name": "all"},
        "spec": {"accessLogging": entries},
    }
    return str(yaml.safe_dump_all([providers(folder), telemetry], allow_unicode=True))


def listener(folder: Path, flavour: Flavour) -> Any:
    """The Listener of a client of that flavour."""
    compiler = GraphCompiler(build_graph(documents_in(document(folder), "t.yaml").documents), "1")
    found = compiler.resources(Client(flavour, namespace="default"), ["reviews:9080"])
    return next(each for each in found if each.kind is Kind.LISTENER).message()


def ask(client: httpx.Client, base: str) -> None:
    for path in PATHS:
        headers = {"user-agent": "tests", "host": "reviews:9080", "x-empty": "", "x-a": 'ca"fe'}
        client.post(f"{base}{path}", content=b"four", headers=headers)


async def theirs(listed: list[dict[str, Any]], folder: Path) -> None:
    (chain,) = listener(folder, Flavour.ENVOY).filter_chains
    manager = {
        "@type": HCM,
        "stat_prefix": "x",
        "route_config": routes(),
        "access_log": pb.to_dict(pb.unpack(chain.filters[0].typed_config))["access_log"],
        "preserve_external_request_id": True,
        "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
    }
    made = {
        "name": "l",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    static = {"static_resources": {"listeners": [made], "clusters": listed}}
    async with run_envoy(static, folder, "--file-flush-interval-msec", "20") as envoy:
        with httpx.Client(trust_env=False) as client:
            await asyncio.to_thread(ask, client, f"http://127.0.0.1:{envoy.listeners['l']}")
        await asyncio.to_thread(_wait, folder / "text")


def ours(listed: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlib.dataplane.decode.accesslog.MOST_LOGS", 100)
    found = listener_value(listener(folder, Flavour.MESHLIB))
    assert isinstance(found, TargetListener)
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, routes()))
    known = {one["name"]: decode_cluster(pb.from_dict(pb.Cluster, one)) for one in listed}
    mesh: Any = fake_mesh([1])
    mesh.view = View("1", {"reviews:9080": table}, known, {}, telling={"reviews:9080": found.telling})
    told = Told()
    settings = replace(WHO, access_log_dir=folder)
    mesh.telemetry = told.telemetry(settings, lambda: mesh.view, tracers=None, meters=None)
    mesh.telemetry.take(mesh.view.telling)
    with meshlib.Client(mesh=mesh) as client:
        ask(client, "http://reviews:9080")
    told.close()


def _wait(path: Path) -> None:
    until = time.monotonic() + 5
    while not path.exists() or path.read_bytes().count(b"\n") < len(PATHS):
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Of the lines that an Envoy wrote, and of ours."""
    one, other = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
    with raw_server() as server, pytest.MonkeyPatch.context() as monkeypatch:
        listed = clusters(server.port, 1)
        asyncio.run(theirs(listed, one))
        ours(listed, other, monkeypatch)
        yield one, other


@pytest.mark.parametrize("name", FORMATS)
def test_the_lines_are_envoys(name: str, folders: tuple[Path, Path]) -> None:
    envoys, mine = ((folder / name).read_text().splitlines() for folder in folders)
    assert len(mine) == len(PATHS)
    if "labels" in FORMATS[name]:
        assert list(map(json.loads, mine)) == list(map(json.loads, envoys))
    else:
        assert mine == envoys


@pytest.mark.parametrize("number", range(len(FILTERS)), ids=FILTERS)
def test_the_filters_find_what_envoy_finds(number: int, folders: tuple[Path, Path]) -> None:
    envoys, mine = ((folder / f"filter{number}").read_text().splitlines() for folder in folders)
    assert mine == envoys


async def test_every_operator_that_is_let_through_is_one_of_envoys(tmp_path: Path) -> None:
    plain = sorted(accesslog.PLAIN | (accesslog.ONLY_OF_ENVOY - {"PATH"}))
    arguments = {
        "METADATA": "ROUTE:a:b",
        "FILTER_STATE": "a:PLAIN",
        "UPSTREAM_FILTER_STATE": "a:PLAIN",
        "PATH": "NQ",
        "TRAILER": "a",
    }
    more = [f"{name}({arguments.get(name, 'a:b')})" for name in sorted(accesslog.ONLY_OF_ENVOY_WITH_ARGUMENT)]
    form = "".join(f"%{one}%" for one in (*plain, *more))
    assert accesslog.wrong(form) == ""
    log = {
        "name": "text",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(tmp_path / "log"),
            "log_format": {"text_format_source": {"inline_string": form}},
        },
    }
    admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    manager = {
        "@type": HCM,
        "stat_prefix": "x",
        "route_config": {"name": "r"},
        "access_log": [log],
        "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
    }
    made = {"name": "l", **admin, "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}]}
    async with run_envoy({"static_resources": {"listeners": [made]}}, tmp_path):
        pass
