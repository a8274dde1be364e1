"""loadBalancer as Envoy's choice of a balancer.

Rules (Istio): least request unless said otherwise; hashing is by ring unless Maglev is asked for, with
at least 1024 entries. New endpoints may warm up, where the algorithm knows it.

Every client gets what it can read: Envoy and the library `lb_policy`; gRPC, for what it does not know by
that name, a list from which it takes the first that it knows.
"""

from typing import Any

from meshlib.control.istio.destinationrule import ConsistentHashLB, LoadBalancerSettings, SimpleLB
from meshlib.xds import pb
from meshlib.xds.node import Flavour

RING_SIZE = 1024
_PACKAGE = "envoy.extensions.load_balancing_policies"
_SIMPLE = {
    SimpleLB.ROUND_ROBIN: "ROUND_ROBIN",
    SimpleLB.RANDOM: "RANDOM",
}


def balance(cluster: Any, said: LoadBalancerSettings | None, flavour: Flavour) -> None:
    """Puts the balancer on an envoy.config.cluster.v3.Cluster."""
    hashed = said.consistent_hash if said else None
    simple = (said.simple if said else None) or SimpleLB.UNSPECIFIED
    if hashed is not None:
        _hashed(cluster, hashed, flavour)
    elif flavour is Flavour.GRPC:
        _for_grpc(cluster, simple)
    else:
        cluster.lb_policy = _SIMPLE.get(simple, "LEAST_REQUEST")
        if said is not None:
            _warm_up(cluster, said, simple)


def _for_grpc(cluster: Any, simple: SimpleLB) -> None:
    least = simple not in (SimpleLB.ROUND_ROBIN, SimpleLB.RANDOM)
    picking = pb.message("envoy.config.cluster.v3.LoadBalancingPolicy")()
    _policy(picking, "round_robin.v3.RoundRobin")
    if least:
        _policy(cluster.load_balancing_policy, "least_request.v3.LeastRequest")
    _policy(cluster.load_balancing_policy, "wrr_locality.v3.WrrLocality", endpoint_picking_policy=picking)


def _hashed(cluster: Any, said: ConsistentHashLB, flavour: Flavour) -> None:
    table = said.maglev.table_size if said.maglev else None
    ring = said.ring_hash.minimum_ring_size if said.ring_hash else said.minimum_ring_size
    if said.maglev is not None and flavour is not Flavour.GRPC:
        cluster.lb_policy = "MAGLEV"
        if table:
            cluster.maglev_lb_config.table_size.value = table
    else:
        cluster.lb_policy = "RING_HASH"
        cluster.ring_hash_lb_config.minimum_ring_size.value = ring or RING_SIZE


def _policy(holder: Any, kind: str, **fields: Any) -> None:
    config = holder.policies.add().typed_extension_config
    config.name = f"envoy.load_balancing_policies.{kind.partition('.')[0]}"
    config.typed_config.CopyFrom(pb.pack(pb.message(f"{_PACKAGE}.{kind}")(**fields)))


def _warm_up(cluster: Any, said: LoadBalancerSettings, simple: SimpleLB) -> None:
    window = said.warmup.duration if said.warmup else said.warmup_duration_secs
    if not window or simple is SimpleLB.RANDOM:
        return
    held = (
        cluster.round_robin_lb_config if simple is SimpleLB.ROUND_ROBIN else cluster.least_request_lb_config
    )
    slow = held.slow_start_config
    slow.slow_start_window.CopyFrom(pb.duration(window))
    if said.warmup is not None:
        aggression = said.warmup.aggression
        slow.aggression.default_value = 1.0 if aggression is None else aggression
        slow.aggression.runtime_key = ""
        least = said.warmup.minimum_percent
        slow.min_weight_percent.value = 10.0 if least is None else least
