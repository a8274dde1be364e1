"""A gateway before a mesh in STRICT mode: `meshlib gateway`, a real Envoy, real workloads."""

from collections.abc import Iterator

import pytest
from support.commands import wait_until
from support.edge import Edge, edge
from support.secure_mesh import SecureMesh, secure_mesh

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: bookinfo-gateway}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ["*"]
"""
ROUTES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bookinfo}
spec:
  hosts: [xyz.com]
  gateways: [bookinfo-gateway]
  http:
  - match: [{uri: {exact: /productpage}}, {uri: {prefix: /static}}]
    route: [{destination: {host: reviews, port: {number: 9080}}}]
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), STRICT, GATEWAY, ROUTES) as made, made.served():
        yield made


@pytest.fixture(scope="module")
def gate(mesh: SecureMesh) -> Iterator[Edge]:
    with edge(mesh, 80) as made:
        wait_until(lambda: made.get("/productpage", "xyz.com").status_code == 200, 30, "the route")
        yield made


def test_the_tutorials_request_reaches_the_workload(gate: Edge) -> None:
    answer = gate.get("/productpage", "xyz.com")
    assert answer.status_code == 200
    told = answer.json()
    assert told["principal"] == "spiffe://cluster.local/ns/default/sa/ingress"
    assert told["path"] == "/productpage"
    assert answer.headers["server"] == "istio-envoy"


@pytest.mark.parametrize(("path", "host"), [("/productpage", "other.com"), ("/elsewhere", "xyz.com")])
def test_what_no_rule_is_for_is_not_found(gate: Edge, path: str, host: str) -> None:
    assert gate.get(path, host).status_code == 404


def test_it_says_where_it_listens(gate: Edge) -> None:
    assert f"listens at 127.0.0.1:{gate.ports[80]} for port 80 of its Gateways" in gate.said
    assert "Deprecated" not in gate.said
