"""The client's end of an ADS stream, message by message."""

from typing import Any

import pytest

from meshlib.xds import pb
from meshlib.xds.client_stream import ClientStream, ProtocolError
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour, to_node

NODE = to_node(Client(Flavour.MESHLIB, id="me"))


def delta(
    version: str, nonce: str, *names: str, kind: Kind = Kind.ROUTES, removed: tuple[str, ...] = ()
) -> Any:
    message = pb.DeltaDiscoveryResponse(
        type_url=kind.type_url, nonce=nonce, system_version_info=version, removed_resources=removed
    )
    for name in names:
        made = message.resources.add(name=name, version=f"{name}-{version}")
        made.resource.type_url = kind.type_url
        made.resource.value = pb.RouteConfiguration(name=name).SerializeToString()
    return message


def full(version: str, nonce: str, *names: str, kind: Kind = Kind.ROUTES) -> Any:
    cls = {Kind.ROUTES: pb.RouteConfiguration, Kind.CLUSTER: pb.Cluster}[kind]
    return pb.DiscoveryResponse(
        type_url=kind.type_url,
        nonce=nonce,
        version_info=version,
        resources=[pb.pack(cls(name=name)) for name in names],
    )


def shown(messages: list[Any]) -> list[dict[str, Any]]:
    """Without node and type, which every test would repeat."""
    found = [pb.to_dict(message) for message in messages]
    for one in found:
        one.pop("node", None)
        one.pop("type_url")
    return found


def test_only_the_first_request_of_a_stream_carries_the_node() -> None:
    stream = ClientStream(NODE, delta=True)
    stream.subscribe(Kind.ROUTES, ["a"])
    stream.subscribe(Kind.LISTENER, ["l"])
    first, second = stream.to_send()
    assert (first.type_url, first.node.id) == (Kind.LISTENER.type_url, "me")
    assert (second.type_url, second.HasField("node")) == (Kind.ROUTES.type_url, False)
    assert stream.to_send() == []


def test_delta_subscribes_acknowledges_and_comes_back_with_what_it_holds() -> None:
    stream = ClientStream(NODE, delta=True)
    stream.subscribe(Kind.ROUTES, ["a", "b"])
    assert shown(stream.to_send()) == [{"resource_names_subscribe": ["a", "b"]}]
    update = stream.received(delta("1", "n1", "a", "b"))
    assert (update.version, sorted(update.resources), update.removed) == ("1", ["a", "b"], frozenset())
    stream.ack(update)
    stream.subscribe(Kind.ROUTES, ["c"])
    stream.unsubscribe(Kind.ROUTES, ["b"])
    assert shown(stream.to_send()) == [
        {"response_nonce": "n1"},
        {"resource_names_subscribe": ["c"], "resource_names_unsubscribe": ["b"]},
    ]
    stream.reset()
    assert shown(stream.to_send()) == [
        {"resource_names_subscribe": ["a", "c"], "initial_resource_versions": {"a": "a-1"}}
    ]


def test_a_delta_nack_keeps_the_last_good_version_of_what_it_names() -> None:
    stream = ClientStream(NODE, delta=True)
    stream.subscribe(Kind.ROUTES, ["a", "b"])
    stream.to_send()
    stream.ack(stream.received(delta("1", "n1", "a", "b")))
    stream.to_send()
    stream.nack(stream.received(delta("2", "n2", "a", "b")), {"b": "virtual_hosts[0]: no domains"})
    (answer,) = stream.to_send()
    assert answer.response_nonce == "n2"
    assert answer.error_detail.message == "b: virtual_hosts[0]: no domains"
    assert answer.error_detail.code == 3
    assert stream.held(Kind.ROUTES) == {"a": "a-2", "b": "b-1"}


def test_delta_removals_and_names_that_never_were() -> None:
    stream = ClientStream(NODE, delta=True)
    stream.subscribe(Kind.ROUTES, ["a", "b"])
    stream.to_send()
    stream.ack(stream.received(delta("1", "n1", "a")))
    update = stream.received(delta("2", "n2", removed=("a", "b", "stranger")))
    assert update.removed == {"a", "b"}
    stream.ack(update)
    assert stream.held(Kind.ROUTES) == {}


def test_what_was_cancelled_while_under_way_is_dropped() -> None:
    stream = ClientStream(NODE, delta=True)
    stream.subscribe(Kind.ROUTES, ["a", "b"])
    stream.to_send()
    stream.unsubscribe(Kind.ROUTES, ["a"])
    assert sorted(stream.received(delta("1", "n1", "a", "b")).resources) == ["b"]


def test_state_of_the_world_repeats_names_and_a_nack_repeats_the_old_version() -> None:
    stream = ClientStream(NODE, delta=False)
    stream.subscribe(Kind.ROUTES, ["b", "a"])
    assert shown(stream.to_send()) == [{"resource_names": ["a", "b"]}]
    stream.ack(stream.received(full("1", "n1", "a", "b")))
    assert shown(stream.to_send()) == [
        {"version_info": "1", "resource_names": ["a", "b"], "response_nonce": "n1"}
    ]
    stream.nack(stream.received(full("2", "n2", "a")), {"a": "bad"})
    assert shown(stream.to_send()) == [
        {
            "version_info": "1",
            "resource_names": ["a", "b"],
            "response_nonce": "n2",
            "error_detail": {"code": 3, "message": "a: bad"},
        }
    ]
    stream.unsubscribe(Kind.ROUTES, ["a"])
    assert shown(stream.to_send()) == [{"version_info": "1", "resource_names": ["b"], "response_nonce": "n2"}]
    stream.reset()
    assert shown(stream.to_send()) == [{"version_info": "1", "resource_names": ["b"]}]


def test_absence_removes_clusters_and_says_nothing_of_routes() -> None:
    stream = ClientStream(NODE, delta=False)
    for kind in (Kind.CLUSTER, Kind.ROUTES):
        stream.subscribe(kind, ["a", "b", "c"])
    stream.to_send()
    for kind in (Kind.CLUSTER, Kind.ROUTES):
        stream.ack(stream.received(full("1", "n1", "a", "b", kind=kind)))
    assert stream.received(full("2", "n2", "a", kind=Kind.CLUSTER)).removed == {"b"}
    assert stream.received(full("2", "n3", "a", kind=Kind.ROUTES)).removed == frozenset()


def test_a_resource_that_cannot_be_read_is_refused_whatever_the_caller_says() -> None:
    stream = ClientStream(NODE, delta=False)
    stream.subscribe(Kind.CLUSTER, ["a", "b"])
    stream.to_send()
    stream.ack(stream.received(full("1", "n1", "a", "b", kind=Kind.CLUSTER)))
    stream.to_send()
    response = full("2", "n2", "a", kind=Kind.CLUSTER)
    response.resources.add(type_url=Kind.CLUSTER.type_url, value=b"\xff\xff")
    response.resources.add(type_url="type.googleapis.com/x.Y", value=b"")
    update = stream.received(response)
    assert update.removed == frozenset()
    assert list(update.broken) == ["resources[1]", "resources[2]"]
    stream.ack(update)
    (answer,) = stream.to_send()
    assert answer.version_info == "1"
    assert "resources[2]: is of type 'type.googleapis.com/x.Y'" in answer.error_detail.message


def test_a_delta_resource_of_another_type_is_refused() -> None:
    stream = ClientStream(NODE, delta=True)
    stream.subscribe(Kind.ROUTES, ["a"])
    stream.to_send()
    response = delta("1", "n1", "a")
    response.resources[0].resource.type_url = Kind.CLUSTER.type_url
    update = stream.received(response)
    assert update.resources == {}
    stream.ack(update)
    assert "a: is of type" in stream.to_send()[0].error_detail.message


def test_an_answer_of_an_ended_stream_is_not_sent() -> None:
    stream = ClientStream(NODE, delta=True)
    stream.subscribe(Kind.ROUTES, ["a"])
    stream.to_send()
    update = stream.received(delta("1", "n1", "a"))
    stream.reset()
    stream.ack(update)
    assert shown(stream.to_send()) == [{"resource_names_subscribe": ["a"]}]


def test_what_is_held_from_a_file_is_not_sent_again() -> None:
    stream = ClientStream(NODE, delta=True)
    stream.hold(Kind.ROUTES, {"a": "a-7"})
    stream.subscribe(Kind.ROUTES, ["a"])
    assert shown(stream.to_send()) == [
        {"resource_names_subscribe": ["a"], "initial_resource_versions": {"a": "a-7"}}
    ]


@pytest.mark.parametrize(
    "response",
    [
        pb.DeltaDiscoveryResponse(type_url="nonsense", nonce="1"),
        pb.DeltaDiscoveryResponse(type_url=Kind.CLUSTER.type_url, nonce="1"),
        pb.DeltaDiscoveryResponse(type_url=Kind.ROUTES.type_url),
    ],
    ids=["unknown-type", "not-asked-for", "no-nonce"],
)
def test_what_is_no_answer(response: Any) -> None:
    stream = ClientStream(NODE, delta=True)
    stream.subscribe(Kind.ROUTES, ["a"])
    stream.to_send()
    with pytest.raises(ProtocolError, match="a response of"):
        stream.received(response)
