"""Envoy's DNS clusters as core's."""

from typing import Any

import pytest

from meshlib.core.balance.cluster import Cluster, Resolution
from meshlib.core.balance.dns import Family
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.dns import DYNAMIC
from meshlib.dataplane.decode.errors import Refused
from meshlib.xds import pb


def endpoint(host: str, port: int = 80) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}


def message(*hosts: str, kind: str = "STRICT_DNS", **more: Any) -> Any:
    listed = {"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint(host) for host in hosts]}]}
    return pb.from_dict(pb.Cluster, {"name": "c", "type": kind, "load_assignment": listed, **more})


def decoded(*hosts: str, **more: Any) -> Cluster:
    made: Cluster = decode_cluster(message(*hosts, **more))
    return made


def test_names_are_kept_apart_from_endpoints() -> None:
    made = decoded("a.example", "10.0.0.1")
    assert (made.resolution, made.inline) == (Resolution.DNS, None)
    assert made.named is not None
    assert made.named.questions == {("a.example", Family.AUTO)}
    assert (made.named.logical, made.named.refresh, made.named.retry) == (False, 5.0, 5.0)


def test_times_and_family() -> None:
    made = decoded(
        "a.example",
        kind="LOGICAL_DNS",
        dns_refresh_rate="60s",
        dns_lookup_family="V4_PREFERRED",
        respect_dns_ttl=True,
    ).named
    assert made is not None
    assert (made.logical, made.family) == (True, Family.V4_PREFERRED)
    assert (made.refresh, made.retry) == (60.0, 5.0)
    made = decoded("a", dns_refresh_rate="2s", dns_failure_refresh_rate={"base_interval": "7s"}).named
    assert made is not None
    assert (made.refresh, made.retry) == (2.0, 7.0)
    made = decoded("a", dns_refresh_rate="2s").named
    assert made is not None
    assert made.retry == 2.0


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (message("a", "b", kind="LOGICAL_DNS"), "load_assignment: LOGICAL_DNS has one endpoint"),
        (message(kind="LOGICAL_DNS"), "load_assignment: LOGICAL_DNS has one endpoint"),
        (message("a", dns_refresh_rate="0s"), "dns_refresh_rate: must be at least 1 ms"),
        (message("a", dns_refresh_rate="-1s"), "dns_refresh_rate: -1 s is less than nothing"),
        (
            message("a", dns_failure_refresh_rate={"base_interval": "0s"}),
            "dns_failure_refresh_rate.base_interval: must be at least 1 ms",
        ),
        (message("a", dns_resolvers=[{"pipe": {"path": "/x"}}]), "dns_resolvers: is not supported"),
        (
            message("a", typed_dns_resolver_config={"name": "x"}),
            "typed_dns_resolver_config: is not supported",
        ),
        (message("a", dns_resolution_config={"resolvers": []}), "dns_resolution_config: is not supported"),
        (message("a", dns_lookup_family=9), "dns_lookup_family: is not supported"),
        (message(""), r"load_assignment.endpoints\[0\].lb_endpoints\[0\].endpoint.address.*is empty"),
    ],
)
def test_refused(made: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        decode_cluster(made)


def own(kind: str, **values: Any) -> Any:
    config = {"@type": f"type.googleapis.com/{kind}", **values}
    made = {
        "name": "c",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {"name": "x", "typed_config": config},
    }
    return pb.from_dict(pb.Cluster, made)


def test_a_dynamic_forward_proxy_has_no_endpoints_of_its_own() -> None:
    made = decode_cluster(own(DYNAMIC, dns_cache_config={"name": "c"}))
    assert (made.resolution, made.inline, made.named) == (Resolution.DYNAMIC, None, None)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(Refused, match=r"aggregate\.v3\.ClusterConfig is not supported"):
        decode_cluster(own("envoy.extensions.clusters.aggregate.v3.ClusterConfig"))
    with pytest.raises(Refused, match="sub_clusters_config: is not supported"):
        decode_cluster(own(DYNAMIC, sub_clusters_config={}))
    broken = own(DYNAMIC, dns_cache_config={"name": "c"})
    broken.cluster_type.typed_config.value = b"\xff"
    with pytest.raises(Refused, match=r"cluster_type.typed_config: can't be decoded"):
        decode_cluster(broken)
