"""A real Envoy takes what is compiled of TLS, as a client and as a server, and does with it what it says."""

import ssl
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
from support.commands import wait_until
from support.envoy_client import envoy
from support.mutual_server import client_context, mutual_server, server_context
from support.named_server import named_server
from support.ports import free_port
from support.served import Served
from support.small_ca import Issued, SmallCa

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.sources.text import documents_in
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import OWN_SECRET, inbound_listener
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource

CALLER = "spiffe://cluster.local/ns/default/sa/caller"
REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
MESH = """
apiVersion: v1
kind: Service
metadata: {{name: reviews}}
spec:
  selector: {{app: reviews}}
  ports: [{{name: http, port: {port}}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: mutual}}
spec: {{address: 127.0.0.1, ports: {{http: {mutual}}}, labels: {{app: reviews}}, serviceAccount: {account}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: outside}}
spec:
  hosts: [bank.example]
  resolution: STATIC
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {outside}}}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: outside}}
spec:
  host: bank.example
  trafficPolicy:
    tls:
      mode: MUTUAL
      clientCertificate: {folder}/c.pem
      privateKey: {folder}/c.key
      caCertificates: {folder}/ca.pem
"""
PLAIN = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: plain}}
spec: {{address: 127.0.0.1, ports: {{http: {plain}}}, labels: {{app: reviews}}}}
"""
PEERS = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: %s}}
"""


def compiled(text: str, client: Client, ca: SmallCa, asked: Iterable[str] = ()) -> list[Resource]:
    graph = build_graph(documents_in(text, "in.yaml").documents)
    return list(GraphCompiler(graph, "1.1", roots_pem=ca.pem.encode()).resources(client, asked))


def own_secret(held: Issued) -> Resource:
    """What whoever runs an Envoy gives it."""
    secret = pb.Secret(name=OWN_SECRET)
    secret.tls_certificate.certificate_chain.inline_string = held.pem
    secret.tls_certificate.private_key.inline_bytes = held.key_pem
    return Resource.of(Kind.SECRET, OWN_SECRET, secret)


def write_files(folder: Path, ca: SmallCa) -> None:
    """The files of the DestinationRule."""
    held = ca.issue(dns=["client.example"])
    (folder / "c.pem").write_text(held.pem)
    (folder / "c.key").write_bytes(held.key_pem)
    (folder / "ca.pem").write_text(ca.pem)


@contextmanager
def fed(resources: list[Resource]) -> Iterator[Served]:
    with Served("1.1", resources) as served, envoy(served.address, delta=True):
        yield served


def get(port: int, host: str, context: ssl.SSLContext | None = None) -> tuple[int, str]:
    """Status and body; 0: the connection was refused or broken."""
    connection: HTTPConnection = (
        HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
        if context
        else HTTPConnection("127.0.0.1", port, timeout=30)
    )
    try:
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (ConnectionError, ssl.SSLError):
        return 0, ""
    finally:
        connection.close()


def test_envoy_speaks_mutual_tls_to_those_who_take_it_and_to_those_alone(tmp_path: Path) -> None:
    ca, port = SmallCa(), free_port()
    outside = SmallCa("outside")
    write_files(tmp_path, outside)
    with ExitStack() as stack:
        mutual = mutual_server(server_context(tmp_path, ca.issue(REVIEWS), ca.pem))
        bank = mutual_server(server_context(tmp_path, outside.issue(dns=["bank.example"]), outside.pem))
        ports = {
            "mutual": stack.enter_context(mutual),
            "plain": stack.enter_context(named_server("plain")),
            "outside": stack.enter_context(bank),
        }
        text = f"{MESH}---{PLAIN}".format(port=port, folder=tmp_path, account="reviews", **ports)
        resources = compiled(text, Client(Flavour.ENVOY), ca)
        stack.enter_context(fed([*resources, own_secret(ca.issue(CALLER))]))
        wait_until(lambda: get(port, "reviews")[0] == 200, 20, "Envoy's listener")
        seen = {get(port, "reviews") for _ in range(30)}
        sni = f"outbound_.{port}_._.reviews.default.svc.cluster.local"
        assert seen == {(200, f"{CALLER} {sni} http/1.1"), (200, "plain GET /")}
        assert get(port, "bank.example") == (200, "client.example bank.example http/1.1")


def test_envoy_refuses_a_server_of_another_account(tmp_path: Path) -> None:
    ca, port = SmallCa(), free_port()
    write_files(tmp_path, ca)
    with ExitStack() as stack:
        server = stack.enter_context(mutual_server(server_context(tmp_path, ca.issue(REVIEWS), ca.pem)))
        ports = {"mutual": server, "outside": server}
        text = MESH.format(port=port, folder=tmp_path, account="other", **ports)
        resources = compiled(text, Client(Flavour.ENVOY), ca)
        stack.enter_context(fed([*resources, own_secret(ca.issue(CALLER))]))
        wait_until(lambda: get(port, "reviews")[0] != 0, 20, "Envoy's listener")
        status, body = get(port, "reviews")
        assert status == 503
        assert "remote connection failure" in body


def served_port(mode: str, port: int, ca: SmallCa) -> Resource:
    """The inbound listener as an application is sent it, for an Envoy: bound to loopback."""
    who = Client(Flavour.MESHLIB)
    (found,) = (
        one for one in compiled(PEERS % mode, who, ca, [inbound_listener(port)]) if one.kind is Kind.LISTENER
    )
    message: Any = found.message()
    message.address.socket_address.address = "127.0.0.1"
    return Resource.of(Kind.LISTENER, found.name, message)


@pytest.mark.parametrize(
    ("mode", "plain", "mutual"),
    [("STRICT", False, True), ("PERMISSIVE", True, True), ("DISABLE", True, False)],
)
def test_envoy_serves_a_port_as_its_mode_says(tmp_path: Path, mode: str, plain: bool, mutual: bool) -> None:
    ca, port = SmallCa(), free_port()
    roots = compiled("", Client(Flavour.ENVOY), ca)
    resources = [served_port(mode, port, ca), own_secret(ca.issue(REVIEWS))]
    resources += [one for one in roots if one.kind is Kind.SECRET]
    caller = client_context(tmp_path, ca.issue(CALLER), ca.pem)
    stranger = client_context(tmp_path, ca.issue("spiffe://elsewhere/ns/default/sa/caller"), ca.pem)
    nobody = client_context(tmp_path, None, ca.pem)
    with fed(resources):
        good = caller if mutual else None
        wait_until(lambda: get(port, "x", good)[0] != 0, 20, "Envoy's listener")
        assert (get(port, "x")[0] != 0) is plain
        assert (get(port, "x", caller)[0] != 0) is mutual
        assert get(port, "x", stranger) == (0, "")
        assert get(port, "x", nobody) == (0, "")
