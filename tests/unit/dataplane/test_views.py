"""From resources, in whatever order, to views that are whole."""

from collections.abc import Iterable
from typing import Any

import pytest
from support.resources import DECODERS, routed, served_by, target

from meshlib.core.view import View
from meshlib.dataplane.cache import LastGood
from meshlib.dataplane.views import Target, Views
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource

PIECES = {resource.kind: resource for resource in target("a:80", "one")}
LISTENER, ROUTES = routed("a:80", "one")
BROKEN_LISTENER = Resource(Kind.LISTENER, "a:80", "broken", b"\xff")
BROKEN_ROUTES = routed("a:80", "")[1]


def views_of(*wanted: str) -> tuple[Views, list[View]]:
    published: list[View] = []
    views = Views(DECODERS, lambda view, _: published.append(view))
    views.want(wanted)
    return views, published


def give(views: Views, resources: Iterable[Resource], version: str = "5.1") -> dict[str, str]:
    """One update a resource, in this order."""
    refused: dict[str, str] = {}
    for one in resources:
        refused |= views.apply(one.kind, version, {one.name: one})
    return refused


def to(cluster: str, name: str = "a:80") -> Resource:
    return routed(name, cluster)[1]


def clusters(views: Views, name: str = "a:80") -> list[str]:
    host = views.view.tables[name].find_host("any")
    assert host is not None
    return [c.name for route in host.routes for c in route.action.clusters]  # type: ignore[union-attr]


def ports(views: Views, cluster: str) -> list[int]:
    listed = views.view.endpoints[cluster]
    return [endpoint.port for group in listed.localities for endpoint in group.endpoints]


def test_a_target_appears_when_its_last_piece_came() -> None:
    views, published = views_of("a:80")
    for one in target("a:80", "one"):
        assert views.targets == {}
        assert views.view.tables == {}
        give(views, [one])
    assert clusters(views) == ["one"]
    assert ports(views, "one") == [1]
    assert views.targets["a:80"].table is views.view.tables["a:80"]
    assert published[-1] is views.view
    assert views.view.version == "5.1"
    assert "1 wanted, 0 held back" in repr(views)


def test_each_piece_leads_to_the_next_need() -> None:
    views, _ = views_of("a:80")
    seen = []
    for one in target("a:80", "one"):
        seen.append({kind.short: names for kind, names in views.needs().items() if names})
        give(views, [one])
    listener, routes, cluster = ("a:80",), ("routes a:80",), ("one",)
    short = [kind.short for kind in (Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS)]
    whole = [set(listener), set(routes), set(cluster), {"one"}]
    assert seen == [dict(zip(short[:count], whole, strict=False)) for count in (1, 2, 3, 4)]


def test_what_is_missing_is_said() -> None:
    views, _ = views_of("a:80")
    said = []
    for one in target("a:80", "one"):
        said.append(views.missing("a:80"))
        give(views, [one])
    assert said == [{"its listener a:80"}, {"its routes routes a:80"}, {"cluster one"}, {"cluster one"}]
    assert views.missing("a:80") == set()


def test_make_before_break() -> None:
    views, published = views_of("a:80")
    give(views, target("a:80", "one"))
    give(views, [to("two")], "5.2")
    assert clusters(views) == ["one"]
    assert "1 held back" in repr(views)
    assert views.needs()[Kind.CLUSTER] == {"one", "two"}
    assert views.kept("a:80") is None
    give(views, [served_by("two", 2)[0]], "5.2")
    assert clusters(views) == ["one"]
    give(views, [served_by("two", 2)[1]], "5.2")
    assert (clusters(views), ports(views, "two")) == (["two"], [2])
    assert "0 held back" in repr(views)
    assert views.view.clusters.keys() == {"two"}
    assert views.needs()[Kind.CLUSTER] == {"two"}
    assert views.held(Kind.CLUSTER).keys() == {"two"}
    for view in published:
        for table in view.tables.values():
            assert {c.name for h in table.hosts for r in h.routes for c in r.action.clusters} <= {
                *view.clusters
            }


def test_a_target_that_waits_keeps_a_cluster_that_is_gone() -> None:
    views, _ = views_of("a:80")
    give(views, target("a:80", "one"))
    give(views, [to("two")], "5.2")
    views.apply(Kind.CLUSTER, "5.2", {}, ["one"])
    assert (clusters(views), ports(views, "one")) == (["one"], [1])
    give(views, served_by("two", 2), "5.2")
    assert views.view.clusters.keys() == {"two"}


def test_a_cluster_that_does_not_exist_holds_nothing_back() -> None:
    views, _ = views_of("a:80")
    give(views, [LISTENER, ROUTES])
    views.apply(Kind.CLUSTER, "5.1", {}, ["one"])
    assert clusters(views) == ["one"]
    assert dict(views.view.clusters) == {}
    give(views, served_by("one", 7), "5.2")
    assert ports(views, "one") == [7]


def test_endpoints_that_do_not_exist_hold_nothing_back() -> None:
    views, _ = views_of("a:80")
    give(views, [LISTENER, ROUTES, PIECES[Kind.CLUSTER]])
    views.apply(Kind.ENDPOINTS, "5.1", {}, ["one"])
    assert views.view.clusters.keys() == {"one"}
    assert dict(views.view.endpoints) == {}


@pytest.mark.parametrize("kind", [Kind.LISTENER, Kind.ROUTES])
def test_a_target_that_does_not_exist_is_answered(kind: Kind) -> None:
    views, _ = views_of("a:80")
    if kind is Kind.ROUTES:
        give(views, [LISTENER])
    views.apply(kind, "5.1", {}, ["a:80" if kind is Kind.LISTENER else "routes a:80"])
    assert dict(views.targets) == {"a:80": Target()}
    assert dict(views.view.tables) == {}


def test_a_target_that_goes_takes_its_table_along() -> None:
    views, _ = views_of("a:80", "b:80")
    give(views, (*target("a:80", "one"), *target("b:80", "two")))
    views.apply(Kind.LISTENER, "5.2", {}, ["a:80"])
    assert views.targets["a:80"] == Target()
    assert views.view.tables.keys() == {"b:80"}
    assert views.view.clusters.keys() == {"two"}
    assert views.held(Kind.CLUSTER).keys() == {"two"}


def test_refused_routes_leave_the_last_good_ones() -> None:
    views, _ = views_of("a:80")
    give(views, target("a:80", "one"))
    refused = give(views, [BROKEN_ROUTES], "5.2")
    assert refused.keys() == {"routes a:80"}
    assert clusters(views) == ["one"]
    assert views.held(Kind.ROUTES) == {"routes a:80": ROUTES.version}
    kept = views.kept("a:80")
    assert kept is not None
    assert ROUTES in kept.resources
    assert BROKEN_ROUTES not in kept.resources


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ([BROKEN_LISTENER], "listener a:80: can't be decoded"),
        ([LISTENER, BROKEN_ROUTES], "routes routes a:80: "),
    ],
)
def test_a_target_that_never_was_any_good_fails_until_it_is(resources: list[Resource], said: str) -> None:
    views, _ = views_of("a:80")
    assert len(give(views, resources)) == 1
    failed = views.targets["a:80"].failed
    assert failed is not None
    assert str(failed).startswith(said)
    give(views, target("a:80", "one"), "5.2")
    assert views.targets["a:80"].failed is None
    assert clusters(views) == ["one"]


def test_a_refused_cluster_counts_as_missing_or_stays_as_it_was() -> None:
    views, _ = views_of("a:80")
    give(views, [LISTENER, ROUTES])
    broken = Resource(Kind.CLUSTER, "one", "broken", b"\xff")
    assert give(views, [broken]).keys() == {"one"}
    assert dict(views.view.clusters) == {}
    give(views, served_by("one", 7))
    give(views, [broken], "5.3")
    assert ports(views, "one") == [7]


def test_one_bad_resource_of_an_update_does_not_hurt_the_others() -> None:
    views, _ = views_of("a:80", "b:80")
    give(views, (*target("a:80", "one"), *target("b:80", "two")))
    refused = views.apply(
        Kind.ROUTES, "5.2", {"routes a:80": BROKEN_ROUTES, "routes b:80": to("one", "b:80")}
    )
    assert refused.keys() == {"routes a:80"}
    assert (clusters(views, "a:80"), clusters(views, "b:80")) == (["one"], ["one"])


def test_a_kind_that_nobody_asked_for() -> None:
    views, _ = views_of("a:80")
    scoped = Resource(Kind.SCOPED_ROUTES, "x", "1", b"")
    assert views.apply(Kind.SCOPED_ROUTES, "5.1", {"x": scoped}) == {
        "x": f"{Kind.SCOPED_ROUTES.short} was not asked for"
    }


def test_endpoints_alone_change_only_endpoints() -> None:
    views, _ = views_of("a:80", "b:80")
    give(views, (*target("a:80", "one"), *target("b:80", "two")))
    before, targets = views.view, views.targets
    give(views, [served_by("one", 9)[1]], "5.2")
    assert ports(views, "one") == [9]
    assert (views.view.tables, views.view.clusters) == (before.tables, before.clusters)
    assert views.view.endpoints["two"] is before.endpoints["two"]
    assert views.targets is targets
    assert (before.version, views.view.version) == ("5.1", "5.2")
    assert before.endpoints["one"] is not views.view.endpoints["one"]
    views.apply(Kind.ENDPOINTS, "5.3", {}, ["one"])
    assert views.view.endpoints.keys() == {"two"}


def test_what_is_forgotten_is_dropped_but_for_what_others_need() -> None:
    views, _ = views_of("a:80", "b:80")
    give(views, (*target("a:80", "one"), *routed("b:80", "one")))
    assert views.wants("b:80")
    views.forget(["a:80", "unknown:1"])
    assert not views.wants("a:80")
    assert views.targets.keys() == {"b:80"}
    assert views.view.clusters.keys() == {"one"}
    views.forget(["b:80"])
    assert (dict(views.view.tables), dict(views.view.clusters), dict(views.view.endpoints)) == ({}, {}, {})
    assert all(views.held(kind) == {} for kind in (Kind.LISTENER, Kind.ROUTES, Kind.CLUSTER, Kind.ENDPOINTS))


def test_resources_come_back_as_they_came() -> None:
    views, _ = views_of("a:80")
    give(views, target("a:80", "one"))
    kept = views.kept("a:80")
    assert kept is not None
    assert (kept.version, set(kept.resources), kept.absent) == (
        "5.1",
        set(target("a:80", "one")),
        frozenset(),
    )
    assert views.kept("b:80") is None
    again, _ = views_of("a:80")
    give(again, kept.resources)
    assert clusters(again) == ["one"]


def test_what_is_known_to_be_missing_is_kept_with_the_rest() -> None:
    views, _ = views_of("a:80", "b:80")
    give(views, routed("a:80", "gone"))
    assert views.kept("a:80") is None
    views.apply(Kind.CLUSTER, "5.1", {}, ["gone"])
    views.apply(Kind.LISTENER, "5.1", {}, ["b:80"])
    assert views.kept("a:80") == LastGood(
        "5.1", routed("a:80", "gone"), frozenset({(Kind.CLUSTER, "gone")}), "5.1"
    )
    assert views.kept("b:80") == LastGood("5.1", (), frozenset({(Kind.LISTENER, "b:80")}), "5.1")


def test_a_view_is_not_changed_by_a_caller() -> None:
    views, _ = views_of("a:80")
    give(views, target("a:80", "one"))
    tables: Any = views.view.tables
    with pytest.raises(TypeError):
        tables["x"] = None


def test_routes_inside_a_listener() -> None:
    views = Views({**DECODERS, Kind.LISTENER: lambda message: DECODERS[Kind.ROUTES](_routes_in(message))})
    views.want(["a:80"])
    manager = pb.HttpConnectionManager()
    manager.route_config.CopyFrom(ROUTES.message())
    listener = pb.Listener(name="a:80")
    listener.api_listener.api_listener.CopyFrom(pb.pack(manager))
    give(views, [Resource.of(Kind.LISTENER, "a:80", listener), *served_by("one", 1)])
    assert clusters(views) == ["one"]
    assert views.needs()[Kind.ROUTES] == set()


def _routes_in(message: Any) -> Any:
    return pb.unpack(message.api_listener.api_listener).route_config


def test_a_message_decides_only_the_targets_that_it_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"t{number}:80" for number in range(50)]
    views, _ = views_of(*names)
    give(views, (one for name in names for one in target(name, f"to {name}")))
    assert views.touched() == set(names)
    decided: list[str] = []
    accepted = views._accepted
    monkeypatch.setattr(
        accepted, "newest", lambda name, ask=accepted.newest: (decided.append(name), ask(name))[1]
    )
    give(views, [to("to t8:80", "t7:80")], "5.2")
    assert (decided, views.touched()) == (["t7:80"], {"t7:80"})
    assert views.view.clusters.keys() == {f"to {name}" for name in names} - {"to t7:80"}
    decided.clear()
    give(views, [served_by("to t8:80", 9)[1]], "5.3")
    assert (decided, views.touched()) == ([], {"t7:80", "t8:80"})
    views.forget(["t7:80"])
    assert set(decided) == {"t7:80"}
    assert ports(views, "to t8:80") == [9]


def test_a_cluster_that_many_name_stays_until_the_last_is_gone() -> None:
    views, _ = views_of("a:80", "b:80")
    give(views, (*target("a:80", "one"), *routed("b:80", "one")))
    give(views, [to("two", "b:80")], "5.2")
    views.apply(Kind.CLUSTER, "5.2", {}, ["one"])
    assert (clusters(views, "b:80"), ports(views, "one")) == (["one"], [1])
    give(views, served_by("two", 2), "5.2")
    assert views.view.clusters.keys() == {"two"}


def test_what_is_to_be_asked_for_is_told_once() -> None:
    views, _ = views_of("a:80", "b:80")
    assert views.turned()[Kind.LISTENER] == (["a:80", "b:80"], [])
    give(views, target("a:80", "one"))
    turned = views.turned()
    assert (turned[Kind.LISTENER], turned[Kind.ROUTES]) == (([], []), (["routes a:80"], []))
    assert (turned[Kind.CLUSTER], turned[Kind.ENDPOINTS]) == ((["one"], []), (["one"], []))
    assert all(names == ([], []) for names in views.turned().values())
    give(views, [to("two")], "5.2")
    give(views, served_by("two", 2), "5.2")
    assert views.turned()[Kind.CLUSTER] == (["two"], ["one"])


def test_a_rule_is_of_the_configuration_that_it_came_with() -> None:
    views, _ = views_of("a:80", "b:80")
    give(views, target("a:80", "one"), "5.1")
    give(views, [served_by("one", 2)[0]], "5.2")
    give(views, target("b:80", "two"), "5.3")
    give(views, target("a:80", "one"), "5.4")
    assert (views.view.version, views.view.tables["a:80"].version, views.view.tables["b:80"].version) == (
        "5.4",
        "5.1",
        "5.3",
    )
    give(views, [to("two")], "5.5")
    assert views.view.tables["a:80"].version == "5.5"
    kept = views.kept("a:80")
    assert kept is not None
    assert (kept.version, kept.decided) == ("5.5", "5.5")
