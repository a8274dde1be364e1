"""Which ring Envoy is asked for."""

import pytest

from meshlib.control.compile.balance import balance
from meshlib.control.istio.destinationrule import LoadBalancerSettings
from meshlib.xds import pb
from meshlib.xds.node import Flavour


@pytest.mark.parametrize(
    ("said", "points"),
    [
        ({}, 1024),
        ({"minimumRingSize": 0}, 1024),
        ({"minimumRingSize": 7}, 7),
        ({"ringHash": {}}, 1024),
        ({"ringHash": {"minimumRingSize": 0}}, 1024),
        ({"ringHash": {"minimumRingSize": 8388608}}, 8388608),
    ],
)
def test_no_number_and_0_are_the_default(said: dict[str, object], points: int) -> None:
    cluster = pb.Cluster()
    hashed = {"consistentHash": {"useSourceIp": True, **said}}
    balance(cluster, LoadBalancerSettings.model_validate(hashed), Flavour.MESHLIB)
    assert cluster.ring_hash_lb_config.minimum_ring_size.value == points
