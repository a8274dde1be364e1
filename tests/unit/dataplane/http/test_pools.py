"""What is decided about all pools of a client: when to look, who goes, what is kept."""

import math
from typing import Any

import pytest

from meshlib.core.balance.cluster import Cluster, Policy, Resolution
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.view import View
from meshlib.dataplane.http.h2pool import Shared, SharedPool, Terms
from meshlib.dataplane.http.pool import Address, Kept, Pool
from meshlib.dataplane.http.pools import LOOK_SECONDS, SHORTEST, Pools, listed

MANY = 2**31 - 1
FREE = Terms(MANY, MANY, 0, MANY)


class Wire:
    """A connection of either kind."""

    keeps = math.inf
    allowed = 100

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True

    def __repr__(self) -> str:
        return self.name

    def usable(self) -> bool:
        return self.alive


def address(name: str) -> Address:
    return ((name, 1), None, "")


class Kind:
    """Pools of one kind, and how a connection of theirs is used."""

    def __init__(self, pool: Any) -> None:
        self.pools: Pools[Any, Wire] = Pools(pool, most_idle=4)
        self.shared = pool is SharedPool

    def make(self, cluster: str, name: str = "a", dies: float = math.inf) -> Any:
        pool, wire = self.pools[cluster], Wire(f"{cluster}/{name}")
        if self.shared:
            assert pool.seek(address(name), FREE, 0.0).room
            shared = Shared(wire, address(name), dies=dies)
            pool.made(shared, FREE)
            return shared
        assert pool.seek(address(name), MANY, 0.0).room
        pool.made()
        return Kept(wire, address(name), dies=dies)

    def give_back(self, cluster: str, kept: Any, now: float, idle: float) -> bool:
        """Whether it is to be closed."""
        pool = self.pools[cluster]
        if self.shared:
            return bool(pool.release(kept, now, idle, worn=False))
        if not pool.wants(kept, now):
            pool.gone()
            return True
        pool.give_back(kept, now, idle)
        return False

    def idle(self, cluster: str, name: str = "a", now: float = 0.0, idle: float = 60.0) -> Wire:
        made = self.make(cluster, name)
        assert not self.give_back(cluster, made, now, idle)
        wire: Wire = made.connection
        return wire


@pytest.fixture(params=[Pool, SharedPool])
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.param)


def test_it_is_looked_when_the_next_is_due_and_not_too_often(kind: Kind) -> None:
    pools = kind.pools
    assert pools.looks_at == math.inf
    assert pools.sooner(103.0, 100.0) == 3.0
    assert pools.looks_at == 103.0
    assert pools.sooner(90.0, 100.0) == SHORTEST
    assert pools.sooner(3700.0, 100.0) == LOOK_SECONDS


def test_a_look_closes_what_is_due_and_says_when_to_look_again(kind: Kind) -> None:
    old, young = kind.idle("c", now=0.0, idle=5.0), kind.idle("d", now=0.0, idle=7.0)
    assert kind.pools.look(5.5) == ([old], 1.5)
    assert kind.pools.looks_at == 7.0
    assert kind.pools.look(8.0) == ([young], None)
    assert kind.pools.looks_at == math.inf
    assert kind.pools.look(9.0) == ([], None)


def test_what_has_lived_for_long_enough_is_due_then(kind: Kind) -> None:
    made = kind.make("c", dies=5.0)
    kind.give_back("c", made, 1.0, 60.0)
    assert kind.pools.look(2.0) == ([], 3.0)
    assert kind.pools.look(5.5) == ([made.connection], None)


def test_a_look_closes_what_its_peer_has_closed_and_leaves_what_is_in_use(kind: Kind) -> None:
    dead = kind.idle("c", "a")
    used = kind.make("c", "b")
    dead.alive = False
    assert kind.pools.look(1.0) == ([dead], None)
    assert kind.pools["c"].opened == 1
    assert not kind.give_back("c", used, 2.0, 60.0)


def test_where_one_is_made_those_idle_for_longest_make_room(kind: Kind) -> None:
    wires = [kind.idle(f"c{number}", now=float(number)) for number in range(4)]
    assert kind.pools.spare() == []
    wires.append(kind.idle("c9", now=9.0))
    assert kind.pools.spare() == wires[:2]
    assert kind.pools.spare() == []
    assert sum(pool.opened for pool in kind.pools.values()) == 3


def test_what_is_in_use_does_not_count_and_does_not_go(kind: Kind) -> None:
    for number in range(10):
        kind.make(f"c{number}")
    assert kind.pools.spare() == []
    wires = [kind.idle("d", f"e{number}", now=float(number)) for number in range(5)]
    assert kind.pools.spare() == wires[:2]


def test_none_stays_if_none_may() -> None:
    kind = Kind(Pool)
    kind.pools.most_idle = 0
    only = kind.idle("c")
    assert kind.pools.spare() == [only]


def test_half_of_them_go_where_there_is_no_descriptor(kind: Kind) -> None:
    wires = [kind.idle("c", f"e{number}", now=float(number)) for number in range(3)]
    assert kind.pools.halve() == wires[:2] + wires[2:]  # 7/8 of one is none
    assert kind.pools.halve() == []


def test_connections_to_what_is_not_listed_any_more_go(kind: Kind) -> None:
    here, gone = kind.idle("c", "a"), kind.idle("c", "b")
    used = kind.make("c", "d")
    assert kind.pools.keep_to({"c": frozenset((("a", 1),)), "other": frozenset()}) == [gone]
    assert kind.give_back("c", used, 1.0, 60.0)
    assert kind.pools.keep_to({"c": None}) == []
    assert kind.pools.keep_to({"c": frozenset()}) == [here]


def test_copies_have_pools_of_their_own_that_lead_to_the_same(kind: Kind) -> None:
    for name in ("c", "mirror|c", "mirror|d", "e"):
        kind.idle(name)
    assert kind.pools.leading_to(iter(["c", "d", "f"])) == ["c", "mirror|c", "mirror|d"]
    view = View("7", {}, {"d": Cluster("d", "d")}, {"d": EndpointSet(())})
    assert listed(view, kind.pools.leading_to(["c", "d"])) == dict.fromkeys(
        ("c", "mirror|c", "mirror|d"), frozenset()
    )


def test_what_is_listed_again_is_kept_again(kind: Kind) -> None:
    kind.pools["c"].keep_to(frozenset())
    made = kind.make("c", "b")
    kind.pools.keep_to({"c": frozenset((("b", 1),))})
    assert not kind.give_back("c", made, 1.0, 60.0)


def test_empty_pools_are_forgotten_where_another_is_made(kind: Kind) -> None:
    kind.idle("c", idle=1.0)
    kind.make("used")
    kind.pools.look(5.0)
    assert set(kind.pools) == {"c", "used"}
    kind.make("d")
    assert set(kind.pools) == {"used", "d"}


def test_where_connections_of_a_cluster_may_lead() -> None:
    groups = tuple(
        LocalityEndpoints("", number, 1, (Endpoint(f"10.0.0.{number}", 80, healthy=not number),))
        for number in range(2)
    )
    clusters = {
        "c": Cluster("c", "c"),
        "own": Cluster("own", "own", inline=EndpointSet(groups[:1])),
        "none": Cluster("none", "none"),
        "through": Cluster("through", "through", Policy.ROUND_ROBIN, Resolution.ORIGINAL),
        "named": Cluster("named", "named", Policy.ROUND_ROBIN, Resolution.DYNAMIC),
    }
    view = View("7", {}, clusters, {"c": EndpointSet(groups)})
    assert listed(view, [*clusters, "gone"]) == {
        "c": {("10.0.0.0", 80), ("10.0.0.1", 80)},
        "own": {("10.0.0.0", 80)},
        "none": frozenset(),
        "through": None,
        "named": None,
        "gone": frozenset(),
    }
