"""Envoy's bootstrap, made from ours."""

from pathlib import Path
from typing import Any

import pytest

from meshlib.agent.bootstrap import Edge, gateway_bootstrap, node_bootstrap
from meshlib.agent.bounds import Bounds
from meshlib.bootstrap import bootstrap
from meshlib.xds import pb
from meshlib.xds.node import Flavour, from_node

FOLDER = Path("/run/meshlib-x")


def made(edge: Edge | None = None, **settings: Any) -> dict[str, Any]:
    told = {"control": "10.0.0.1:15010", "labels": "istio=edge", "namespace": "edge"} | settings
    return gateway_bootstrap(bootstrap({}, **told), edge or Edge("edge"), FOLDER)


def test_the_node_says_who_it_is_and_where_it_listens() -> None:
    edge = Edge("edge", "127.0.0.1", {80: 8080, 443: 8443})
    client = from_node(pb.from_dict(pb.Node, made(edge, locality="r/z")["node"]))
    assert client.flavour is Flavour.GATEWAY
    assert (client.namespace, client.labels) == ("edge", (("istio", "edge"),))
    assert (client.bind, client.ports) == ("127.0.0.1", ((80, 8080), (443, 8443)))
    assert not client.reuse_port
    assert str(client.locality) == "r/z"


def test_a_gateway_shares_its_ports_if_it_says_so() -> None:
    assert from_node(pb.from_dict(pb.Node, made(Edge("edge", reuse_port=True))["node"])).reuse_port


def clusters(found: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each for each in found["static_resources"]["clusters"]}


def test_the_control_service_is_known_by_its_name() -> None:
    found = clusters(made())
    context = found["xds-grpc"]["transport_socket"]["typed_config"]["common_tls_context"]
    names = context["combined_validation_context"]["default_validation_context"][
        "match_typed_subject_alt_names"
    ]
    assert names == [{"san_type": "DNS", "matcher": {"exact": "control.meshlib.internal"}}]
    assert found["xds-grpc"]["type"] == "STATIC"
    assert found["sds-grpc"]["load_assignment"]["endpoints"][0]["lb_endpoints"] == [
        {"endpoint": {"address": {"pipe": {"path": "/run/meshlib-x/sds.sock"}}}}
    ]


def test_it_comes_back_soon_after_the_control_service() -> None:
    (service,) = made()["dynamic_resources"]["ads_config"]["grpc_services"]
    assert service["envoy_grpc"]["retry_policy"]["retry_back_off"]["max_interval"] == "2s"


def test_a_control_service_by_name_is_looked_up() -> None:
    assert clusters(made(control="control.example:15010"))["xds-grpc"]["type"] == "STRICT_DNS"


def test_plain_text_is_asked_for() -> None:
    found = clusters(made(allow_plaintext=True))
    assert list(found) == ["xds-grpc"]
    assert "transport_socket" not in found["xds-grpc"]


@pytest.mark.parametrize(("heap", "monitors"), [(0, 1), (1 << 30, 2)])
def test_crowds_are_bounded(heap: int, monitors: int) -> None:
    found = made(Edge("edge", max_connections=7, max_heap=heap))["overload_manager"]
    assert found["resource_monitors"][0]["typed_config"]["max_active_downstream_connections"] == 7
    assert len(found["resource_monitors"]) == monitors
    assert bool(found.get("actions")) is bool(heap)


@pytest.mark.parametrize(
    "ports", ["x", {"80": 0}, {"80": 70000}, {"x": 1}, {"80": "8080"}, [1], {"80": 1.5e300}]
)
def test_ports_that_are_none_are_passed_over(ports: Any) -> None:
    node = pb.Node()
    node.metadata.update({"LISTEN_PORTS": ports, "GENERATOR": "gateway"})
    assert from_node(node).ports == ()


def test_a_node_has_bounds_for_all_and_for_each() -> None:
    found = node_bootstrap(bootstrap({}, control="10.0.0.1:15010"), "vm1", Bounds(1 << 30, 900, 100), FOLDER)
    assert from_node(pb.from_dict(pb.Node, found["node"])).max_connections == 100
    connections, heap = (one["typed_config"] for one in found["overload_manager"]["resource_monitors"])
    assert connections["max_active_downstream_connections"] == 900
    assert heap["max_heap_size_bytes"] == 1 << 30
    assert [one["name"].rpartition(".")[2] for one in found["overload_manager"]["actions"]] == [
        "shrink_heap",
        "stop_accepting_requests",
        "reject_incoming_connections",
    ]
    layer = found["layered_runtime"]["layers"][1]
    assert layer["rtds_layer"]["name"] == "bounds"


@pytest.mark.parametrize("said", ["100", 0, -1, 1.5, 2.0**32, 1.5e300, [1], None, True])
def test_a_number_of_connections_that_is_none_is_passed_over(said: Any) -> None:
    node = pb.Node()
    node.metadata.update({"MAX_CONNECTIONS": said, "GENERATOR": "node"})
    assert from_node(node).max_connections == 0
