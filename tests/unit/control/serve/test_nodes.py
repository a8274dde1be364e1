"""What a node may ask for its workloads, and what nobody may say of a node."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from meshlib.control.ca.tokens import Proof
from meshlib.control.serve.callers import Caller, Denied
from meshlib.control.serve.nodes import IMPERSONATED, LONGEST_LIFE_S, Nodes, is_node
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb

DOMAIN = "cluster.local"
VM1 = SpiffeId(DOMAIN, "meshlib-node", "vm1")
VM2 = SpiffeId(DOMAIN, "meshlib-node", "vm2")
CART = SpiffeId(DOMAIN, "shop", "cart")
TELLER = SpiffeId(DOMAIN, "bank", "teller")


class Allowed:
    """Permissions that a test changes."""

    revision = 0

    def __init__(self, **nodes: set[str]) -> None:
        self.nodes: Mapping[str, set[str]] = nodes

    def known(self, node: str) -> bool:
        return node in self.nodes

    def may(self, node: str, workload: SpiffeId) -> bool:
        return f"{workload.namespace}/{workload.service_account}" in self.nodes[node]


def nodes(**allowed: set[str]) -> Nodes:
    return checked(Allowed(**allowed))


def checked(allowed: Allowed) -> Nodes:
    def own(found: SpiffeId) -> SpiffeId:
        known = DOMAIN if found.trust_domain == "old.mesh" else found.trust_domain
        return SpiffeId(known, found.namespace, found.service_account)

    return Nodes(allowed, own, lambda: "istio-system")


def caller(identity: SpiffeId | None, **more: Any) -> Caller:
    return Caller("10.0.0.1:1", identity, **more)


def asked(whom: Any = None, seconds: int = 0) -> Any:
    made = pb.IstioCertificateRequest(csr="x", validity_duration=seconds)
    if whom is not None:
        made.metadata.update({IMPERSONATED: str(whom) if isinstance(whom, SpiffeId) else whom})
    return made


def node(**metadata: Any) -> Any:
    made = pb.Node(id="x")
    made.metadata.update(metadata)
    return made


def denied(question: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(Denied) as caught:
        question()
    return caught.value.code, str(caught.value)


# Certificates


def test_a_caller_is_certified_as_itself() -> None:
    assert nodes().certified(caller(CART), asked()) == CART
    assert nodes(vm1=set()).certified(caller(VM1), asked()) == VM1


def test_a_node_gets_what_it_may() -> None:
    found = nodes(vm1={"shop/cart"})
    assert found.certified(caller(VM1), asked(CART)) == CART
    assert found.certified(caller(VM1), asked(CART, LONGEST_LIFE_S)) == CART
    assert found.certified(caller(VM1), asked("spiffe://old.mesh/ns/shop/sa/cart")) == CART


@pytest.mark.parametrize(
    ("who", "whom", "code", "text"),
    [
        (VM1, TELLER, "PERMISSION_DENIED", "the node vm1 may not speak for spiffe://cluster.local/ns/bank"),
        (VM2, CART, "PERMISSION_DENIED", "the node vm2 may not speak for"),
        (VM1, VM1, "PERMISSION_DENIED", "it is a node"),
        (VM1, VM2, "PERMISSION_DENIED", "it is a node"),
        (VM1, "spiffe://cluster.local/ns/istio-system/sa/operator", "PERMISSION_DENIED", "it is an operator"),
        (VM1, "spiffe://evil.example/ns/shop/sa/cart", "PERMISSION_DENIED", "of another mesh than"),
        (VM1, "spiffe://cluster.local/ns/shop/sa/*", "INVALID_ARGUMENT", "is no name of a namespace or"),
        (VM1, "spiffe://cluster.local/ns/shop/sa/cart/", "INVALID_ARGUMENT", "is not of the form"),
        (VM1, "cart", "INVALID_ARGUMENT", "is no SPIFFE identity"),
        (VM1, "", "INVALID_ARGUMENT", "is no SPIFFE identity"),
        (VM1, 7, "INVALID_ARGUMENT", "is no SPIFFE identity"),
        (VM1, [str(CART)], "INVALID_ARGUMENT", "is no SPIFFE identity"),
        (CART, TELLER, "PERMISSION_DENIED", "made out to the caller only"),
        (CART, CART, "PERMISSION_DENIED", "made out to the caller only"),
        (None, CART, "UNAUTHENTICATED", "nobody is known without TLS"),
    ],
)
def test_and_nothing_else(who: SpiffeId | None, whom: Any, code: str, text: str) -> None:
    found = nodes(vm1={"shop/cart", "istio-system/operator", "meshlib-node/vm2"}, vm2={"shop/cart2"})
    said = denied(lambda: found.certified(caller(who), asked(whom)))
    assert said[0] == code
    assert text in said[1]


def test_no_long_life_for_a_workload_of_a_node() -> None:
    found = nodes(vm1={"shop/cart"})
    code, text = denied(lambda: found.certified(caller(VM1), asked(CART, LONGEST_LIFE_S + 1)))
    assert (code, "at most 86400 are given" in text) == ("INVALID_ARGUMENT", True)


def test_a_node_that_nobody_knows_is_not_even_certified_as_itself() -> None:
    code, text = denied(lambda: nodes().certified(caller(VM1), asked()))
    assert (code, "the node vm1 is not known" in text) == ("PERMISSION_DENIED", True)


def test_a_token_for_single_use_gives_the_nodes_own_certificate_only() -> None:
    found, once = nodes(vm1={"shop/cart"}), Proof(VM1, 1.0, "abc")
    assert found.certified(caller(VM1, proof=once), asked()) == VM1
    code, text = denied(lambda: found.certified(caller(VM1, proof=once), asked(CART)))
    assert (code, "for single use" in text) == ("PERMISSION_DENIED", True)


# Registrations


def test_a_node_registers_its_workloads() -> None:
    found, said = nodes(vm1={"shop/cart"}), node(NAMESPACE="shop", SERVICE_ACCOUNT="cart")
    found.registers(caller(VM1), said)()
    assert said.metadata["NODE_NAME"] == "vm1"
    found.registers(caller(VM1), node(NAMESPACE="shop", SERVICE_ACCOUNT="cart", NODE_NAME="vm1"))


@pytest.mark.parametrize(
    ("who", "metadata", "code", "text"),
    [
        (VM1, {"NAMESPACE": "bank", "SERVICE_ACCOUNT": "teller"}, "PERMISSION_DENIED", "may not speak for"),
        (
            VM1,
            {
                "NODE_NAME": "vm2",
            },
            "PERMISSION_DENIED",
            "says NODE_NAME 'vm2', but it is",
        ),
        (VM1, {"NODE_NAME": 1}, "PERMISSION_DENIED", "says NODE_NAME"),
        (VM1, {}, "INVALID_ARGUMENT", "a node says of each workload NAMESPACE and SERVICE_ACCOUNT"),
        (VM1, {"NAMESPACE": "shop"}, "INVALID_ARGUMENT", "a node says of each workload"),
        (VM1, {"NAMESPACE": "meshlib-node", "SERVICE_ACCOUNT": "vm1"}, "PERMISSION_DENIED", "it is a node"),
        (
            VM1,
            {"NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "operator"},
            "PERMISSION_DENIED",
            "it is an operator",
        ),
        (
            VM1,
            {"NAMESPACE": "shop/sa/cart", "SERVICE_ACCOUNT": "x"},
            "INVALID_ARGUMENT",
            "is not of the form",
        ),
        (VM2, {"NAMESPACE": "shop", "SERVICE_ACCOUNT": "cart"}, "PERMISSION_DENIED", "the node vm2 is not"),
        (CART, {"NODE_NAME": "vm1"}, "PERMISSION_DENIED", "is no node, it registers itself only"),
        (CART, {"NODE_NAME": ""}, "PERMISSION_DENIED", "is no node, it registers itself only"),
        (CART, {"NODE_NAME": None}, "PERMISSION_DENIED", "is no node, it registers itself only"),
        (CART, {"NAMESPACE": "bank"}, "PERMISSION_DENIED", "the node says NAMESPACE 'bank'"),
    ],
)
def test_and_nobody_elses(who: SpiffeId, metadata: dict[str, Any], code: str, text: str) -> None:
    found = nodes(vm1={"shop/cart", "istio-system/operator"})
    said = denied(lambda: found.registers(caller(who), node(**metadata)))
    assert said[0] == code
    assert text in said[1]


def test_of_istios_node_ids_the_namespace_is_the_workloads() -> None:
    found = nodes(vm1={"shop/cart"})
    said = node(NAMESPACE="shop", SERVICE_ACCOUNT="cart")
    said.id = "sidecar~10.0.0.1~pod.shop~shop.svc"
    found.registers(caller(VM1), said)
    said.id = "sidecar~10.0.0.1~pod.bank~bank.svc"
    assert "namespace 'bank'" in denied(lambda: found.registers(caller(VM1), said))[1]


# Configuration


def test_a_node_follows_as_a_node() -> None:
    found, said = nodes(vm1=set()), node(GENERATOR="node")
    found.follows(caller(VM1), said)()
    assert {name: said.metadata[name] for name in said.metadata} == {
        "GENERATOR": "node",
        "NODE_NAME": "vm1",
        "NAMESPACE": "meshlib-node",
        "SERVICE_ACCOUNT": "vm1",
    }


@pytest.mark.parametrize(
    ("who", "metadata", "text"),
    [
        (VM1, {"GENERATOR": "node", "NODE_NAME": "vm2"}, "says NODE_NAME 'vm2', but it is"),
        (VM1, {"GENERATOR": "node", "NAMESPACE": "shop"}, "says NAMESPACE 'shop'"),
        (VM1, {"GENERATOR": "gateway"}, "as a node's Envoy and as nothing else"),
        (VM1, {}, "as a node's Envoy and as nothing else"),
        (VM2, {"GENERATOR": "node"}, "the node vm2 is not known"),
        (CART, {"GENERATOR": "node", "NODE_NAME": "vm1"}, "is no node; what a node's Envoy is sent"),
    ],
)
def test_and_nobody_else_does(who: SpiffeId, metadata: dict[str, Any], text: str) -> None:
    code, said = denied(lambda: nodes(vm1=set()).follows(caller(who), node(**metadata)))
    assert code == "PERMISSION_DENIED"
    assert text in said


def test_the_name_of_a_machine_is_nothing_to_other_clients() -> None:
    nodes().follows(caller(CART), node(GENERATOR="grpc", NODE_NAME="a-machine"))()


def test_what_is_taken_back_holds_no_more() -> None:
    allowed = Allowed(vm1={"shop/cart"})
    found = checked(allowed)
    joined = found.registers(caller(VM1), node(NAMESPACE="shop", SERVICE_ACCOUNT="cart"))
    following = found.follows(caller(VM1), node(GENERATOR="node"))
    assert found.changed() is False
    allowed.nodes, allowed.revision = {"vm1": {"shop/other"}}, 1
    assert (found.changed(), found.changed()) == (True, False)
    assert denied(joined)[0] == "PERMISSION_DENIED"
    following()
    allowed.nodes = {}
    assert "the node vm1 is not known" in denied(following)[1]


def test_without_tls_what_is_said_is_believed() -> None:
    nodes().registers(caller(None), node(NODE_NAME="vm1"))()
    nodes().follows(caller(None), node(GENERATOR="node", NODE_NAME="vm1"))()


def test_who_is_a_node() -> None:
    assert [is_node(one) for one in (VM1, CART, None)] == [True, False, False]
