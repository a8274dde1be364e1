"""Clusters of names in views: not there before the names are known, and published anew when they change."""

from typing import Any

from support.resources import routed

from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.dns import Question
from meshlib.core.balance.endpoints import EndpointSet
from meshlib.core.view import View
from meshlib.dataplane.ads import decoders
from meshlib.dataplane.views import Views
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource


class Told:
    """Knows of names what the test says."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, ...]] = {}
        self.asked: dict[str, Cluster] = {}

    def follow(self, who: str, cluster: Cluster | None) -> None:
        if cluster is None:
            self.asked.pop(who, None)
        else:
            self.asked[who] = cluster

    def endpoints(self, who: str) -> EndpointSet | None:
        cluster = self.asked.get(who)
        if cluster is None or cluster.named is None:
            return None
        answers: dict[Question, tuple[str, ...]] = {}
        for question in cluster.named.questions:
            if question[0] not in self.answers:
                return None
            answers[question] = self.answers[question[0]]
        return cluster.named.resolved(answers)


class Case:
    def __init__(self) -> None:
        self.names = Told()
        self.published: list[View] = []
        self.changed: list[set[str]] = []
        self.views = Views(decoders(), self._take, names=self.names)

    def _take(self, view: View, clusters: set[str]) -> None:
        self.published.append(view)
        self.changed.append(clusters)

    def give(self, *resources: Resource) -> None:
        for one in resources:
            assert self.views.apply(one.kind, "5.1", {one.name: one}) == {}

    def answer(self, host: str, *addresses: str) -> None:
        self.names.answers[host] = addresses
        self.views.resolved(["one", "elsewhere"])

    def keys(self, cluster: str = "one") -> list[str]:
        found = self.views.view.endpoints[cluster]
        return [one.key for group in found.localities for one in group.endpoints]


def named(name: str, host: str) -> Resource:
    address = {"socket_address": {"address": host, "port_value": 80}}
    listed = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    made: dict[str, Any] = {"name": name, "type": "STRICT_DNS", "load_assignment": listed}
    return Resource.of(Kind.CLUSTER, name, pb.from_dict(pb.Cluster, made))


def ready() -> Case:
    case = Case()
    case.views.want(["a:80"])
    case.give(*routed("a:80", "one"), named("one", "a.example"))
    case.answer("a.example", "10.0.0.1", "10.0.0.2")
    return case


def test_a_target_appears_when_its_names_are_known() -> None:
    case = Case()
    case.views.want(["a:80"])
    case.give(*routed("a:80", "one"), named("one", "a.example"))
    assert case.views.targets == {}
    assert case.views.missing("a:80") == {"cluster one"}
    assert case.views.needs()[Kind.ENDPOINTS] == set()
    case.views.touched()
    case.answer("a.example", "10.0.0.1", "10.0.0.2")
    assert "a:80" in case.views.targets
    assert case.keys() == ["10.0.0.1:80", "10.0.0.2:80"]
    assert case.views.touched() == {"a:80"}
    assert case.views.kept("a:80") is not None


def test_new_addresses_are_published_and_the_same_ones_are_not() -> None:
    case = ready()
    before = case.views.view
    case.answer("a.example", "10.0.0.3")
    assert case.keys() == ["10.0.0.3:80"]
    assert case.changed[-1] == {"one"}
    assert before.tables is case.views.view.tables
    assert case.views.touched() == {"a:80"}  # of its first
    endpoints = case.views.view.endpoints
    case.answer("a.example", "10.0.0.3")
    assert case.views.view.endpoints is endpoints


def test_no_address_is_an_answer() -> None:
    case = ready()
    case.answer("a.example")
    assert case.keys() == []
    assert "a:80" in case.views.targets


def test_until_other_names_are_known_the_old_endpoints_serve() -> None:
    case = ready()
    case.give(named("one", "b.example"))
    assert case.keys() == ["10.0.0.1:80", "10.0.0.2:80"]
    assert case.views.missing("a:80") == {"cluster one"}
    assert case.views.kept("a:80") is None
    case.answer("b.example", "10.0.0.9")
    assert case.keys() == ["10.0.0.9:80"]
    assert case.views.missing("a:80") == set()


def test_what_nobody_needs_is_not_asked_for_any_more() -> None:
    case = ready()
    assert case.names.asked.keys() == {"one"}
    case.give(named("two", "b.example"), routed("a:80", "two")[1])
    case.names.answers["b.example"] = ("10.0.0.9",)
    case.give(named("two", "b.example"))
    case.views.resolved(["two"])
    assert case.names.asked.keys() == {"two"}
    case.views.forget(["a:80"])
    assert case.names.asked == {}
    assert case.views.view.endpoints == {}
    case.views.resolved(["two"])


def test_a_cluster_that_goes_from_names_to_a_list() -> None:
    case = ready()
    listed = pb.from_dict(pb.Cluster, {"name": "one", "type": "STATIC"})
    case.give(Resource.of(Kind.CLUSTER, "one", listed))
    assert case.names.asked == {}
    assert case.keys() == []
