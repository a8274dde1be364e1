"""Clusters, endpoints and listeners as values, and what is refused."""

from typing import Any

import pytest

from meshlib.core.balance.cluster import Policy, Resolution
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.endpoints import decode_endpoints
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.listeners import decode_listener
from meshlib.xds import pb


def test_an_eds_cluster() -> None:
    made = decode_cluster(pb.Cluster(name="c", type="EDS", lb_policy="LEAST_REQUEST"))
    assert (made.policy, made.resolution, made.inline) == (Policy.LEAST_REQUEST, Resolution.ENDPOINTS, None)
    assert (made.upstream.connect_timeout, made.upstream.limits.max_retries, made.outlier) == (5.0, 3, None)


def test_where_the_request_says_the_address_there_is_nothing_to_choose() -> None:
    """As Envoy has it."""
    for policy in ("ROUND_ROBIN", "RING_HASH", "LEAST_REQUEST"):
        with pytest.raises(Refused, match=r"^lb_policy: is not CLUSTER_PROVIDED"):
            decode_cluster(pb.Cluster(name="a", type="ORIGINAL_DST", lb_policy=policy))
    decode_cluster(pb.Cluster(name="a", type="ORIGINAL_DST", lb_policy="CLUSTER_PROVIDED"))


def test_a_bad_port_is_refused_by_its_path() -> None:
    message = pb.ClusterLoadAssignment(cluster_name="c")
    socket = message.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
    socket.address, socket.port_value = "10.0.0.1", 70000
    with pytest.raises(Refused, match=r"^endpoints\[0\]\.lb_endpoints\[0\]\.endpoint\.address"):
        decode_endpoints(message)


def test_a_listener_names_its_routes() -> None:
    manager = pb.HttpConnectionManager()
    manager.rds.route_config_name = "routes"
    message = pb.Listener(name="a:80")
    message.api_listener.api_listener.CopyFrom(pb.pack(manager))
    assert decode_listener(message).routes == "routes"
    with pytest.raises(Refused, match="api_listener"):
        decode_listener(pb.Listener(name="a:80"))


def test_a_fault_of_a_whole_listener_is_refused() -> None:
    manager = pb.HttpConnectionManager()
    manager.rds.route_config_name = "routes"
    fault = manager.http_filters.add(name="envoy.filters.http.fault")
    message = pb.Listener(name="a:80")
    for said in (pb.HTTPFault(), pb.HTTPFault(upstream_cluster="c")):
        fault.typed_config.CopyFrom(pb.pack(said))
        message.api_listener.api_listener.CopyFrom(pb.pack(manager))
        if said.ByteSize():
            with pytest.raises(Refused, match=r"http_filters\[0\]: faults are supported where routes"):
                decode_listener(message)
        else:
            assert decode_listener(message).filters == ("envoy.filters.http.fault",)


@pytest.mark.parametrize("percent", [-1.0, 100.5, float("nan"), float("inf")])
def test_a_panic_threshold_that_is_no_percentage_is_refused(percent: float) -> None:
    message = pb.Cluster(name="c")
    message.common_lb_config.healthy_panic_threshold.value = percent
    with pytest.raises(Refused, match="healthy_panic_threshold"):
        decode_cluster(message)


def at_path(path: str) -> Any:
    message = pb.ClusterLoadAssignment(cluster_name="c")
    message.endpoints.add().lb_endpoints.add().endpoint.address.pipe.path = path
    return message


@pytest.mark.parametrize("path", ["/run/reviews.sock", "@reviews", "/a:b"])
def test_an_endpoint_may_be_a_path(path: str) -> None:
    endpoint = decode_endpoints(at_path(path)).localities[0].endpoints[0]
    assert (endpoint.address, endpoint.key) == ((path, 0), path)


@pytest.mark.parametrize("path", ["", "reviews.sock", "/" + "x" * 107, "/" + "\u00fc" * 54])
def test_a_path_that_is_none(path: str) -> None:
    with pytest.raises(Refused, match=r"^endpoints\[0\]\.lb_endpoints\[0\]\.endpoint\.address\.pipe\.path"):
        decode_endpoints(at_path(path))
