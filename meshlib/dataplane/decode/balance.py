"""Envoy's choice of a load balancer as core's policy: the newer list first, then `lb_policy`."""

from typing import Any

from google.protobuf.message import DecodeError

from meshlib.core.balance.cluster import Policy
from meshlib.dataplane.decode.errors import Refused
from meshlib.xds import pb

_BY_NUMBER = {0: Policy.ROUND_ROBIN, 1: Policy.LEAST_REQUEST, 3: Policy.RANDOM, 6: Policy.ROUND_ROBIN}
"""Cluster.LbPolicy; 6 is CLUSTER_PROVIDED, where there is nothing to choose."""
_PREFIX = "envoy.extensions.load_balancing_policies"
_BY_TYPE = {
    f"{_PREFIX}.round_robin.v3.RoundRobin": Policy.ROUND_ROBIN,
    f"{_PREFIX}.least_request.v3.LeastRequest": Policy.LEAST_REQUEST,
    f"{_PREFIX}.random.v3.Random": Policy.RANDOM,
}
_WRAPPER = f"{_PREFIX}.wrr_locality.v3.WrrLocality"
MAX_DEPTH = 4

Balance = tuple[Policy, int, bool]
"""Policy, choice count, whether localities are weighted."""


def decode_balance(message: Any) -> Balance:
    """What an envoy.config.cluster.v3.Cluster says."""
    if message.HasField("load_balancing_policy"):
        try:
            return _decode_list(message.load_balancing_policy, MAX_DEPTH)
        except Refused as refused:
            raise refused.within("load_balancing_policy") from None
    if message.lb_policy not in _BY_NUMBER:
        raise Refused("lb_policy", f"{message.lb_policy} is not supported")
    weighted = message.common_lb_config.HasField("locality_weighted_lb_config")
    return _BY_NUMBER[message.lb_policy], _choices(message.least_request_lb_config), weighted


def _decode_list(message: Any, depth: int) -> Balance:
    for number, policy in enumerate(message.policies):
        packed = policy.typed_extension_config.typed_config
        name = packed.type_url.rpartition("/")[2]
        if name not in _BY_TYPE and (name != _WRAPPER or not depth):
            continue
        try:
            inner = pb.unpack(packed)
        except DecodeError as error:
            raise Refused(f"policies[{number}]", f"can't be decoded: {error}") from None
        if name == _WRAPPER:
            kind, choices, _ = _decode_list(inner.endpoint_picking_policy, depth - 1)
            return kind, choices, True
        weighted = inner.locality_lb_config.HasField("locality_weighted_lb_config")
        kind = _BY_TYPE[name]
        return kind, _choices(inner) if kind is Policy.LEAST_REQUEST else 2, weighted
    raise Refused("policies", "none of them is supported")


def _choices(message: Any) -> int:
    found = message.choice_count.value if message.HasField("choice_count") else 2
    if not 2 <= found <= 1_000:
        raise Refused("choice_count", f"{found} is not from 2 to 1000")
    return int(found)
