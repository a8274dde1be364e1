"""One connection, decided: every step, and what is given back however it ends."""

import random
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

import pytest

from meshlib.core import tcp
from meshlib.core.balance.cluster import Cluster, Limits, Policy, Resolution, Upstream
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.core.ledger import ClusterState, Ledger
from meshlib.core.mtls import ClientTls
from meshlib.core.outlier_policy import InARow, OutlierPolicy
from meshlib.core.request import Failed, Failure
from meshlib.core.route.chain import Connections, FilterChain, Share
from meshlib.core.route.table import RouteTable
from meshlib.core.tcp import Called, Connect, Linked, Lookup, Refuse, flow
from meshlib.core.view import View

DB = Called("db:5432", "db", 5432, "db")
REFUSED = Failed(Failure.CONNECT_FAILED, "nobody listens")


class Case:
    """A target, and the connections to it."""

    def __init__(
        self,
        *chains: FilterChain,
        default: FilterChain | None = None,
        addresses: Sequence[str] = (),
        endpoints: Sequence[str] = ("10.0.0.1", "10.0.0.2"),
        known: bool = True,
        **cluster: Any,
    ) -> None:
        chains = chains or (FilterChain((Share("c", 1, 1),)),)
        listed = EndpointSet(
            (LocalityEndpoints("", 0, 1, tuple(Endpoint(address, 5432) for address in endpoints)),)
        )
        policy = Cluster("c", "c", **{"policy": Policy.ROUND_ROBIN, **cluster})
        self.view = View(
            "1",
            {"db:5432": RouteTable("r", ()), "web:80": RouteTable("r", ())},
            {"c": policy} if known else {},
            {"c": listed},
            connections={"db:5432": Connections(chains, default, tuple(addresses), "7")},
        )
        self.ledger = Ledger()
        self.now = 100.0
        self.dice = random.Random(1)

    def flow(self, called: Called = DB, timeout: float | None = None) -> tcp.Flow:
        return flow(called, self.view, self.ledger, lambda: self.now, self.dice, timeout)

    @property
    def state(self) -> ClusterState:
        return self.ledger.cluster("c")

    @property
    def held(self) -> tuple[int, int, int]:
        """Of the cluster twice, of its endpoints."""
        return self.state.active, self.state.connections, sum(h.active for h in self.state.hosts.values())


def refusal(one: tcp.Flow, event: Any = None) -> Refuse:
    last = one.send(event)
    assert isinstance(last, Refuse)
    with pytest.raises(StopIteration):
        next(one)
    return last


def test_a_connection_holds_its_slots_from_its_try_to_its_end() -> None:
    case = Case(FilterChain((Share("c", 1, 1),), idle_timeout=9.0, max_duration=60.0))
    one = case.flow()
    connect = next(one)
    assert connect == Connect(("10.0.0.1", 5432), 10.0, None)
    assert case.held == (1, 1, 1)
    linked = one.send(None)
    assert isinstance(linked, Linked)
    assert (linked.idle_timeout, linked.max_duration) == (9.0, 60.0)
    assert (linked.facts.cluster, linked.facts.endpoint, linked.facts.flag) == ("c", "10.0.0.1:5432", "-")
    assert linked.facts.config_version == "7"
    assert case.held == (1, 1, 1)
    one.close()
    assert case.held == (0, 0, 0)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_whoever_gives_up_gives_the_slots_back(steps: int) -> None:
    case = Case()
    one = case.flow()
    for _ in range(steps):
        one.send(None)
    one.close()
    assert case.held == (0, 0, 0)


def test_a_failure_is_tried_again_elsewhere_as_often_as_the_chain_says() -> None:
    case = Case(FilterChain((Share("c", 1, 1),), attempts=3))
    one = case.flow()
    asked = [next(one), one.send(REFUSED), one.send(REFUSED)]
    hosts = [each.address[0] for each in asked if isinstance(each, Connect)]
    assert len(hosts) == 3
    assert len(set(hosts)) == 2
    assert case.held == (1, 1, 1)
    last = refusal(one, REFUSED)
    assert (last.failed, last.facts.flag, last.facts.attempts) == (REFUSED, "UF,URX", 3)
    assert case.held == (0, 0, 0)


def test_one_connection_more_than_there_may_be_is_refused_at_once() -> None:
    case = Case(upstream=Upstream(limits=Limits(max_connections=1)))
    first = case.flow()
    next(first)
    last = refusal(case.flow())
    assert (last.failed, last.facts.flag) == (None, "UO")
    assert "has 1 connections" in last.facts.detail
    first.close()
    assert isinstance(next(case.flow()), Connect)


def test_requests_do_not_count_as_connections() -> None:
    case = Case(upstream=Upstream(limits=Limits(max_connections=1, max_requests=1)))
    case.state.active = 5
    assert isinstance(next(case.flow()), Connect)


def test_without_a_healthy_endpoint_there_is_none() -> None:
    last = refusal(Case(endpoints=()).flow())
    assert (last.failed, last.facts.flag) == (None, "UH")


def test_an_unknown_cluster_is_no_cluster() -> None:
    assert refusal(Case(known=False).flow()).facts.flag == "NC"


def test_a_target_of_requests_says_so() -> None:
    last = refusal(Case().flow(Called("web:80", "web", 80)))
    assert last.facts.flag == "NR"
    assert "speaks HTTP" in last.facts.detail
    assert "knows nothing" in refusal(Case().flow(Called("x:1", "x", 1))).facts.detail


def test_no_chain_and_a_chain_that_blocks_refuse() -> None:
    named = FilterChain((Share("c", 1, 1),), names=("other",))
    assert refusal(Case(named).flow()).facts.flag == "NR"
    blocked = refusal(Case(named, default=FilterChain((), "b", blocks=True)).flow())
    assert (blocked.facts.flag, blocked.facts.route) == ("UH", "b")
    assert "REGISTRY_ONLY" in blocked.facts.detail


def test_the_address_is_the_applications_the_services_or_the_resolvers() -> None:
    chains = (
        FilterChain((Share("c", 1, 1),)),
        FilterChain((Share("d", 1, 1),), subnets=(ip_network("10.0.0.0/8"),)),
    )
    literal = Called("db:5432", "10.0.0.7", 5432, literal=True)
    assert refusal(Case(*chains).flow(literal)).facts.cluster == "d"
    assert refusal(Case(*chains, addresses=("10.9.9.9", "11.0.0.1")).flow()).facts.cluster == "d"
    for found, cluster in (((), None), (("11.0.0.1",), None), (("10.0.0.7", "11.0.0.1"), "d")):
        one = Case(*chains).flow()
        assert next(one) == Lookup("db")
        action = one.send(found)
        assert (action.facts.cluster if isinstance(action, Refuse) else None) == cluster


def test_what_passes_through_goes_where_the_application_says() -> None:
    one = Case(resolution=Resolution.ORIGINAL).flow()
    connect = next(one)
    assert isinstance(connect, Connect)
    assert connect.address == ("db", 5432)


def test_an_endpoint_is_secured_as_the_cluster_says() -> None:
    tls = ClientTls(sni="a.example")
    connect = next(Case(tls=tls).flow())
    assert isinstance(connect, Connect)
    assert connect.tls is tls


def test_outlier_detection_hears_of_tries_and_of_nothing_else() -> None:
    case = Case(
        outlier=OutlierPolicy(consecutive_5xx=InARow(2), max_ejection_percent=100), endpoints=("10.0.0.1",)
    )
    for failed in (REFUSED, None, REFUSED):
        one = case.flow()
        next(one)
        one.send(failed)
        one.close()
    assert not case.state.ejected  # a connection in between sets the count back
    one = case.flow()
    next(one)
    one.send(Failed(Failure.CONNECT_TIMED_OUT))
    assert list(case.state.ejected) == ["10.0.0.1:5432"]


def test_the_time_of_whoever_waits_ends_the_tries() -> None:
    outlier = OutlierPolicy(consecutive_5xx=InARow(1), max_ejection_percent=100)
    case = Case(FilterChain((Share("c", 1, 1),), attempts=5), outlier=outlier)
    one = case.flow(timeout=3.0)
    connect = next(one)
    assert isinstance(connect, Connect)
    assert connect.deadline == 103.0
    case.now = 103.0
    last = refusal(one, Failed(Failure.CONNECT_TIMED_OUT))
    assert last.failed is not None
    assert (last.failed.how, last.facts.flag) == (Failure.TIMED_OUT, "UT")
    assert not case.state.ejected  # the endpoint had not its whole time
    assert case.held == (0, 0, 0)


def test_nobody_is_connected_to_for_who_waits_no_longer() -> None:
    case = Case(FilterChain((Share("c", 1, 1),), attempts=5))
    only, *more = case.flow(timeout=-1.0)
    assert isinstance(only, Refuse)
    assert not more
    assert only.failed is not None
    assert (only.failed.how, only.facts.flag, only.facts.attempts) == (Failure.TIMED_OUT, "UT", 0)
    assert case.held == (0, 0, 0)
