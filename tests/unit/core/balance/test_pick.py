"""Which endpoint: exact shares, statistical bounds, health, priorities, localities."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.core.balance.cluster import Cluster, HashTable, Policy
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.balance.pick import Retry, pick
from meshlib.core.ledger import ClusterState


def endpoints(*weights: int, healthy: bool = True, first: int = 1) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("10.0.0.1", first + n, weight, healthy) for n, weight in enumerate(weights))


def one(*weights: int) -> EndpointSet:
    return EndpointSet((LocalityEndpoints("", 0, 1, endpoints(*weights)),))


def picks(cluster: Cluster, listed: EndpointSet, count: int, seed: int = 1) -> Counter[int]:
    state, dice = ClusterState(), random.Random(seed)
    found = [pick(cluster, listed, state, 0.0, dice) for _ in range(count)]
    return Counter(endpoint.port for endpoint in found if endpoint is not None)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 99))
def test_round_robin_gives_each_its_exact_share(weights: list[int], rounds: int, seed: int) -> None:
    seen = picks(Cluster("c", "c", Policy.ROUND_ROBIN), one(*weights), rounds * sum(weights), seed)
    assert seen == {n + 1: weight * rounds for n, weight in enumerate(weights) if weight}


def by(policy: Policy) -> Cluster:
    hashed = policy in (Policy.RING_HASH, Policy.MAGLEV)
    return Cluster("c", "c", policy, hash_table=HashTable(maglev=1021) if hashed else None)


@pytest.mark.parametrize("policy", list(Policy))
def test_weight_zero_is_never_picked(policy: Policy) -> None:
    assert set(picks(by(policy), one(3, 0, 1, 0), 500)) == {1, 3}


@pytest.mark.parametrize("policy", list(Policy))
def test_nobody_is_nobody(policy: Policy) -> None:
    assert picks(by(policy), one(), 3) == {}
    assert picks(by(policy), one(0, 0), 3) == {}


def test_random_is_fair() -> None:
    seen = picks(Cluster("c", "c", Policy.RANDOM), one(1, 1, 1, 1), 4_000)
    # 1,000 each, standard deviation 27: six of them either way.
    assert all(840 < seen[port] < 1_160 for port in (1, 2, 3, 4))


def test_least_request_takes_the_less_busy_of_two() -> None:
    cluster, listed = Cluster("c", "c", Policy.LEAST_REQUEST), one(1, 1, 1)
    state, dice = ClusterState(), random.Random(1)
    for endpoint, active in zip(listed.localities[0].endpoints, (9, 0, 5), strict=True):
        state.host(endpoint.key).active = active
    seen = Counter(
        found.port for _ in range(9_000) if (found := pick(cluster, listed, state, 0.0, dice)) is not None
    )
    # Of two rolls with replacement: the idle one 5/9, the middle one 3/9, the busiest only against itself.
    assert abs(seen[2] - 5_000) < 300
    assert abs(seen[3] - 3_000) < 300
    assert abs(seen[1] - 1_000) < 200


def test_least_request_evens_out_what_is_in_flight() -> None:
    """A simulation: one of four answers ten times slower; it gets less, and nobody piles up."""
    cluster, listed = Cluster("c", "c", Policy.LEAST_REQUEST), one(1, 1, 1, 1)
    state, dice = ClusterState(), random.Random(7)
    ends: list[tuple[int, Endpoint]] = []
    served: Counter[int] = Counter()
    highest = 0
    for now in range(20_000):
        for due, endpoint in [e for e in ends if e[0] <= now]:
            ends.remove((due, endpoint))
            state.host(endpoint.key).active -= 1
        found = pick(cluster, listed, state, float(now), dice)
        assert found is not None
        state.host(found.key).active += 1
        highest = max(highest, state.host(found.key).active)
        served[found.port] += 1
        ends.append((now + (30 if found.port == 1 else 3), found))
    assert served[1] < 3_000
    assert all(served[port] > 5_000 for port in (2, 3, 4))
    assert highest <= 8


def test_weighted_least_request_follows_weight_and_load() -> None:
    cluster, listed = Cluster("c", "c", Policy.LEAST_REQUEST), one(1, 3)
    assert picks(cluster, listed, 4_000) == {1: 1_000, 2: 3_000}


def test_an_unhealthy_endpoint_is_not_picked_until_panic() -> None:
    mixed = (*endpoints(1, 1, 1), *endpoints(1, healthy=False, first=9))
    listed = EndpointSet((LocalityEndpoints("", 0, 1, mixed),))
    assert set(picks(Cluster("c", "c"), listed, 200)) == {1, 2, 3}
    few = EndpointSet(
        (LocalityEndpoints("", 0, 1, (*endpoints(1), *endpoints(1, 1, 1, healthy=False, first=7))),)
    )
    assert set(picks(Cluster("c", "c"), few, 400)) == {1, 7, 8, 9}
    assert set(picks(Cluster("c", "c", panic_threshold=0), few, 50)) == {1}


def test_localities_share_by_weight() -> None:
    listed = EndpointSet(
        (
            LocalityEndpoints("a", 0, 80, endpoints(1, 1)),
            LocalityEndpoints("b", 0, 20, endpoints(1, first=9)),
        )
    )
    cluster = Cluster("c", "c", Policy.ROUND_ROBIN, locality_weighted=True)
    seen = picks(cluster, listed, 1_000)
    assert (seen[1] + seen[2], seen[9]) == (800, 200)
    assert picks(Cluster("c", "c", Policy.ROUND_ROBIN), listed, 300) == {1: 100, 2: 100, 9: 100}


def test_hosts_tried_before_are_avoided_while_picks_are_left() -> None:
    cluster, listed = Cluster("c", "c", Policy.ROUND_ROBIN), one(1, 1)
    state, dice = ClusterState(), random.Random(1)
    first = listed.localities[0].endpoints[0].key
    for _ in range(10):
        found = pick(cluster, listed, state, 0.0, dice, Retry([first], 5))
        assert found is not None
        assert found.key != first
    alone = one(1)
    found = pick(cluster, alone, ClusterState(), 0.0, dice, Retry([first], 5))
    assert found is not None
    assert found.key == first
