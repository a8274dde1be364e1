"""Load balancers as values, in Envoy's older and newer words, and what is refused."""

from typing import Any

import pytest

from meshlib.core.balance.cluster import HashTable, Policy, Warmup
from meshlib.core.balance.hashing import HashCookie, HashHeader, HashQuery, HashSource
from meshlib.dataplane.decode.balance import Balance, decode_balance
from meshlib.dataplane.decode.clusters import decode_cluster
from meshlib.dataplane.decode.endpoints import decode_endpoints
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.hashing import decode_hash_policies
from meshlib.dataplane.decode.retry import decode_retry
from meshlib.xds import pb

TYPE = "type.googleapis.com/envoy.extensions.load_balancing_policies"


def old(**said: Any) -> Balance:
    return decode_balance(pb.from_dict(pb.Cluster, {"name": "c", **said}))


def new(kind: str, **said: Any) -> Balance:
    config = {"name": kind, "typed_config": {"@type": f"{TYPE}.{kind}", **said}}
    return old(load_balancing_policy={"policies": [{"typed_extension_config": config}]})


SLOW = {
    "slow_start_window": "30s",
    "aggression": {"default_value": 2.0, "runtime_key": "x"},
    "min_weight_percent": {"value": 20},
}
WARMUP = Warmup(30.0, 2.0, 0.2)


def test_slow_start() -> None:
    for made in (
        old(round_robin_lb_config={"slow_start_config": SLOW}),
        new("round_robin.v3.RoundRobin", slow_start_config=SLOW),
    ):
        assert (made.policy, made.warmup) == (Policy.ROUND_ROBIN, WARMUP)
    for made in (
        old(
            lb_policy="LEAST_REQUEST",
            least_request_lb_config={
                "slow_start_config": SLOW,
                "choice_count": 3,
                "active_request_bias": {"default_value": 0.5, "runtime_key": "x"},
            },
        ),
        new(
            "least_request.v3.LeastRequest",
            slow_start_config=SLOW,
            choice_count=3,
            active_request_bias={"default_value": 0.5, "runtime_key": "x"},
        ),
    ):
        assert (made.policy, made.warmup) == (Policy.LEAST_REQUEST, WARMUP)
        assert (made.choice_count, made.active_request_bias) == (3, 0.5)
    plain = old(round_robin_lb_config={"slow_start_config": {"slow_start_window": "5s"}})
    assert plain.warmup == Warmup(5.0, 1.0, 0.1)
    assert old(round_robin_lb_config={"slow_start_config": {}}).warmup is None


@pytest.mark.parametrize(
    ("said", "table"),
    [
        ({}, HashTable(1024, 131_072)),
        ({"minimum_ring_size": 7, "maximum_ring_size": 70}, HashTable(7, 70)),
        # More than this process builds: as under the largest ring.
        ({"minimum_ring_size": 8_000_000}, HashTable(8_000_000, 131_072)),
    ],
)
def test_rings(said: dict[str, Any], table: HashTable) -> None:
    made = old(lb_policy="RING_HASH", ring_hash_lb_config=said)
    assert made == new("ring_hash.v3.RingHash", **said) == Balance(Policy.RING_HASH, False, hash_table=table)


@pytest.mark.parametrize(
    ("said", "size"), [({}, 65_537), ({"table_size": 1021}, 1021), ({"table_size": 5_000_011}, 65_537)]
)
def test_maglev(said: dict[str, Any], size: int) -> None:
    made = old(lb_policy="MAGLEV", maglev_lb_config=said)
    assert made == new("maglev.v3.Maglev", **said)
    assert made == Balance(Policy.MAGLEV, False, hash_table=HashTable(maglev=size))


def test_what_stands_for_an_endpoint_and_how_localities_count() -> None:
    by_name = {"consistent_hashing_lb_config": {"use_hostname_for_hashing": True}}
    weighted = {"locality_weighted_lb_config": {}}
    for made in (
        old(lb_policy="MAGLEV", common_lb_config={**by_name, **weighted}),
        new("maglev.v3.Maglev", **by_name, **weighted),
        new("ring_hash.v3.RingHash", use_hostname_for_hashing=True, **weighted),
    ):
        assert made.hash_table is not None
        assert (made.hash_table.by_hostname, made.locality_weighted) == (True, True)


def test_traffic_may_fail_on_panic() -> None:
    zones = {"zone_aware_lb_config": {"fail_traffic_on_panic": True}}
    for policy, kind in (
        ("ROUND_ROBIN", "round_robin.v3.RoundRobin"),
        ("LEAST_REQUEST", "least_request.v3.LeastRequest"),
        ("RANDOM", "random.v3.Random"),
    ):
        assert old(lb_policy=policy, common_lb_config=zones).fail_on_panic
        assert new(kind, locality_lb_config=zones).fail_on_panic
        assert not old(lb_policy=policy).fail_on_panic


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ({"lb_policy": 4}, "lb_policy: 4 is not supported"),
        ({"lb_policy": 99}, "lb_policy: 99 is not supported"),
        (
            {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"hash_function": "MURMUR_HASH_2"}},
            "ring_hash_lb_config.hash_function",
        ),
        (
            {
                "lb_policy": "RING_HASH",
                "ring_hash_lb_config": {"minimum_ring_size": 8, "maximum_ring_size": 7},
            },
            "ring_hash_lb_config.minimum_ring_size",
        ),
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 1022}}, "maglev_lb_config.table_size"),
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 0}}, "maglev_lb_config.table_size"),
        (
            {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 2**61 - 1}},
            "maglev_lb_config.table_size",
        ),
        (
            {
                "lb_policy": "MAGLEV",
                "common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 120}},
            },
            "hash_balance_factor",
        ),
        (
            {"round_robin_lb_config": {"slow_start_config": {"slow_start_window": "-1s"}}},
            "round_robin_lb_config.slow_start_config.slow_start_window",
        ),
        (
            {"round_robin_lb_config": {"slow_start_config": {**SLOW, "aggression": {"default_value": 0.0}}}},
            "round_robin_lb_config.slow_start_config.aggression",
        ),
        (
            {"round_robin_lb_config": {"slow_start_config": {**SLOW, "min_weight_percent": {"value": 101}}}},
            "round_robin_lb_config.slow_start_config.min_weight_percent",
        ),
        (
            {
                "lb_policy": "LEAST_REQUEST",
                "least_request_lb_config": {"active_request_bias": {"default_value": -1.0}},
            },
            "least_request_lb_config.active_request_bias",
        ),
    ],
)
def test_what_is_refused(said: dict[str, Any], path: str) -> None:
    with pytest.raises(Refused, match=path):
        old(**said)


def test_the_newer_words_are_refused_by_their_place() -> None:
    with pytest.raises(Refused, match=r"^load_balancing_policy\.policies\[0\]\.table_size"):
        new("maglev.v3.Maglev", table_size=4)


def test_a_panic_threshold_is_rounded() -> None:
    for said, threshold in ((0.4, 0), (0.5, 1), (33.6, 34), (100, 100)):
        cluster = {"name": "c", "common_lb_config": {"healthy_panic_threshold": {"value": said}}}
        assert decode_cluster(pb.from_dict(pb.Cluster, cluster)).panic_threshold == threshold


def test_degraded_endpoints_and_the_policy_of_a_list() -> None:
    where = {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 1}}}
    said = {
        "cluster_name": "c",
        "endpoints": [{"lb_endpoints": [{"endpoint": where, "health_status": "DEGRADED"}]}],
        "policy": {"overprovisioning_factor": 200, "weighted_priority_health": True},
    }
    listed = decode_endpoints(pb.from_dict(pb.ClusterLoadAssignment, said))
    (endpoint,) = listed.localities[0].endpoints
    assert (endpoint.healthy, endpoint.degraded) == (True, True)
    assert (listed.overprovisioning, listed.weighted_health) == (200, True)
    said["policy"] = {"overprovisioning_factor": 0}
    with pytest.raises(Refused, match=r"policy\.overprovisioning_factor"):
        decode_endpoints(pb.from_dict(pb.ClusterLoadAssignment, said))


def hashed(*policies: dict[str, Any]) -> Any:
    return decode_hash_policies(pb.from_dict(pb.RouteAction, {"hash_policy": policies}).hash_policy)


def test_what_is_hashed() -> None:
    cookie = {"name": "u", "ttl": "90.9s", "path": "/", "attributes": [{"name": "SameSite", "value": "Lax"}]}
    assert hashed(
        {"header": {"header_name": "X-User"}, "terminal": True},
        {"cookie": cookie},
        {"cookie": {"name": "u"}},
        {"cookie": {"name": "u", "ttl": "0s"}},
        {"connection_properties": {"source_ip": True}},
        {"connection_properties": {}},
        {"query_parameter": {"name": "q"}},
    ) == (
        HashHeader(b"x-user", terminal=True),
        HashCookie(b"u", 90, b"/", ((b"SameSite", b"Lax"),)),
        HashCookie(b"u"),
        HashCookie(b"u", 0),
        HashSource(),
        HashQuery(b"q"),
    )


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        ({}, r"policy_specifier: is not set"),
        ({"filter_state": {"key": "k"}}, "filter_state: is not supported"),
        ({"header": {"header_name": ""}}, r"header\.header_name: is empty"),
        ({"cookie": {"name": ""}}, r"cookie\.name: is empty"),
        ({"cookie": {"name": "u", "ttl": "-1s"}}, r"cookie\.ttl"),
        ({"query_parameter": {"name": ""}}, r"query_parameter\.name: is empty"),
        (
            {"header": {"header_name": "x", "regex_rewrite": {"pattern": {"regex": "a"}}}},
            r"header\.regex_rewrite",
        ),
    ],
)
def test_what_can_not_be_hashed_is_refused(policy: dict[str, Any], path: str) -> None:
    with pytest.raises(Refused, match=rf"^hash_policy\[0\]\.{path}"):
        hashed(policy)


def test_policies_are_bounded() -> None:
    with pytest.raises(Refused, match="more than 100"):
        hashed(*[{"header": {"header_name": "x"}}] * 101)


def leaving(**config: Any) -> Any:
    kind = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    typed = {"@type": f"type.googleapis.com/{kind}", **config}
    said = {"name": "envoy.retry_priorities.previous_priorities", "typed_config": typed}
    return decode_retry(pb.from_dict(pb.RetryPolicy, {"retry_on": "5xx", "retry_priority": said}))


def test_retries_may_leave_priorities() -> None:
    assert leaving(update_frequency=2).leave_priorities_after == 2
    assert decode_retry(pb.RetryPolicy(retry_on="5xx")).leave_priorities_after == 0
    with pytest.raises(Refused, match=r"retry_priority\.typed_config\.update_frequency"):
        leaving()
    other = pb.RetryPolicy(retry_priority={"name": "x"})
    with pytest.raises(Refused, match=r"retry_priority\.name: x is not supported"):
        decode_retry(other)
    broken = pb.RetryPolicy(retry_priority={"name": "envoy.retry_priorities.previous_priorities"})
    broken.retry_priority.typed_config.type_url = "type.googleapis.com/no.such.Type"
    with pytest.raises(Refused, match=r"retry_priority\.typed_config: can't be decoded"):
        decode_retry(broken)
