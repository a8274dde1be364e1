"""Retries that leave the priorities tried before; tests/envoy compares them with Envoy's."""

import random
from collections import Counter

from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.balance.pick import Retry, pick
from meshlib.core.balance.plan import Plan
from meshlib.core.balance.remote import loads_after
from meshlib.core.ledger import ClusterState

LISTED = EndpointSet(
    tuple(
        LocalityEndpoints(
            f"z{priority}", priority, 1, tuple(Endpoint(f"10.0.{priority}.1", n) for n in (1, 2))
        )
        for priority in range(3)
    )
)
NEAR, OTHER, FAR = "10.0.0.1:1", "10.0.1.1:1", "10.0.2.1:1"


def plan() -> Plan:
    return Plan(Cluster("c", "c"), LISTED, ClusterState(), 0.0, random.Random(1))


def healthy(*tried: str, frequency: int = 1) -> tuple[int, ...] | None:
    loads = loads_after(plan(), tried, frequency)
    return None if loads is None else loads.healthy


def test_what_was_tried_takes_nothing_more() -> None:
    assert healthy() is None
    assert healthy(NEAR) == (0, 100, 0)
    assert healthy(NEAR, OTHER) == (0, 0, 100)


def test_all_begin_again_when_none_is_left() -> None:
    assert healthy(NEAR, OTHER, FAR) == (100, 0, 0)
    assert healthy(NEAR, OTHER, FAR, NEAR) == (0, 100, 0)


def test_only_every_so_many_tries_change_something() -> None:
    assert healthy(NEAR, frequency=2) is None
    assert healthy(NEAR, NEAR, frequency=2) == (0, 100, 0)
    assert healthy(NEAR, NEAR, OTHER, frequency=2) == (0, 100, 0)
    assert healthy(NEAR, NEAR, OTHER, OTHER, frequency=2) == (0, 0, 100)


def test_who_is_gone_excludes_nobody() -> None:
    assert healthy("9.9.9.9:9") == (100, 0, 0)


def test_a_pick_heeds_it_and_hosts_tried_besides() -> None:
    cluster, state, dice = Cluster("c", "c"), ClusterState(), random.Random(1)
    found = Counter(
        endpoint.key
        for _ in range(100)
        if (endpoint := pick(cluster, LISTED, state, 0.0, dice, Retry([NEAR, NEAR], 50, 2))) is not None
    )
    assert set(found) == {"10.0.1.1:1", "10.0.1.1:2"}
    found = Counter(
        endpoint.key
        for _ in range(100)
        if (endpoint := pick(cluster, LISTED, state, 0.0, dice, Retry([OTHER, NEAR, OTHER], 50, 3)))
        is not None
    )
    assert set(found) == {"10.0.2.1:1", "10.0.2.1:2"}
