"""What a client says of itself, and what is understood."""

from meshlib.xds import pb
from meshlib.xds.node import Client, Flavour, from_node, to_node


def test_a_node_says_its_name_and_is_understood() -> None:
    said = Client(Flavour.NODE, namespace="meshlib-node", service_account="vm1", node="vm1", id="node~vm1")
    assert from_node(to_node(said)) == said


def test_a_client_in_c_is_known_by_its_user_agent() -> None:
    assert from_node(pb.Node(user_agent_name="gRPC C-core linux Python")) == Client(Flavour.GRPC, hasty=True)
    assert from_node(pb.Node(user_agent_name="gRPC Node Pure JS")) == Client(Flavour.GRPC)


def test_the_name_of_a_node_is_nothing_of_another_client() -> None:
    node = pb.Node(id="x")
    node.metadata.update({"NODE_NAME": "vm1"})
    assert from_node(node).node == ""
    node.metadata.update({"GENERATOR": "node"})
    assert from_node(node).node == "vm1"
