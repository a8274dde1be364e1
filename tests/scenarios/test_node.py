"""Workloads behind nodes: two real Envoys, namespaces, and peers in this process, everything STRICT."""

import contextlib
import re
import socket
from collections.abc import Iterator

import pytest
from support.commands import wait_until
from support.namespaces import Pod, pod
from support.node_mesh import Node, application, ask, node, registered
from support.secure_mesh import SecureMesh, secure_mesh

import meshlib

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, clusterIP: 10.96.0.7, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: details}
spec: {selector: {app: details}, clusterIP: 10.96.0.8, ports: [{name: http, port: 9080}]}
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), STRICT, SERVICES) as made:
        yield made


@pytest.fixture(scope="module")
def one(mesh: SecureMesh) -> Iterator[Node]:
    with node(mesh, "vm1", "--skip-deprecated-logs") as made:
        yield made


@pytest.fixture(scope="module")
def two(mesh: SecureMesh) -> Iterator[Node]:
    with node(mesh, "vm2", "--skip-deprecated-logs") as made:
        yield made


@pytest.fixture(scope="module")
def ratings(mesh: SecureMesh, one: Node) -> Iterator[Pod]:
    with pod() as made, application("ratings", made, 9080), registered(mesh, "vm1", "ratings", made):
        wait_until(lambda: "ratings/inbound" in one.get("/listeners"), 20, "its listeners")
        yield made


@pytest.fixture(scope="module")
def details(mesh: SecureMesh, two: Node) -> Iterator[Pod]:
    with pod() as made, application("details", made, 9080), registered(mesh, "vm2", "details", made):
        wait_until(lambda: "details/inbound" in two.get("/listeners"), 20, "its listeners")
        yield made


ACCOUNT = "spiffe://cluster.local/ns/default/sa/"
PYTHON_SERVER = ("10.96.0.9", 9080, "reviews:9080")
DETAILS = ("10.96.0.8", 9080, "details:9080")


def test_a_python_client_reaches_it(mesh: SecureMesh, ratings: Pod) -> None:
    with mesh.joined("caller") as joined, meshlib.Client(mesh=joined) as client:
        answer = client.get("http://ratings:9080/x")
    assert answer.status_code == 200
    told = answer.json()
    assert f"URI={ACCOUNT}caller" in told["headers"]["x-forwarded-client-cert"]
    assert (told["app"], told["from"], told["path"]) == ("ratings", "127.0.0.6", "/x")


def test_it_reaches_a_python_server(mesh: SecureMesh, ratings: Pod) -> None:
    with mesh.served():
        wait_until(lambda: ask(ratings, *PYTHON_SERVER).status == 200, 20, "the server")
        assert ask(ratings, *PYTHON_SERVER).told["principal"] == f"{ACCOUNT}ratings"


def test_from_node_to_node_it_goes_by_hbone(ratings: Pod, details: Pod, one: Node) -> None:
    answer = ask(ratings, *DETAILS, path="/d", x_forwarded_client_cert="By=me")
    assert (answer.status, answer.told["app"], answer.told["path"]) == (200, "details", "/d")
    said = answer.told["headers"]["x-forwarded-client-cert"]
    assert re.fullmatch(f'By={ACCOUNT}details;Hash=[0-9a-f]{{64}};Subject="";URI={ACCOUNT}ratings', said), (
        said
    )
    assert one.stat("cluster.ratings/hbone.upstream_rq_total") == 1
    assert ask(ratings, *DETAILS).status == 200
    # Of one caller and one workload the tunnels share a connection.
    assert one.stat("cluster.ratings/hbone.upstream_cx_total") == 1


def test_plain_text_is_refused(ratings: Pod) -> None:
    with socket.create_connection((ratings.address, 9080), 5) as made:
        made.sendall(b"GET / HTTP/1.1\r\nhost: ratings\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert made.recv(100) == b""
