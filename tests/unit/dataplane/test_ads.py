"""What is asked and applied over many streams: a server's end in memory, a clock that stands still."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from support.resources import DECODERS, routed, served_by, target

from meshlib.bootstrap import bootstrap
from meshlib.dataplane.ads import STALE_PATIENCE, Ads, StaleError, backoff, order
from meshlib.dataplane.cache import Cache, LastGood
from meshlib.dataplane.views import Target, Views
from meshlib.xds import pb
from meshlib.xds.client_stream import ProtocolError
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource


class Kept:
    """A stream that nobody runs: the test does."""

    def __init__(self, name: str, address: str, path: str, talk: Ads) -> None:
        self.made = (name, address, path)
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def wake(self) -> None:
        self.calls.append("wake")

    def close(self) -> None:
        self.calls.append("close")

    def after_fork_in_child(self) -> None:
        self.calls.append("child")


class Control:
    """Answers an Ads as a control service would: with what is subscribed and there is."""

    def __init__(self, cache: Cache | None = None, **settings: Any) -> None:
        self.now = 1000.0
        self.views = Views(DECODERS)
        self.changes = 0
        self.told: list[set[str] | None] = []
        found = bootstrap({}, allow_plaintext=True, control="control:1", **settings)
        self.ads = Ads(
            found,
            pb.Node(id="me"),
            self.views,
            cache,
            changed=self._changed,
            clock=lambda: self.now,
            keep=self._keep,
        )
        self.nonces = 0
        self.asked: dict[Kind, set[str]] = {}
        self.requests: list[Any] = []

    def _keep(self, name: str, address: str, path: str, talk: Ads) -> Kept:
        self.kept = Kept(name, address, path, talk)
        return self.kept

    def _changed(self, names: Iterable[str] | None) -> None:
        self.changes += 1
        self.told.append(None if names is None else set(names))

    def call(self, name: str) -> None:
        """A first call that does not wait for its answer."""
        self.ads.want(name)
        self.ads.done(name)

    def open(self) -> None:
        self.asked = {}
        self.ads.opened()

    def hear(self) -> list[Any]:
        """What the client says now."""
        found = [pb.DeltaDiscoveryRequest.FromString(said) for said in self.ads.ask()]
        for request in found:
            (kind,) = (kind for kind in Kind if kind.type_url == request.type_url)
            names = self.asked.setdefault(kind, set())
            names |= set(request.resource_names_subscribe)
            names -= set(request.resource_names_unsubscribe)
        self.requests += found
        return found

    def send(self, version: str, kind: Kind, resources: Iterable[Resource], gone: Iterable[str] = ()) -> None:
        self.nonces += 1
        response = pb.DeltaDiscoveryResponse(
            type_url=kind.type_url,
            system_version_info=version,
            nonce=str(self.nonces),
            removed_resources=list(gone),
        )
        for one in resources:
            wrapped = response.resources.add(name=one.name, version=one.version)
            wrapped.resource.type_url, wrapped.resource.value = kind.type_url, one.body
        self.ads.take(response.SerializeToString())

    def serve(self, version: str, resources: Iterable[Resource]) -> None:
        """Answers until nothing is asked any more."""
        there, told = list(resources), set[tuple[Kind, str]]()
        while True:
            self.hear()
            wanted = {(kind, name) for kind, names in self.asked.items() for name in names} - told
            if not wanted:
                return
            told |= wanted
            for kind in (Kind.CLUSTER, Kind.ENDPOINTS, Kind.LISTENER, Kind.ROUTES):
                names = {name for of, name in wanted if of is kind}
                found = [one for one in there if one.kind is kind and one.name in names]
                if names:
                    self.send(version, kind, found, names - {one.name for one in found})


A = target("a:80", "one")


def test_nothing_starts_before_the_first_want() -> None:
    control = Control()
    assert control.kept.made == ("meshlib-ads", "control:1", pb.DELTA_ADS)
    assert control.kept.calls == []
    control.ads.want("a:80")
    assert control.kept.calls == ["wake", "start"]


def test_a_target_is_asked_for_answered_and_acknowledged() -> None:
    control = Control()
    control.ads.want("a:80")
    control.open()
    (first,) = control.hear()
    assert (first.node.id, list(first.resource_names_subscribe)) == ("me", ["a:80"])
    control.serve("5.1", A)
    assert set(control.views.targets) == {"a:80"}
    assert control.views.view.version == "5.1"
    assert control.asked == {
        Kind.LISTENER: {"a:80"},
        Kind.ROUTES: {"routes a:80"},
        Kind.CLUSTER: {"one"},
        Kind.ENDPOINTS: {"one"},
    }
    answered = [request.response_nonce for request in control.requests if request.response_nonce]
    assert sorted(answered) == ["1", "2", "3", "4"]
    assert not any(request.HasField("error_detail") for request in control.requests)
    assert (control.ads.connected, control.ads.failure, control.changes) == (True, "", 4)
    assert control.hear() == []


def test_a_new_stream_says_what_is_held_and_is_always_answered() -> None:
    control = Control()
    control.ads.want("a:80")
    control.open()
    control.serve("5.1", A)
    assert 0.05 <= control.ads.ended("UNAVAILABLE: gone") <= 5.1
    assert (control.ads.connected, control.ads.failure) == (False, "UNAVAILABLE: gone")
    control.open()
    held = {request.type_url: dict(request.initial_resource_versions) for request in control.hear()}
    assert held == {
        Kind.LISTENER.type_url: {},
        Kind.ROUTES.type_url: {"routes a:80": A[1].version},
        Kind.CLUSTER.type_url: {"one": A[2].version},
        Kind.ENDPOINTS.type_url: {"one": A[3].version},
    }
    control.send("5.1", Kind.LISTENER, A[:1])
    assert control.ads.connected
    assert set(control.views.view.tables) == {"a:80"}


def test_refused_resources_are_named() -> None:
    control = Control()
    control.ads.want("a:80")
    control.open()
    control.serve("5.1", A)
    broken = routed("a:80", "")[1]
    control.send("5.2", Kind.ROUTES, [broken])
    (answer,) = control.hear()
    assert answer.error_detail.message.startswith("routes a:80: ")
    assert set(control.views.view.tables) == {"a:80"}
    assert control.views.view.clusters.keys() == {"one"}


def test_an_older_configuration_is_not_taken_until_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    control = Control()
    control.ads.want("a:80")
    control.open()
    control.serve("5.2", A)
    old = routed("a:80", "old")[1]

    def offered() -> None:
        control.ads.ended("x")
        control.open()
        control.hear()
        control.send("5.1", Kind.ROUTES, [old])

    for control.now in (2000.0, 2000.0 + STALE_PATIENCE - 0.1):
        with pytest.raises(StaleError, match=r"it offers configuration 5\.1, older than the one in force"):
            offered()
        assert control.views.view.version == "5.2"
    control.now = 2000.0 + STALE_PATIENCE
    offered()
    assert "taking the older configuration 5.1: there is no other" in caplog.text
    control.serve("5.1", target("a:80", "old"))
    assert control.views.view.clusters.keys() == {"old"}


def test_a_newer_one_ends_the_wait_for_an_older_one() -> None:
    control = Control()
    control.ads.want("a:80")
    control.open()
    control.serve("5.2", A)
    with pytest.raises(StaleError):
        control.send("5.1", Kind.ROUTES, A[1:2])
    control.send("5.3", Kind.ROUTES, A[1:2])
    control.now += STALE_PATIENCE
    with pytest.raises(StaleError):
        control.send("5.1", Kind.ROUTES, A[1:2])


def test_versions_that_are_no_numbers_are_taken() -> None:
    control = Control()
    control.ads.want("a:80")
    control.open()
    control.serve("5.2", A)
    control.send("abc", Kind.ROUTES, A[1:2])
    with pytest.raises(StaleError):
        control.send("5.1", Kind.ROUTES, A[1:2])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1700000000000.12", (1700000000000, 12)),
        ("5.10", (5, 10)),
        ("", (0, 0)),
        ("5", (0, 0)),
        ("5.-1", (0, 0)),
        ("5.1.2", (0, 0)),
        ("٣.1", (0, 0)),
        ("9" * 50 + ".1", (0, 0)),
    ],
)
def test_order(text: str, value: tuple[int, int]) -> None:
    assert order(text) == value


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x05abc"])
def test_nonsense_ends_the_stream(message: bytes) -> None:
    control = Control()
    control.ads.want("a:80")
    control.open()
    control.hear()
    with pytest.raises(ProtocolError):
        control.ads.take(message)
    assert not control.ads.connected


def test_what_is_said_about_lost_connections(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    control = Control()
    control.ads.want("a:80")
    for _ in range(3):
        control.ads.ended("UNAVAILABLE: Connection refused")
    assert control.ads.attempts == 3
    control.open()
    control.serve("5.1", A)
    assert control.ads.attempts == 0
    control.ads.ended("")
    control.ads.ended("UNAVAILABLE: Connection refused")
    assert [record.message for record in caplog.records] == [
        "can't reach the control service control:1: UNAVAILABLE: Connection refused",
        "connected to the control service control:1",
        "lost the control service control:1: the control service ended the stream",
    ]


def test_backoff_grows_to_a_bound() -> None:
    assert all(0.05 <= backoff(1) <= 0.2 for _ in range(50))
    assert all(0.05 <= backoff(1000) <= 5.1 for _ in range(50))
    assert max(backoff(10) for _ in range(50)) > 1.0


def test_idle_targets_are_forgotten_though_nothing_comes() -> None:
    control = Control(idle_targets=600)
    control.call("a:80")
    control.call("b:80")
    control.open()
    control.serve("5.1", (*A, *target("b:80", "two")))
    assert control.ads.pause() == 60.0
    control.now += 599
    control.ads.touch("a:80")
    assert control.hear() == []
    control.now += 60
    said = {name for request in control.hear() for name in request.resource_names_unsubscribe}
    assert said == {"b:80", "routes b:80", "two"}
    assert set(control.views.view.tables) == {"a:80"}
    assert control.views.view.clusters.keys() == {"one"}


def test_idle_targets_are_forgotten_while_control_is_down() -> None:
    control = Control(idle_targets=600)
    control.call("a:80")
    control.open()
    control.serve("5.1", A)
    control.now += 600
    control.ads.ended("UNAVAILABLE: gone")
    assert control.views.targets == {}


def test_a_target_that_was_forgotten_comes_back() -> None:
    control = Control(idle_targets=600)
    control.call("a:80")
    control.open()
    control.serve("5.1", A)
    control.now += 600
    control.hear()
    assert control.views.targets == {}
    control.ads.touch("a:80")
    control.call("a:80")
    control.serve("5.1", A)
    assert set(control.views.targets) == {"a:80"}


def test_the_one_unused_for_longest_makes_room() -> None:
    control = Control(max_targets=2)
    for name in ("a:80", "b:80"):
        control.now += 1
        control.call(name)
    control.now += 1
    control.ads.touch("a:80")
    control.call("c:80")
    control.open()
    control.hear()
    assert control.asked == {Kind.LISTENER: {"a:80", "c:80"}}


def test_what_is_waited_for_is_not_forgotten_and_one_more_waits_its_turn() -> None:
    control = Control(max_targets=1)
    control.open()
    control.ads.want("a:80")
    control.ads.want("b:80")
    there = (*A, *target("b:80", "two"))
    control.serve("5.1", there)
    assert control.views.targets.keys() == {"a:80"}
    assert (control.views.wants("b:80"), control.ads.load("b:80")) == (False, False)
    control.told.clear()
    control.ads.done("a:80")
    assert control.told == [{"b:80"}]
    control.serve("5.1", there)
    assert control.views.targets.keys() == {"b:80"}
    assert control.asked == {
        Kind.LISTENER: {"b:80"},
        Kind.ROUTES: {"routes b:80"},
        Kind.CLUSTER: {"two"},
        Kind.ENDPOINTS: {"two"},
    }


def test_only_those_are_told_that_a_message_concerns() -> None:
    control = Control()
    control.open()
    control.call("a:80")
    control.call("b:80")
    control.serve("5.1", (*A, *target("b:80", "two")))
    assert control.told[0] is None  # control was not heard before
    control.told.clear()
    control.send("5.2", Kind.ENDPOINTS, served_by("two", 9)[1:])
    control.ads.ended("UNAVAILABLE: gone")
    assert control.told == [{"b:80"}, None]


@pytest.fixture
def cache(tmp_path: Path) -> Callable[[], Cache]:
    return lambda: Cache(tmp_path, ("me",))


def test_what_was_heard_last_is_served_from_disk(cache: Callable[[], Cache]) -> None:
    control = Control(cache())
    control.ads.want("a:80")
    control.open()
    control.serve("5.2", A)
    control.ads.close()
    again = Control(cache())
    again.ads.want("a:80")
    assert again.ads.load("b:80") is False
    assert again.ads.load("a:80") is True
    assert again.ads.from_disk == {"a:80"}
    assert again.views.view.version == "5.2"
    assert again.views.view.endpoints["one"].size == 1
    again.open()
    held = {r.type_url: dict(r.initial_resource_versions) for r in again.hear()}
    assert held[Kind.CLUSTER.type_url] == {"one": A[2].version}
    # A service whose clock was set back: what is on disk does not stand against it.
    again.send("4.1", Kind.LISTENER, A[:1])
    assert (again.ads.connected, again.ads.from_disk) == (True, set())
    assert again.views.view.version == "4.1"


def test_what_does_not_exist_is_on_disk_too(cache: Callable[[], Cache]) -> None:
    control = Control(cache())
    control.ads.want("a:80")
    control.ads.want("b:80")
    control.open()
    control.hear()
    control.send("5.2", Kind.LISTENER, routed("a:80", "gone")[:1], ["b:80"])
    control.hear()
    control.send("5.2", Kind.ROUTES, routed("a:80", "gone")[1:])
    control.hear()
    control.send("5.2", Kind.CLUSTER, (), ["gone"])
    control.ads.close()
    again = Control(cache())
    again.ads.want("a:80")
    again.ads.want("b:80")
    assert again.ads.load("a:80") is True
    assert again.ads.load("b:80") is True
    assert again.views.targets["a:80"].table is not None
    assert dict(again.views.view.clusters) == {}
    assert again.views.targets["b:80"] == Target()


def test_what_was_heard_to_be_gone_does_not_come_back_from_disk(cache: Callable[[], Cache]) -> None:
    control = Control(cache())
    control.ads.want("b:80")
    control.open()
    control.serve("5.2", target("b:80", "shared"))
    control.ads.close()
    for version, heard in (("5.3", []), ("5.1", ["shared"])):
        again = Control(cache())
        again.ads.want("a:80")
        again.open()
        again.serve(version, routed("a:80", "shared"))
        again.send(version, Kind.CLUSTER, (), ["shared"])
        assert again.views.targets["a:80"].table is not None
        again.ads.ended("lost")
        again.ads.want("b:80")
        assert again.ads.load("b:80") is True
        assert list(again.views.view.clusters) == heard


def test_why_nothing_is_served_from_disk(cache: Callable[[], Cache], tmp_path: Path) -> None:
    control = Control()
    control.ads.want("a:80")
    assert control.ads.lacking("a:80") == (
        "no last good configuration is kept: MESHLIB_STATE_DIR names no folder"
    )
    kept = cache()
    control = Control(kept, state_dir=tmp_path)
    control.ads.want("a:80")
    assert control.ads.lacking("a:80") == f"there is no last good configuration in {tmp_path}"
    kept.save({"a:80": LastGood("5.1", A[:2])})
    assert control.ads.load("a:80") is False
    assert control.ads.lacking("a:80") == f"the last good configuration in {tmp_path} lacks cluster one"


def test_disk_does_not_overrule_what_is_heard(cache: Callable[[], Cache]) -> None:
    control = Control(cache())
    control.ads.want("a:80")
    control.open()
    control.serve("5.2", A)
    control.ads.close()
    again = Control(cache())
    again.ads.want("b:80")
    again.open()
    again.serve("5.3", target("b:80", "two"))
    again.ads.want("a:80")
    assert again.ads.load("a:80") is False
    assert "a:80" not in again.views.targets


def test_after_close_nothing_is_wanted_taken_or_started() -> None:
    control = Control()
    control.ads.want("a:80")
    control.open()
    control.hear()
    control.ads.close()
    control.kept.calls.clear()
    control.ads.want("b:80")
    control.send("5.1", Kind.LISTENER, A[:1])
    assert control.kept.calls == []
    assert not control.ads.connected
    control.ads.ended("x")
    assert control.ads.failure == ""


def test_a_child_goes_on_from_what_its_parent_knew() -> None:
    control = Control()
    control.ads.want("a:80")
    control.open()
    control.serve("5.1", A)
    control.ads.before_fork()
    control.ads.after_fork_in_child(pb.Node(id="child"))
    assert "child" in control.kept.calls
    assert (control.ads.connected, set(control.views.targets)) == (False, {"a:80"})
    control.kept.calls.clear()
    control.ads.want("a:80")
    assert control.kept.calls == ["start"]
    control.open()
    requests = control.hear()
    assert requests[0].node.id == "child"
    held = {r.type_url: dict(r.initial_resource_versions) for r in requests}
    assert held[Kind.ENDPOINTS.type_url] == {"one": served_by("one", 1)[1].version}
    with pytest.raises(StaleError):
        control.send("5.0", Kind.LISTENER, A[:1])
