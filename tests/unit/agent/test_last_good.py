"""What was last good for each workload of a node: what came and was taken, whole."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from meshlib.agent.last_good import Heard, LastGood, together
from meshlib.agent.workload import Workload
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource

A = Workload("a", (("http", 9080),), address="10.0.0.1", netns="/run/netns/a")


def request(kind: Kind, *names: str, nonce: str = "", error: str = "", **more: Any) -> Any:
    made = pb.DeltaDiscoveryRequest(type_url=kind.value, resource_names_subscribe=names, response_nonce=nonce)
    for name in more.pop("less", ()):
        made.resource_names_unsubscribe.append(name)
    for name, version in more.pop("has", {}).items():
        made.initial_resource_versions[name] = version
    if error:
        made.error_detail.message = error
    return made


def response(kind: Kind, nonce: str, found: Mapping[str, str], gone: Iterable[str] = ()) -> Any:
    made = pb.DeltaDiscoveryResponse(type_url=kind.value, nonce=nonce, removed_resources=gone)
    for name, version in found.items():
        made.resources.add(name=name, version=version).resource.value = version.encode()
    return made


def versions(heard: Heard, *owners: str) -> dict[str, list[str]]:
    found = heard.by_owner(owners).items()
    return {one: [f"{each.name} {each.version}" for each in resources] for one, resources in found}


@pytest.fixture
def heard() -> Heard:
    """Of a stream that asked for all, and took it."""
    made = Heard(lambda *_: None)
    made.asked(request(Kind.LISTENER))
    made.said(response(Kind.LISTENER, "1", {"a/inbound": "1", "b/inbound": "1"}))
    made.asked(request(Kind.LISTENER, nonce="1"))
    made.asked(request(Kind.SECRET, "ROOTCA"))
    made.said(response(Kind.SECRET, "2", {"ROOTCA": "1"}))
    made.asked(request(Kind.SECRET, nonce="2"))
    return made


def test_each_has_its_own_and_what_is_everybodys(heard: Heard) -> None:
    assert heard.touched == {"a", "b", ""}
    assert heard.whole(["a", "b", "c"]) == {"a", "b"}  # c has no listener
    assert versions(heard, "a", "c") == {"a": ["a/inbound 1", "ROOTCA 1"], "c": ["ROOTCA 1"]}


def test_what_was_asked_for_and_did_not_come_is_not_whole(heard: Heard) -> None:
    heard.asked(request(Kind.ENDPOINTS, "a/inbound", "a/two", "*"))
    assert heard.whole("ab") == {"b"}
    heard.said(response(Kind.ENDPOINTS, "3", {"a/inbound": "1"}, ["a/two"]))
    assert heard.whole("ab") == set()
    heard.asked(request(Kind.ENDPOINTS, nonce="3"))
    assert heard.whole("ab") == {"a", "b"}
    heard.asked(request(Kind.SECRET, "another"))
    assert heard.whole("ab") == set()
    heard.asked(request(Kind.SECRET, less=["another"]))
    assert heard.whole("ab") == {"a", "b"}


def test_what_is_refused_is_as_if_it_had_not_come(heard: Heard) -> None:
    heard.said(response(Kind.LISTENER, "3", {"a/inbound": "2", "a/new": "1"}, ["b/inbound"]))
    heard.asked(request(Kind.LISTENER, nonce="3", error="no"))
    assert versions(heard, "a", "b") == {"a": ["a/inbound 1", "ROOTCA 1"], "b": ["b/inbound 1", "ROOTCA 1"]}
    heard.said(response(Kind.LISTENER, "4", {"a/new": "1"}, ["b/inbound"]))
    heard.asked(request(Kind.LISTENER, nonce="4"))
    assert versions(heard, "a", "b") == {"a": ["a/inbound 1", "a/new 1", "ROOTCA 1"], "b": ["ROOTCA 1"]}


def test_what_is_not_asked_for_any_more_goes(heard: Heard) -> None:
    heard.asked(request(Kind.SECRET, less=["ROOTCA"]))
    assert versions(heard, "a") == {"a": ["a/inbound 1"]}


def test_who_comes_again_is_believed_of_what_is_known(heard: Heard) -> None:
    def known(kind: Kind, name: str, version: str) -> Resource | None:
        found = heard.resources.get((kind, name))
        return found if found is not None and found.version == version else None

    again = Heard(known)
    again.asked(request(Kind.LISTENER, has={"a/inbound": "1", "b/inbound": "7"}))
    assert versions(again, "a", "b") == {"a": ["a/inbound 1"], "b": []}
    assert again.whole("ab") == {"a"}
    # It is what a stream begins with, and nothing later.
    again.asked(request(Kind.LISTENER, has={"c/inbound": "7"}))
    again.said(response(Kind.LISTENER, "1", {"b/inbound": "8"}))
    again.asked(request(Kind.LISTENER, nonce="1"))
    assert again.whole("abc") == {"a", "b"}


def test_what_is_of_no_known_kind_is_passed_over(heard: Heard) -> None:
    heard.asked(
        pb.DeltaDiscoveryRequest(type_url="type.googleapis.com/odd", resource_names_subscribe=["a/x"])
    )
    heard.said(pb.DeltaDiscoveryResponse(type_url="type.googleapis.com/odd", nonce="9"))
    assert heard.whole("a") == {"a"}


class Folder:
    """What is kept."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Resource, ...]] = {}

    def load(self, whose: str) -> tuple[Resource, ...]:
        return self.kept.get(whose, ())

    def save(self, found: Mapping[str, tuple[Resource, ...]]) -> None:
        self.kept.update(found)

    def remove(self, whose: Iterable[str]) -> None:
        for one in whose:
            self.kept.pop(one, None)


def test_it_is_of_that_very_workload_and_goes_with_it() -> None:
    folder, found = Folder(), {A: (Resource(Kind.LISTENER, "a/inbound", "1", b""),)}
    first = LastGood(folder)
    assert first.of(A) == ()
    first.take(found)
    first.save(found)
    second = LastGood(folder)
    assert second.of(A) == found[A]
    another = Workload("a", (("http", 9080),), address="10.0.0.1", netns="/run/netns/a", service_account="x")
    assert second.of(another) == ()
    second.leave([A])
    assert LastGood(folder).of(A) == found[A]
    second.leave([])
    assert (second.of(A), LastGood(folder).of(A)) == ((), ())


def test_without_a_folder_it_is_in_memory_alone() -> None:
    found = {A: (Resource(Kind.LISTENER, "a/inbound", "1", b""),)}
    only = LastGood(None)
    only.take(found)
    only.save(found)
    assert only.of(A) == found[A]
    only.leave([])
    assert only.of(A) == ()


def runtime(**bounds: int) -> Resource:
    message = pb.message("envoy.service.runtime.v3.Runtime")(name="bounds")
    message.layer.update(bounds)
    return Resource.of(Kind.RUNTIME, "bounds", message)


def test_bounds_that_were_kept_at_several_times_are_one() -> None:
    other = Resource(Kind.LISTENER, "a/inbound", "1", b"")
    found = list(together([runtime(a=1, b=1), other, runtime(a=1)]))
    assert found == [other, runtime(a=1, b=1)]
    assert list(together([other])) == [other]
