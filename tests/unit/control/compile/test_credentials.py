"""Which Secrets a gateway is given: those that its Gateways name, of its own namespace, by TLS only."""

import base64
from dataclasses import replace

import pytest
from support.small_ca import SmallCa

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.graph import build_graph
from meshlib.control.registration import Registration
from meshlib.control.sources.text import documents_in
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour

CA, OTHER = SmallCa(), SmallCa("other")
LEAF = CA.issue(dns=["a.example"])
ROOTS = CA.pem.encode()
GATEWAY = """---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: docs}
spec:
  selector: {istio: edge}
  servers:
  - port: {number: 443, name: a, protocol: HTTPS}
    hosts: [a.example]
    tls: {mode: MUTUAL, credentialName: named}
"""
EDGE = Client(Flavour.GATEWAY, namespace="edge", service_account="gate", labels=(("istio", "edge"),))
GATEWAYS = [("edge", "gate")]


def secret(name: str, namespace: str = "edge", **data: str) -> str:
    lines = "".join(f"  {key}: {base64.b64encode(text.encode()).decode()}\n" for key, text in data.items())
    metadata = f"{{name: {name}, namespace: {namespace}}}"
    return f"---\napiVersion: v1\nkind: Secret\nmetadata: {metadata}\ndata:\n{lines}"


PAIR = {"cert": LEAF.pem, "key": LEAF.key_pem.decode()}


def compiler(*documents: str, roots: bytes = ROOTS) -> GraphCompiler:
    graph = build_graph(documents_in(GATEWAY + "".join(documents), "a.yaml").documents)
    return GraphCompiler(graph, "1", roots_pem=roots, gateways=GATEWAYS)


def given(*documents: str, roots: bytes = ROOTS, client: Client = EDGE) -> dict[str, bytes]:
    found = compiler(*documents, roots=roots).resources(client)
    return {one.name: one.body for one in found if one.kind is Kind.SECRET and one.name != "ROOTCA"}


def test_what_is_named_and_no_more() -> None:
    found = given(secret("named", cacert=CA.pem, **PAIR), secret("unnamed", **PAIR))
    assert list(found) == ["kubernetes://named", "kubernetes://named-cacert"]
    assert LEAF.key_pem in found["kubernetes://named"]
    assert LEAF.key_pem not in found["kubernetes://named-cacert"]


@pytest.mark.parametrize(("namespace", "account"), [("edge", "ratings"), ("edge", ""), ("other", "gate")])
def test_who_is_no_gateway_has_no_key(namespace: str, account: str) -> None:
    client = replace(EDGE, namespace=namespace, service_account=account)
    documents = [secret("named", place, cacert=CA.pem, **PAIR) for place in ("edge", "other")]
    assert list(given(*documents, client=client)) == ["kubernetes://named-cacert"]
    (note,) = compiler(*documents).notes(client)
    assert f"with --gateway {namespace}/{account}" in note


def test_what_is_missing_is_told() -> None:
    assert compiler(secret("named", cacert=CA.pem, **PAIR)).notes(EDGE) == ()
    assert compiler(secret("named", **PAIR)).notes(EDGE) == (
        "there is no Secret edge/named with what kubernetes://named-cacert needs",
    )
    assert len(compiler().notes(EDGE)) == 2
    assert compiler().notes(replace(EDGE, flavour=Flavour.ENVOY)) == ()


def test_who_may_not_have_a_key_is_told_another_name() -> None:
    withheld, made = {}, compiler(secret("named", cacert=CA.pem, **PAIR))
    for account in ("gate", "ratings"):
        found = made.resources(replace(EDGE, service_account=account))
        (listener,) = (one.body for one in found if one.kind is Kind.LISTENER)
        withheld[account] = b"withheld://named" in listener
        assert b"kubernetes://named-cacert" in listener
    assert withheld == {"gate": False, "ratings": True}


def test_a_ca_of_its_own_goes_before() -> None:
    found = given(secret("named", cacert=CA.pem, **PAIR), secret("named-cacert", cacert=OTHER.pem))
    assert OTHER.pem.encode() in found["kubernetes://named-cacert"]


def test_other_namespaces_keep_theirs() -> None:
    assert given(secret("named", namespace="docs", cacert=CA.pem, **PAIR)) == {}


def test_keys_are_not_sent_in_plain_text() -> None:
    assert given(secret("named", cacert=CA.pem, **PAIR), roots=b"") == {}


@pytest.mark.parametrize("flavour", [Flavour.ENVOY, Flavour.MESHLIB, Flavour.GRPC])
def test_only_gateways_are_given_any(flavour: Flavour) -> None:
    client = Client(flavour, namespace="edge", labels=EDGE.labels)
    assert given(secret("named", cacert=CA.pem, **PAIR), client=client) == {}


def test_a_server_that_joins_costs_a_gateway_nothing() -> None:
    text = GATEWAY + secret("named", cacert=CA.pem, **PAIR)
    graph = build_graph(documents_in(text, "a.yaml").documents)
    first = GraphCompiler(graph, "1", roots_pem=ROOTS)
    before = first.resources(EDGE)
    joined = graph.with_registrations(
        [Registration("x", "default", "default", (("app", "x"),), "10.0.0.1", (("http", 80),))]
    )
    second = GraphCompiler(joined.with_keys({}), "2", before=first, roots_pem=ROOTS)
    assert second.resources(EDGE) == before
    assert second.memo.made == 0
