"""Policies of a host, of its subsets and of their ports, from YAML to what happens to a request."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.raw_server import RawServer, raw_server

import meshlib

MESH = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: http}, {name: http-admin, port: 9081, targetPort: admin}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {version: {exact: v1}}}]
    route: [{destination: {host: reviews, subset: v1}}]
    retries: {attempts: 0}
  - route: [{destination: {host: reviews, subset: v2}}]
    retries: {attempts: 0}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    connectionPool:
      tcp: {maxConnectionDuration: 70s, tcpKeepalive: {probes: 5, time: 60s, interval: 10s}, idleTimeout: 50s}
      http: {maxRequestsPerConnection: 2, http1MaxPendingRequests: 6}
    outlierDetection: {consecutive5xxErrors: 2, maxEjectionPercent: 100}
    retryBudget: {percent: 30}
    portLevelSettings:
    - {port: {number: 9081}, connectionPool: {http: {maxRequestsPerConnection: 1, idleTimeout: 40s}}}
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy:
      outlierDetection:
        consecutive5xxErrors: 2
        maxEjectionPercent: 100
        outlierDetectionHttpErrorCodes: [429]
      portLevelSettings:
      - {port: {number: 9081}, outlierDetection: {consecutiveGatewayErrors: 1, maxEjectionPercent: 100}}
  - {name: v2, labels: {version: v2}}
"""
Servers = dict[tuple[str, int], RawServer]


@pytest.fixture
def control(tmp_path: Path) -> Path:
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "reviews.yaml").write_text(MESH)
    return tmp_path / "mesh"


@pytest.fixture
def servers(control: Path) -> Iterator[Servers]:
    """By version and port of the service."""
    with raw_server() as a, raw_server() as b, raw_server() as c, raw_server() as d:

        def joined(version: str, http: RawServer, admin: RawServer) -> meshlib.Registration:
            labels = {"app": "reviews", "version": version}
            ports = {"http": http.port, "admin": admin.port}
            return meshlib.register(control=control, labels=labels, ports=ports, drain=0)

        with joined("v1", a, b), joined("v2", c, d):
            yield {("v1", 9080): a, ("v1", 9081): b, ("v2", 9080): c, ("v2", 9081): d}


def statuses(client: meshlib.Client, version: str, port: int, *asked: int) -> list[int]:
    """What comes back for each status that the server is asked for."""
    url = f"http://reviews:{port}/status/"
    return [client.get(f"{url}{each}", headers={"version": version}).status_code for each in asked]


def test_each_subset_and_each_port_has_its_own_outlier_detection(control: Path, servers: Servers) -> None:
    with meshlib.Client(control=control) as client:
        # The host's: two of 5xx.
        assert statuses(client, "v2", 9080, 429, 429, 500, 500, 200) == [429, 429, 500, 500, 503]
        assert client.get("http://reviews:9080/echo").extensions["meshlib"].flag == "UH"
        # The subset's: two of 429, and a 500 is none.
        assert statuses(client, "v1", 9080, 429, 500, 500, 429, 429, 200) == [429, 500, 500, 429, 429, 503]
        # The port's of the subset: one gateway error.
        assert statuses(client, "v1", 9081, 429, 500, 503, 200) == [429, 500, 503, 503]
        # The port's of the host: none.
        assert statuses(client, "v2", 9081, *[500] * 8, 200) == [*[500] * 8, 200]


def test_each_subset_and_each_port_has_its_own_connections(control: Path, servers: Servers) -> None:
    with meshlib.Client(control=control) as client:
        for version, port in servers:
            assert statuses(client, version, port, *[200] * 4) == [200] * 4
    made = {key: server.connections for key, server in servers.items()}
    assert made == {("v1", 9080): 2, ("v1", 9081): 1, ("v2", 9080): 2, ("v2", 9081): 4}


def test_what_a_pool_is_told(control: Path) -> None:
    with meshlib.connect(control) as mesh:
        clusters = mesh.prepare("reviews:9080").clusters
        host = clusters["outbound|9080|v2|reviews.default.svc.cluster.local"].upstream
        keepalive, budget = host.keepalive, host.limits.budget
        assert keepalive is not None
        assert budget is not None
        assert (keepalive.probes, keepalive.idle, keepalive.interval) == (5, 60, 10)
        assert (host.max_connection_duration, host.idle_timeout, host.limits.max_pending) == (70, 50, 6)
        assert (budget.percent, budget.minimum) == (30, 3)
        clusters = mesh.prepare("reviews:9081").clusters
        port = clusters["outbound|9081|v2|reviews.default.svc.cluster.local"].upstream
        assert (port.keepalive, port.max_connection_duration, port.idle_timeout) == (None, float("inf"), 40)
