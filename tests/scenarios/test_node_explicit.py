"""Workloads behind a node's Envoy that are not captured: no root, no namespace, an HTTP proxy."""

import contextlib
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from support.commands import wait_until
from support.node_mesh import Node, application, node, registered
from support.ports import free_port
from support.secure_mesh import SecureMesh, secure_mesh

import meshlib
from meshlib.bootstrap import bootstrap
from meshlib.cli.explain_held import held_of_control
from meshlib.cli.explain_node import decide_outbound, decide_served, workloads
from meshlib.control.registration import Place
from meshlib.core.request import Peer, RequestHead
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds.names import NODE_NAMESPACE
from meshlib.xds.node import Client, Flavour

ADDRESS = "127.0.0.2"
RULES = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080, targetPort: http}, {name: tcp, port: 7}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec: {selector: {matchLabels: {app: ratings}}, rules: [{to: [{operation: {methods: [GET]}}]}]}
"""
ACCOUNT = "spiffe://cluster.local/ns/default/sa/"


class Behind:
    """The workload ratings, and the client of its proxy."""

    def __init__(self, port: int, proxy: int) -> None:
        self.port, self.proxy = port, proxy

    def ask(self, url: str, **options: str) -> httpx.Response:
        """One request as an application makes it that knows HTTP_PROXY."""
        with httpx.Client(proxy=f"http://127.0.0.1:{self.proxy}", trust_env=False, verify=False) as client:
            return client.get(url, **options)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureMesh]:
    with secure_mesh(tmp_path_factory.mktemp("mesh"), RULES) as made:
        yield made


@pytest.fixture(scope="module")
def one(mesh: SecureMesh) -> Iterator[Node]:
    with node(mesh, "vm1", "--skip-deprecated-logs") as made:
        yield made


@pytest.fixture(scope="module")
def ratings(mesh: SecureMesh, one: Node) -> Iterator[Behind]:
    port, own, proxy = free_port(), free_port(), free_port()
    place = Place("ratings", app_ports=((port, own),), proxy_port=proxy)
    with (
        application("ratings", None, own, "127.0.0.1"),
        registered(mesh, "vm1", "ratings", ports=(("http", port),), place=place, address=ADDRESS),
    ):
        wait_until(lambda: "ratings/proxy" in one.get("/listeners"), 20, "its listeners")
        yield Behind(port, proxy)


def test_a_python_client_reaches_it(mesh: SecureMesh, ratings: Behind) -> None:
    with mesh.joined("caller") as joined, meshlib.Client(mesh=joined) as client:
        answer = client.get("http://ratings:9080/x")
        assert client.post("http://ratings:9080/x").status_code == 403
    assert answer.status_code == 200
    assert f"URI={ACCOUNT}caller" in answer.json()["headers"]["x-forwarded-client-cert"]


def test_it_reaches_a_python_server(mesh: SecureMesh, ratings: Behind) -> None:
    with mesh.served():
        wait_until(lambda: ratings.ask("http://reviews:9080/").status_code == 200, 20, "the server")
        assert ratings.ask("http://reviews:9080/a").json()["principal"] == f"{ACCOUNT}ratings"


def test_it_reaches_itself_by_its_name(ratings: Behind) -> None:
    told = ratings.ask("http://ratings.default.svc.cluster.local:9080/me").json()
    assert (told["app"], told["path"]) == ("ratings", "/me")


def test_what_is_not_of_the_mesh_is_looked_up(ratings: Behind) -> None:
    port = free_port()
    with application("outside", None, port, "127.0.0.1"):
        assert ratings.ask(f"http://localhost:{port}/out").json()["app"] == "outside"
    # Another port of a known host is not the mesh's.
    assert ratings.ask("http://ratings:1/").status_code == 503


def test_plain_text_and_tunnels_are_refused(ratings: Behind) -> None:
    def raw(address: str, port: int, data: bytes) -> bytes:
        with socket.create_connection((address, port), 5) as made, contextlib.suppress(ConnectionResetError):
            made.sendall(data)
            return made.recv(100)
        return b""

    assert raw(ADDRESS, ratings.port, b"GET / HTTP/1.1\r\nhost: ratings\r\n\r\n") == b""
    answer = raw("127.0.0.1", ratings.proxy, b"CONNECT ratings:9080 HTTP/1.1\r\nhost: ratings:9080\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_explain_says_what_its_envoy_does(mesh: SecureMesh, ratings: Behind) -> None:
    token = mesh.tokens.issue(SpiffeId("cluster.local", NODE_NAMESPACE, "vm1"), 60, time.time())
    who = {"namespace": NODE_NAMESPACE, "service_account": "vm1", "token": token, "state_dir": ""}
    settings = bootstrap({}, **(mesh.settings("vm1") | who))
    held = held_of_control(settings, Client(Flavour.NODE, NODE_NAMESPACE, "vm1", node="vm1"))
    assert workloads(held) == ["ratings"]
    peer = Peer(("127.0.0.1", 0), ("127.0.0.1", ratings.port), f"{ACCOUNT}caller", tls=True)
    for method, status in (("GET", None), ("POST", 403)):  # as in the first test
        head = RequestHead(method, "http", "ratings", "/x", [])
        answer = decide_served(held, "ratings", head, ratings.port, peer, time.time())
        assert answer is not None
        assert (answer["mode"], answer["status"], answer["hbone"]) == ("STRICT", status, False)
    for authority, cluster in (("ratings:9080", "ratings.default.svc.cluster.local"), ("localhost:1", None)):
        head = RequestHead("GET", "http", authority, "/x", [])
        found = decide_outbound(held, "ratings", head, 9080, authority)["request"]
        assert [one["host"] for one in found["clusters"]] == [cluster]
