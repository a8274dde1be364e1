"""How many endpoints may be ejected at a time: a real Envoy and our ledger agree."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.envoy import run_envoy
from support.ports import free_port

from meshlib.core.ledger import ClusterState
from meshlib.core.outlier import learn
from meshlib.core.request import Failed, Failure
from meshlib.dataplane.decode.outlier import decode_outlier
from meshlib.xds import pb

REQUESTS = 60


@pytest.mark.parametrize("always", [None, True, False])
@pytest.mark.parametrize(
    ("size", "percent"), [(1, 10), (1, 50), (1, 100), (3, 10), (3, 34), (4, 50), (5, 40)]
)
async def test_as_many_as_envoy(size: int, percent: int, always: bool | None, tmp_path: Path) -> None:
    """Every endpoint is a closed port, and one failure is enough: all that may be ejected will be."""
    detection: dict[str, Any] = {"consecutive_5xx": 1, "max_ejection_percent": percent, "interval": "60s"}
    if always is not None:
        detection["always_eject_one_host"] = always
    listen, ports = free_port(), [free_port() for _ in range(size)]
    async with run_envoy(bootstrap(listen, ports, detection), tmp_path) as envoy:
        for _ in range(REQUESTS):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"http://127.0.0.1:{listen}/", timeout=5)
        text = urllib.request.urlopen(f"http://{envoy.admin}/clusters?format=json", timeout=5).read()
    (hosts,) = [c["host_statuses"] for c in json.loads(text)["cluster_statuses"] if c["name"] == "c"]
    theirs = sum(host["health_status"].get("failed_outlier_check", False) for host in hosts)

    policy, state = decode_outlier(pb.from_dict(pb.OutlierDetection, detection)), ClusterState()
    for turn in range(REQUESTS):
        learn(policy, state, str(ports[turn % size]), Failed(Failure.CONNECT_FAILED), size, 0.0)
    assert len(state.ejected) == theirs


def bootstrap(listen: int, ports: list[int], detection: dict[str, Any]) -> dict[str, Any]:
    def address(port: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    manager, router = pb.type_url(pb.HttpConnectionManager), pb.type_url(pb.Router)
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c"}}
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": address(listen),
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "http",
                                    "typed_config": {
                                        "@type": manager,
                                        "stat_prefix": "x",
                                        "http_filters": [
                                            {"name": "router", "typed_config": {"@type": router}}
                                        ],
                                        "route_config": {
                                            "virtual_hosts": [
                                                {"name": "v", "domains": ["*"], "routes": [route]}
                                            ]
                                        },
                                    },
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "c",
                    "type": "STATIC",
                    "outlier_detection": detection,
                    "common_lb_config": {"healthy_panic_threshold": {"value": 100}},
                    "load_assignment": {
                        "cluster_name": "c",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": address(p)}} for p in ports]}
                        ],
                    },
                }
            ],
        }
    }
