"""A simulator with a seed: arrivals, service times, failures and a clock of its own; what must hold of a
balancer is asserted in numbers. A run takes some tens of milliseconds.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from meshlib.core.balance.cluster import Cluster, Policy, Warmup
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.balance.pick import pick
from meshlib.core.ledger import ClusterState
from meshlib.core.outlier import learn
from meshlib.core.outlier_policy import InARow, OutlierPolicy
from meshlib.core.request import ResponseHead

Seconds = float


class Simulation:
    """Requests to one cluster. `lasts` draws how long an endpoint takes; where it `fails` it answers 503."""

    def __init__(
        self,
        cluster: Cluster,
        listed: EndpointSet,
        *,
        seed: int = 1,
        lasts: Callable[[Endpoint, random.Random], Seconds] = lambda endpoint, dice: dice.expovariate(100),
        fails: Callable[[Endpoint, Seconds], bool] = lambda endpoint, now: False,
    ) -> None:
        self.cluster, self.listed = cluster, listed
        self.dice = random.Random(seed)
        self.lasts, self.fails = lasts, fails
        self.state = ClusterState()
        self.now = 0.0
        self.served: list[tuple[Seconds, Endpoint]] = []
        self.failed: Counter[int] = Counter()
        self.unserved = 0
        self.busiest: list[int] = []
        """Requests in flight at the endpoint picked, this one included."""
        self._ends: list[tuple[Seconds, int, Endpoint]] = []

    def run(self, seconds: Seconds, rate: float) -> "Simulation":
        """Goes on for that long, with so many arrivals a second."""
        end = self.now + seconds
        arrival = self.now + self.dice.expovariate(rate)
        while arrival < end:
            while self._ends and self._ends[0][0] <= arrival:
                self._end()
            self.now = arrival
            self._begin()
            arrival += self.dice.expovariate(rate)
        self.now = end
        return self

    def _begin(self) -> None:
        found = pick(self.cluster, self.listed, self.state, self.now, self.dice)
        if found is None:
            self.unserved += 1
            return
        host = self.state.host(found.key)
        host.active += 1
        self.busiest.append(host.active)
        self.served.append((self.now, found))
        heapq.heappush(self._ends, (self.now + self.lasts(found, self.dice), len(self.served), found))

    def _end(self) -> None:
        self.now, _, endpoint = heapq.heappop(self._ends)
        self.state.host(endpoint.key).active -= 1
        failed = self.fails(endpoint, self.now)
        self.failed[endpoint.port] += failed
        if self.cluster.outlier is not None:
            outcome, host = ResponseHead(503 if failed else 200), self.state.host(endpoint.key)
            policy, size = self.cluster.outlier, self.listed.size
            learn(policy, self.state, endpoint.key, host, outcome, lambda: size, lambda: self.now, self.dice)

    def shares(self, start: Seconds = 0.0, end: Seconds = float("inf")) -> dict[int, float]:
        """The part of the requests in that time that each endpoint took, by port."""
        seen = Counter(endpoint.port for at, endpoint in self.served if start <= at < end)
        return {port: count / seen.total() for port, count in seen.items()}


def endpoints(*ports: int, sick: tuple[int, ...] = ()) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("10.0.0.1", port, healthy=port not in sick) for port in ports)


def one(*listed: Endpoint) -> EndpointSet:
    return EndpointSet((LocalityEndpoints("", 0, 1, listed),))


TEN = one(*endpoints(*range(1, 11)))


@pytest.mark.parametrize("seed", range(3))
def test_two_choices_keep_queues_short_where_chance_does_not(seed: int) -> None:
    """Ten endpoints that serve one request after the other would, at 80 % of what they can do."""
    busiest = {}
    for policy in (Policy.LEAST_REQUEST, Policy.ROUND_ROBIN, Policy.RANDOM):
        made = Simulation(Cluster("c", "c", policy), TEN, seed=seed).run(5.0, 800.0)
        counts = sorted(made.busiest)
        busiest[policy] = counts[int(len(counts) * 0.99)]
        assert max(abs(share - 0.1) for share in made.shares().values()) < 0.02
    assert busiest[Policy.LEAST_REQUEST] <= 3
    assert busiest[Policy.LEAST_REQUEST] < busiest[Policy.RANDOM]


def test_two_choices_pass_a_slow_endpoint_by() -> None:
    def lasts(endpoint: Endpoint, dice: random.Random) -> Seconds:
        return dice.expovariate(100 if endpoint.port > 1 else 5)

    for policy, most in ((Policy.LEAST_REQUEST, 0.06), (Policy.ROUND_ROBIN, 0.101)):
        made = Simulation(Cluster("c", "c", policy), TEN, lasts=lasts).run(5.0, 800.0)
        assert made.shares()[1] < most
        if policy is Policy.LEAST_REQUEST:
            assert max(made.busiest) < 12


@pytest.mark.parametrize("policy", [Policy.ROUND_ROBIN, Policy.LEAST_REQUEST])
def test_a_new_endpoint_warms_up_in_a_straight_line(policy: Policy) -> None:
    cluster = Cluster("c", "c", policy, warmup=Warmup(10.0))
    old = one(*endpoints(1, 2, 3))
    made = Simulation(cluster, old).run(20.0, 300.0)
    made.listed = one(*endpoints(1, 2, 3, 4))
    made.run(20.0, 300.0)
    for second in range(10):
        warm = max(0.1, (second + 0.5) / 10)
        assert abs(made.shares(20.0 + second, 21.0 + second).get(4, 0.0) - warm / (3 + warm)) < 0.06
    assert abs(made.shares(31.0)[4] - 0.25) < 0.03
    # The others were never favoured among themselves.
    assert max(abs(made.shares(0.0, 20.0)[port] - 1 / 3) for port in (1, 2, 3)) < 0.03


def test_after_the_window_the_plan_is_the_usual_one_again() -> None:
    cluster = Cluster("c", "c", Policy.LEAST_REQUEST, warmup=Warmup(10.0))
    made = Simulation(cluster, TEN).run(9.0, 100.0)
    warm = made.state.plan
    assert warm.until == pytest.approx(10.0, abs=0.2)
    made.run(3.0, 100.0)
    assert made.state.plan is not warm
    assert made.state.plan.until == float("inf")
    # One that comes back from an ejection was here before: it does not warm up again.
    since = made.state.host("10.0.0.1:1").since
    assert since is not None
    assert since < 1.0


OUTLIER = OutlierPolicy(consecutive_5xx=InARow(5), interval=1.0, base_ejection=5.0, max_ejection_percent=50)


def test_who_always_fails_costs_few_requests_and_longer_each_time() -> None:
    cluster = Cluster("c", "c", Policy.ROUND_ROBIN, outlier=OUTLIER)
    made = Simulation(cluster, TEN, fails=lambda endpoint, now: endpoint.port == 1).run(60.0, 200.0)
    # 5, 10, 15, 20 s: five episodes in a minute, of five failures and what was in flight.
    assert 20 <= made.failed[1] <= 40
    assert made.shares()[1] < 0.004
    assert sum(made.failed.values()) == made.failed[1]


def test_who_recovers_gets_its_share_back() -> None:
    cluster = Cluster("c", "c", Policy.LEAST_REQUEST, outlier=OUTLIER)
    made = Simulation(cluster, TEN, fails=lambda endpoint, now: endpoint.port == 1 and now < 3.0)
    made.run(30.0, 300.0)
    assert 1 not in made.shares(1.0, 5.0)
    assert abs(made.shares(10.0)[1] - 0.1) < 0.02


def test_no_more_are_ejected_than_may_be() -> None:
    cluster = Cluster("c", "c", Policy.ROUND_ROBIN, outlier=OUTLIER, panic_threshold=0)
    made = Simulation(cluster, TEN, fails=lambda endpoint, now: endpoint.port > 3).run(20.0, 300.0)
    assert len(made.state.ejected) <= 5
    assert made.unserved == 0
    assert made.shares().keys() == set(range(1, 11))


def near_and_far(sick: tuple[int, ...] = ()) -> EndpointSet:
    near, far = endpoints(*range(1, 11), sick=sick), endpoints(*range(11, 21))
    return EndpointSet((LocalityEndpoints("near", 0, 1, near), LocalityEndpoints("far", 1, 1, far)))


@pytest.mark.parametrize(("sick", "near"), [(0, 1.0), (2, 1.0), (3, 0.98), (5, 0.7), (8, 0.28), (10, 0.0)])
def test_what_the_near_ones_can_not_take_goes_far(sick: int, near: float) -> None:
    listed = near_and_far(tuple(range(1, sick + 1)))
    made = Simulation(Cluster("c", "c"), listed).run(10.0, 400.0)
    shares = made.shares()
    assert abs(sum(share for port, share in shares.items() if port <= 10) - near) < 0.035
    assert not shares.keys() & set(range(1, sick + 1))
    if near in (0.0, 1.0):
        assert len({port > 10 for port in shares}) == 1


def test_ejections_move_requests_far_and_back() -> None:
    outlier = replace(OUTLIER, max_ejection_percent=100)
    cluster = Cluster("c", "c", Policy.ROUND_ROBIN, outlier=outlier, panic_threshold=0)

    def fails(endpoint: Endpoint, now: Seconds) -> bool:
        return endpoint.port <= 10 and now < 2.0

    made = Simulation(cluster, near_and_far(), fails=fails).run(20.0, 400.0)
    assert max(made.shares(0.0, 0.1)) <= 10
    assert min(made.shares(1.0, 4.0)) > 10
    assert max(made.shares(8.0)) <= 10
    assert made.unserved == 0
    assert sum(made.failed.values()) <= 10 * 8


def test_localities_with_weights_keep_their_shares_while_they_can() -> None:
    def listed(sick: tuple[int, ...]) -> EndpointSet:
        places = ((endpoints(1, 2, 3, 4, 5, sick=sick), 80), (endpoints(6, 7, 8, 9, 10), 20))
        return EndpointSet(
            tuple(LocalityEndpoints(f"z{n}", 0, weight, part) for n, (part, weight) in enumerate(places))
        )

    cluster = Cluster("c", "c", Policy.ROUND_ROBIN, locality_weighted=True)
    # 1.4 × 4/5 is enough; 1.4 × 2/5 of 80 is 44.8, beside 20.
    for sick, share in (((), 0.8), ((1,), 0.8), ((1, 2, 3), 44.8 / 64.8), ((1, 2, 3, 4, 5), 0.0)):
        made = Simulation(cluster, listed(sick)).run(5.0, 400.0)
        found = sum(part for port, part in made.shares().items() if port <= 5)
        assert abs(found - share) < 0.01
