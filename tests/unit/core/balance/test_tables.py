"""Tables of keys: what holds of every ring and every Maglev table; tests/envoy compares them with Envoy's."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.core.balance.cluster import Cluster, HashTable, Policy
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.balance.maglev import maglev
from meshlib.core.balance.pick import pick, prepare
from meshlib.core.balance.plan import HASH_KEY
from meshlib.core.balance.ring import Find, Weighted, ring
from meshlib.core.ledger import ClusterState

RING = Cluster("c", "c", Policy.RING_HASH, hash_table=HashTable())
MAGLEV = Cluster("c", "c", Policy.MAGLEV, hash_table=HashTable(maglev=1021))
_DICE = random.Random(1)
KEYS = [_DICE.getrandbits(64) for _ in range(2_000)]


def hosts(*weights: int) -> list[Weighted]:
    total = sum(weights)
    made = [Endpoint("10.0.0.1", number, weight) for number, weight in enumerate(weights, 1)]
    return [(endpoint.key.encode(), endpoint, endpoint.weight / total) for endpoint in made]


def shares(find: Find) -> Counter[int]:
    found = (find(key, 0) for key in KEYS)
    return Counter(endpoint.port for endpoint in found if endpoint is not None)


def tables(weighted: list[Weighted]) -> list[Find]:
    return [ring(weighted, 1024, 8192), maglev(weighted, 1021)]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_everybody_has_about_its_share(weights: list[int]) -> None:
    for find in tables(hosts(*weights)):
        seen = shares(find)
        assert sum(seen.values()) == len(KEYS)
        for port, weight in enumerate(weights, 1):
            share = weight / sum(weights)
            # A ring of 1,024 points is rough: a host with n of them has a share within 5 / sqrt(n) of it.
            assert abs(seen[port] / len(KEYS) - share) < 5 * share / (1024 * share) ** 0.5 + 0.03


def test_who_leaves_takes_little_along() -> None:
    before, after = hosts(*[1] * 10), hosts(*[1] * 9)
    for old, new in zip(tables(before), tables(after), strict=True):
        pairs = [(old(key, 0), new(key, 0)) for key in KEYS]
        moved = sum(one is not None and one != other and one.port != 10 for one, other in pairs)
        assert moved < len(KEYS) / 10


def test_the_order_of_endpoints_does_not_matter() -> None:
    for one, other in zip(tables(hosts(1, 2, 3)), tables(hosts(1, 2, 3)[::-1]), strict=True):
        differ = sum(one(key, 0) != other(key, 0) for key in KEYS)
        # Of a ring, rounding may give another one a point more.
        assert differ < len(KEYS) / 100


def test_the_next_try_is_another_place() -> None:
    for find in tables(hosts(1, 1, 1, 1)):
        assert sum(find(key, 1) != find(key, 0) for key in KEYS) > len(KEYS) / 2
        assert all(find(key, attempt) is not None for key in KEYS[:50] for attempt in range(6))


def test_nobody() -> None:
    assert ring([], 1024, 8192)(5, 0) is None
    assert maglev([], 1021)(5, 0) is None
    assert ring(hosts(1), 0, 8192)(5, 0) is None


def test_edges_of_the_ring() -> None:
    find = ring(hosts(1, 1), 2, 2)
    assert {find(0, 0), find(2**64 - 1, 0)} <= {endpoint for _, endpoint, _ in hosts(1, 1)}
    assert find(0, 0) is not None
    # Past the last point comes the first.
    assert find(0, 0) == find(2**64 - 1, 0)


def one(*endpoints: Endpoint) -> EndpointSet:
    return EndpointSet((LocalityEndpoints("", 0, 1, endpoints),))


def owners(cluster: Cluster, listed: EndpointSet, state: ClusterState | None = None) -> list[int]:
    state, dice = state or ClusterState(), random.Random(1)
    found = [pick(cluster, listed, state, 0.0, dice, key=key) for key in KEYS]
    return [endpoint.port if endpoint is not None else 0 for endpoint in found]


@pytest.mark.parametrize("cluster", [RING, MAGLEV], ids=["ring", "maglev"])
def test_who_is_ejected_has_no_place_and_gets_the_old_one_back(cluster: Cluster) -> None:
    listed = one(*(Endpoint("10.0.0.1", port) for port in (1, 2, 3)))
    state = ClusterState()
    before = owners(cluster, listed, state)
    gone = state.host("10.0.0.1:2")
    state.ejected["10.0.0.1:2"], state.plan, gone.ejected_until = gone, None, 30.0
    during = owners(cluster, listed, state)
    assert 2 not in during
    assert sum(one != other for one, other in zip(before, during, strict=True) if one != 2) < 200
    del state.ejected["10.0.0.1:2"]
    state.plan = None
    assert owners(cluster, listed, state) == before


def test_in_panic_everybody_has_a_place() -> None:
    sick = [Endpoint("10.0.0.1", port, healthy=port == 1) for port in (1, 2, 3)]
    assert set(owners(RING, one(*sick))) == {1, 2, 3}
    calm = Cluster("c", "c", Policy.RING_HASH, hash_table=HashTable(), panic_threshold=0)
    assert set(owners(calm, one(*sick))) == {1}


def test_a_request_without_a_key_goes_anywhere() -> None:
    listed, dice, state = one(*(Endpoint("10.0.0.1", port) for port in (1, 2, 3))), random.Random(1), None
    state = ClusterState()
    found = Counter(
        endpoint.port for _ in range(900) if (endpoint := pick(RING, listed, state, 0.0, dice)) is not None
    )
    assert all(200 < found[port] < 400 for port in (1, 2, 3))


def test_metadata_or_the_host_name_may_stand_for_an_endpoint() -> None:
    moved = [
        Endpoint(f"10.0.0.{n}", 80 + n, hostname=f"h{n}", metadata=((HASH_KEY, f"k{n}"),)) for n in (1, 2)
    ]
    again = [
        Endpoint(f"10.9.9.{n}", 80 + n, hostname=f"h{n}", metadata=((HASH_KEY, f"k{n}"),)) for n in (1, 2)
    ]
    assert owners(RING, one(*moved)) == owners(RING, one(*again))
    by_name = Cluster("c", "c", Policy.RING_HASH, hash_table=HashTable(by_hostname=True))
    named = [[Endpoint(f"10.{m}.0.{n}", 80 + n, hostname=f"h{n}") for n in (1, 2)] for m in (0, 1)]
    assert owners(by_name, one(*named[0])) == owners(by_name, one(*named[1]))
    assert owners(RING, one(*named[0])) != owners(RING, one(*named[1]))
    # An IPv6 address counts as Envoy writes it, whoever wrote it.
    assert owners(RING, one(Endpoint("2001:DB8:0::1", 1), Endpoint("::2", 2))) == owners(
        RING, one(Endpoint("2001:db8::1", 1), Endpoint("0::2", 2))
    )


def test_a_table_that_is_ready_is_taken_and_one_of_others_is_not() -> None:
    listed, dice, state = (
        one(Endpoint("10.0.0.1", 1), Endpoint("10.0.0.1", 2)),
        random.Random(1),
        ClusterState(),
    )
    prepare(RING, listed, state, 0.0, dice)
    ready = state.ready
    pick(RING, listed, state, 0.0, dice, key=1)
    assert state.plan is ready
    pick(RING, one(Endpoint("10.0.0.1", 3)), state, 0.0, dice, key=1)
    assert state.plan is not ready
    plain = ClusterState()
    prepare(Cluster("c", "c"), listed, plain, 0.0, dice)
    assert plain.ready is None
