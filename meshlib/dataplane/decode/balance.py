"""Envoy's choice of a load balancer as core's policy: the newer list first, then `lb_policy`.

Bounds: tables of keys are made in this process, so a ring has at most 131,072 points (Envoy: 8,388,608),
larger ones shrink as under maximum_ring_size; a Maglev table of more entries has Envoy's default of 65,537.
"""

from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from meshlib.core.balance.cluster import MAGLEV_SIZE, MAX_POINTS, HashTable, Policy, Warmup
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.text import decode_seconds
from meshlib.xds import pb

_BY_NUMBER = (  # by Cluster.LbPolicy; the last is CLUSTER_PROVIDED, where there is nothing to choose
    Policy.ROUND_ROBIN,
    Policy.LEAST_REQUEST,
    Policy.RING_HASH,
    Policy.RANDOM,
    None,
    Policy.MAGLEV,
    Policy.ROUND_ROBIN,
)
_LEGACY = {
    Policy.ROUND_ROBIN: "round_robin_lb_config",
    Policy.LEAST_REQUEST: "least_request_lb_config",
    Policy.RING_HASH: "ring_hash_lb_config",
    Policy.MAGLEV: "maglev_lb_config",
}
_PREFIX = "envoy.extensions.load_balancing_policies"
_BY_TYPE = {
    f"{_PREFIX}.round_robin.v3.RoundRobin": Policy.ROUND_ROBIN,
    f"{_PREFIX}.least_request.v3.LeastRequest": Policy.LEAST_REQUEST,
    f"{_PREFIX}.random.v3.Random": Policy.RANDOM,
    f"{_PREFIX}.ring_hash.v3.RingHash": Policy.RING_HASH,
    f"{_PREFIX}.maglev.v3.Maglev": Policy.MAGLEV,
}
_WRAPPER = f"{_PREFIX}.wrr_locality.v3.WrrLocality"
_MURMUR = "MURMUR_HASH_2"
MAX_DEPTH = 4
MAX_RING = 8_388_608
MAX_TABLE = 5_000_011


class Balance(NamedTuple):
    """How a cluster picks, in the words of core's Cluster."""

    policy: Policy
    locality_weighted: bool
    choice_count: int = 2
    active_request_bias: float = 1.0
    fail_on_panic: bool = False
    warmup: Warmup | None = None
    hash_table: HashTable | None = None


def decode_balance(message: Any) -> Balance:
    """What an envoy.config.cluster.v3.Cluster says."""
    if message.HasField("load_balancing_policy"):
        try:
            return _decode_list(message.load_balancing_policy, MAX_DEPTH)
        except Refused as refused:
            raise refused.within("load_balancing_policy") from None
    policy = _BY_NUMBER[message.lb_policy] if message.lb_policy < len(_BY_NUMBER) else None
    if policy is None:
        raise Refused("lb_policy", f"{message.lb_policy} is not supported")
    common, name = message.common_lb_config, _LEGACY.get(policy)
    weighted = common.HasField("locality_weighted_lb_config")
    fails = common.zone_aware_lb_config.fail_traffic_on_panic
    if name is None:
        return Balance(policy, weighted, fail_on_panic=fails)
    try:
        return _decode(policy, getattr(message, name), common, weighted=weighted, fails=fails)
    except Refused as refused:
        raise refused.within(name) from None


def _decode_list(message: Any, depth: int) -> Balance:
    for number, listed in enumerate(message.policies):
        packed = listed.typed_extension_config.typed_config
        name = packed.type_url.rpartition("/")[2]
        if name not in _BY_TYPE and (name != _WRAPPER or not depth):
            continue
        try:
            inner = pb.unpack(packed)
        except DecodeError as error:
            raise Refused(f"policies[{number}]", f"can't be decoded: {error}") from None
        if name == _WRAPPER:
            return _decode_list(inner.endpoint_picking_policy, depth - 1)._replace(locality_weighted=True)
        policy = _BY_TYPE[name]
        try:
            return _decode_typed(policy, inner)
        except Refused as refused:
            raise refused.within(f"policies[{number}]") from None
    raise Refused("policies", "none of them is supported")


def _decode_typed(policy: Policy, message: Any) -> Balance:
    if policy in (Policy.RING_HASH, Policy.MAGLEV):
        weighted = message.HasField("locality_weighted_lb_config")
        return _decode(policy, message, message, weighted=weighted, fails=False)
    localities = message.locality_lb_config
    fails = localities.zone_aware_lb_config.fail_traffic_on_panic
    weighted = localities.HasField("locality_weighted_lb_config")
    if policy is Policy.RANDOM:
        return Balance(policy, weighted, fail_on_panic=fails)
    return _decode(policy, message, message, weighted=weighted, fails=fails)


def _decode(policy: Policy, message: Any, common: Any, *, weighted: bool, fails: bool) -> Balance:
    """`message` is the policy's own config, old or new; `common` holds consistent_hashing_lb_config."""
    if policy in (Policy.RING_HASH, Policy.MAGLEV):
        return Balance(policy, weighted, hash_table=_hash_table(policy, message, common))
    made = Balance(policy, weighted, fail_on_panic=fails, warmup=_warmup(message))
    if policy is not Policy.LEAST_REQUEST:
        return made
    bias = message.active_request_bias.default_value if message.HasField("active_request_bias") else 1.0
    if not 0 <= bias < float("inf"):
        raise Refused("active_request_bias", f"{bias} is less than nothing, or no number")
    return made._replace(choice_count=_choices(message), active_request_bias=bias)


def _choices(message: Any) -> int:
    found = message.choice_count.value if message.HasField("choice_count") else 2
    if not 2 <= found <= 1_000:
        raise Refused("choice_count", f"{found} is not from 2 to 1000")
    return int(found)


def _warmup(message: Any) -> Warmup | None:
    if not message.HasField("slow_start_config"):
        return None
    said = message.slow_start_config
    try:
        window = decode_seconds(said, "slow_start_window", 0.0)
        aggression = said.aggression.default_value if said.HasField("aggression") else 1.0
        if not 0 < aggression < float("inf"):
            raise Refused("aggression", f"{aggression} is not more than 0")
        least = said.min_weight_percent.value if said.HasField("min_weight_percent") else 10.0
        if not 0 <= least <= 100:
            raise Refused("min_weight_percent", f"{least} is no percentage")
    except Refused as refused:
        raise refused.within("slow_start_config") from None
    return Warmup(window, aggression, least / 100) if window else None


def _hash_table(policy: Policy, message: Any, common: Any) -> HashTable:
    ring = policy is Policy.RING_HASH
    names = {field.name for field, _ in message.ListFields()}
    if ring and _enum(message, "hash_function") == _MURMUR:
        raise Refused("hash_function", f"{_MURMUR} is not supported")
    said = common.consistent_hashing_lb_config
    if said.hash_balance_factor.value or (
        "hash_balance_factor" in names and message.hash_balance_factor.value
    ):
        raise Refused("hash_balance_factor", "is not supported")
    if "hash_policy" in {field.name for field, _ in said.ListFields()}:
        raise Refused("consistent_hashing_lb_config.hash_policy", "is not supported")
    by_hostname = said.use_hostname_for_hashing or (
        "use_hostname_for_hashing" in names and message.use_hostname_for_hashing
    )
    if not ring:
        return HashTable(maglev=_maglev_size(message), by_hostname=by_hostname)
    least = message.minimum_ring_size.value if message.HasField("minimum_ring_size") else 1024
    most = message.maximum_ring_size.value if message.HasField("maximum_ring_size") else MAX_RING
    if not least <= most <= MAX_RING:
        raise Refused("minimum_ring_size", f"{least} to {most} is no range up to {MAX_RING}")
    return HashTable(least, min(most, MAX_POINTS), by_hostname=by_hostname)


def _enum(message: Any, name: str) -> str:
    value = message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number.get(getattr(message, name))
    return value.name if value is not None else ""


def _maglev_size(message: Any) -> int:
    size = int(message.table_size.value) if message.HasField("table_size") else MAGLEV_SIZE
    if not 2 <= size <= MAX_TABLE or any(size % factor == 0 for factor in range(2, int(size**0.5) + 1)):
        raise Refused("table_size", f"{size} is no prime number up to {MAX_TABLE}")
    return size if size <= MAX_POINTS else MAGLEV_SIZE
