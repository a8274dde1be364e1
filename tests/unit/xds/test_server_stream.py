"""The server's end of an ADS stream, message by message."""

from typing import Any

import pytest

from meshlib.xds import pb
from meshlib.xds.kinds import BY_TYPE_URL, Kind
from meshlib.xds.node import Client, Flavour, to_node
from meshlib.xds.server_stream import Hold, ProtocolError, ServerStream
from meshlib.xds.snapshot import Resource, Snapshot

NODE = to_node(Client(Flavour.ENVOY, id="proxy"))


def snapshot(version: str, **marks: str) -> Snapshot:
    """`CDS_a="1"` is a cluster `a` whose content is 1."""
    resources = []
    for key, mark in marks.items():
        short, _, name = key.partition("_")
        kind = next(k for k in Kind if k.short == short)
        resources.append(Resource(kind, name, mark, mark.encode()))
    return Snapshot.of(version, resources)


def ask(stream: ServerStream, kind: Kind, *names: str, nonce: str = "", error: str = "", **more: Any) -> bool:
    if stream.delta:
        made = pb.DeltaDiscoveryRequest(resource_names_subscribe=names, **more)
    else:
        made = pb.DiscoveryRequest(resource_names=names, **more)
    made.type_url = kind.type_url
    made.response_nonce = nonce
    if error:
        made.error_detail.message = error
    if stream.client is None:
        made.node.CopyFrom(NODE)
    return stream.received(made)


def answer(stream: ServerStream, responses: list[Any], error: str = "", names: tuple[str, ...] = ()) -> None:
    for response in responses:
        ask(stream, BY_TYPE_URL[response.type_url], *names, nonce=response.nonce, error=error)


def shown(responses: list[Any]) -> list[str]:
    """`CDS a b -c`: a type, what is sent of it, and what is removed."""
    found = []
    for response in responses:
        words = [BY_TYPE_URL[response.type_url].short]
        words += [getattr(r, "name", None) or r.value.decode() for r in response.resources]
        words += [f"-{name}" for name in getattr(response, "removed_resources", ())]
        found.append(" ".join(words))
    return found


@pytest.fixture
def delta() -> ServerStream:
    """Asked for all clusters and endpoints, and for listener l and routes r."""
    stream = ServerStream(delta=True)
    ask(stream, Kind.CLUSTER)
    ask(stream, Kind.ENDPOINTS, "*")
    ask(stream, Kind.LISTENER, "l")
    ask(stream, Kind.ROUTES, "r")
    return stream


def test_in_order_of_sending_and_only_what_changed(delta: ServerStream) -> None:
    first = delta.publish(snapshot("1", RDS_r="1", LDS_l="1", EDS_a="1", CDS_a="1", CDS_b="1"))
    assert shown(first) == ["CDS a b", "EDS a", "LDS l", "RDS r"]
    assert [r.system_version_info for r in first] == ["1"] * 4
    answer(delta, first)
    second = delta.publish(snapshot("2", RDS_r="2", LDS_l="1", EDS_a="1", CDS_a="1", CDS_b="1"))
    assert shown(second) == ["RDS r"]
    answer(delta, second)
    assert delta.publish(snapshot("3", RDS_r="2", LDS_l="1", EDS_a="1", CDS_a="1", CDS_b="1")) == []


def test_what_is_gone_is_removed_after_what_no_longer_names_it_was_accepted(delta: ServerStream) -> None:
    answer(delta, delta.publish(snapshot("1", RDS_r="1", EDS_a="1", CDS_a="1", LDS_l="1")))
    new = snapshot("2", RDS_r="2", EDS_b="1", CDS_b="1", LDS_l="1")
    made = delta.publish(new)
    assert shown(made) == ["CDS b", "EDS b", "RDS r"]
    assert delta.publish(new) == []
    answer(delta, made)
    assert shown(delta.publish(new)) == ["EDS -a", "CDS -a"]


def test_no_cluster_goes_while_the_new_routes_are_refused(delta: ServerStream) -> None:
    answer(delta, delta.publish(snapshot("1", RDS_r="1", EDS_a="1", CDS_a="1", LDS_l="1")))
    new = snapshot("2", RDS_r="2", LDS_l="1")
    answer(delta, delta.publish(new), error="bad regex")
    assert delta.publish(new) == []
    assert delta.subscriptions[Kind.ROUTES].error == "bad regex"
    third = snapshot("3", RDS_r="3", LDS_l="1")
    answer(delta, delta.publish(third))
    assert shown(delta.publish(third)) == ["EDS -a", "CDS -a"]


def test_one_response_of_a_type_at_a_time_and_the_newest_wins(delta: ServerStream) -> None:
    first = delta.publish(snapshot("1", CDS_a="1"))
    assert shown(first) == ["CDS a", "EDS", "LDS -l", "RDS -r"]
    assert delta.publish(snapshot("2", CDS_a="2")) == []
    assert delta.publish(snapshot("3", CDS_a="3", RDS_r="3")) == [], (
        "routes wait for the clusters before them"
    )
    assert ask(delta, Kind.CLUSTER, nonce=first[0].nonce)
    last = delta.publish(snapshot("3", CDS_a="3", RDS_r="3"))
    assert shown(last) == ["CDS a"]
    assert last[0].resources[0].version == "3"


def test_a_refused_response_is_sent_once_more_in_parts_and_then_rests(delta: ServerStream) -> None:
    now = snapshot("1", CDS_a="1", CDS_b="bad", CDS_c="1")
    sent = []
    for _ in range(20):
        for response in delta.publish(now):
            sent += shown([response])
            bad = any(r.version == "bad" for r in response.resources)
            answer(delta, [response], error="invalid" if bad else "")
    assert [s for s in sent if s.startswith("CDS")] == ["CDS a b c", "CDS a", "CDS b", "CDS c"]
    assert set(delta.subscriptions[Kind.CLUSTER].refused) == {"b"}
    assert shown(delta.publish(snapshot("2", CDS_a="1", CDS_b="2", CDS_c="1"))) == ["CDS b"]


def test_a_refusal_is_told_until_it_is_over(delta: ServerStream) -> None:
    answer(delta, delta.publish(snapshot("1", SDS_s="1", LDS_l="1", RDS_r="1")))
    listeners = delta.subscriptions[Kind.LISTENER]
    ask(delta, Kind.LISTENER, "m", "n")

    def serve(now: Snapshot) -> None:
        for _ in range(8):
            for response in delta.publish(now):
                bad = [r.name for r in response.resources if r.version == "bad"]
                answer(delta, [response], error=f"{' '.join(bad)} is bad" if bad else "")

    serve(snapshot("2", LDS_l="bad", LDS_m="bad", LDS_n="1", RDS_r="1"))
    assert set(listeners.refused) == {"l", "m"}
    assert listeners.error == "m is bad"
    serve(snapshot("3", LDS_l="bad", LDS_m="3", LDS_n="2", RDS_r="1"))
    assert (set(listeners.refused), listeners.error) == ({"l"}, "l is bad")
    serve(snapshot("4", LDS_m="3", LDS_n="2", RDS_r="1"))
    assert (set(listeners.refused), listeners.error) == (set(), "")


def test_a_listener_whose_port_is_taken_is_sent_again_when_somebody_says_so(delta: ServerStream) -> None:
    answer(delta, delta.publish(snapshot("1", SDS_s="1", LDS_l="1", RDS_r="1")))
    ask(delta, Kind.LISTENER, "m", "n")
    now = snapshot("2", LDS_l="1", LDS_m="taken", LDS_n="bad", RDS_r="1")
    why = {"taken": "cannot bind '::': Address already in use", "bad": "no such filter"}

    def serve(**free: str) -> list[str]:
        sent = []
        for _ in range(8):
            for response in delta.publish(now):
                sent += shown([response])
                errors = [
                    why[r.version] for r in response.resources if r.version in why and r.name not in free
                ]
                answer(delta, [response], error=" ".join(errors))
        return sent

    assert serve() == ["LDS m n", "LDS m", "LDS n"]
    assert delta.unbound == ("m",)
    assert serve() == []
    delta.try_unbound()
    delta.try_unbound()
    assert serve() == ["LDS m"]
    delta.try_unbound()
    assert serve(m="free") == ["LDS m"]
    assert delta.unbound == ()
    delta.try_unbound()
    assert serve() == []
    assert set(delta.subscriptions[Kind.LISTENER].refused) == {"n"}


def test_a_secret_that_is_gone_stays_with_who_asks_for_it(delta: ServerStream) -> None:
    ask(delta, Kind.SECRET, "s")
    answer(delta, delta.publish(snapshot("1", SDS_s="1", CDS_a="1", LDS_l="1", RDS_r="1")))
    gone = snapshot("2", CDS_a="1", LDS_l="1", RDS_r="1")
    assert delta.publish(gone) == []
    assert not delta.holding
    assert shown(delta.publish(snapshot("3", SDS_s="3", CDS_a="1", LDS_l="1", RDS_r="1"))) == ["SDS s"]


def test_who_comes_back_is_sent_only_what_differs() -> None:
    stream = ServerStream(delta=True)
    ask(stream, Kind.CLUSTER, "*", initial_resource_versions={"a": "1", "b": "1", "gone": "1"})
    assert stream.returning
    assert shown(stream.publish(snapshot("9", CDS_a="1", CDS_b="2", CDS_c="1"))) == ["CDS b c"]
    ask(stream, Kind.CLUSTER, nonce="1")
    assert shown(stream.publish(snapshot("9", CDS_a="1", CDS_b="2", CDS_c="1"))) == ["CDS -gone"]


def test_what_is_subscribed_again_is_sent_again() -> None:
    stream = ServerStream(delta=True)
    now = snapshot("1", RDS_a="1")
    ask(stream, Kind.ROUTES, "a", "b")
    answer(stream, first := stream.publish(now))
    assert shown(first) == ["RDS a -b"]
    assert stream.publish(now) == []
    ask(stream, Kind.ROUTES, "a", "b")
    assert shown(stream.publish(now)) == ["RDS a -b"]


def test_a_stale_nonce_is_no_answer_but_its_names_count_in_delta(delta: ServerStream) -> None:
    delta.publish(snapshot("1", CDS_a="1", RDS_r="1"))
    assert not ask(delta, Kind.CLUSTER, nonce="77")
    assert not ask(delta, Kind.CLUSTER, nonce="77", error="not mine")
    assert delta.subscriptions[Kind.CLUSTER].pending is not None
    assert delta.subscriptions[Kind.CLUSTER].error == ""
    assert ask(delta, Kind.ROUTES, "s", nonce="77")
    assert delta.names(Kind.ROUTES) == {"r", "s"}


def test_envoy_is_sent_routes_after_it_asked_for_its_clusters_endpoints() -> None:
    stream = ServerStream(delta=False)
    now = snapshot("1", CDS_a="c", EDS_a="e", LDS_l="l", RDS_r="r")
    ask(stream, Kind.CLUSTER)
    ask(stream, Kind.LISTENER)
    first = stream.publish(now)
    assert shown(first) == ["CDS c"]
    assert stream.hold is Hold.QUESTION
    answer(stream, first)
    assert stream.publish(now) == []
    ask(stream, Kind.ENDPOINTS, "a")
    assert shown(stream.publish(now)) == ["EDS e", "LDS l"]
    assert not stream.holding


def test_the_wait_for_that_question_can_be_ended_for_good() -> None:
    stream = ServerStream(delta=True)
    ask(stream, Kind.CLUSTER)
    ask(stream, Kind.LISTENER)
    answer(stream, stream.publish(snapshot("1", CDS_a="1", EDS_a="1", LDS_l="1")))
    made = stream.publish(snapshot("1", CDS_a="1", EDS_a="1", LDS_l="1"), hurry=True)
    assert shown(made) == ["LDS l"]
    answer(stream, made)
    assert shown(stream.publish(snapshot("2", CDS_a="1", EDS_a="1", LDS_l="2"))) == ["LDS l"]


def test_a_changed_cluster_has_its_endpoints_sent_again(delta: ServerStream) -> None:
    answer(delta, delta.publish(snapshot("1", CDS_a="1", EDS_a="1")))
    assert shown(delta.publish(snapshot("2", CDS_a="2", EDS_a="1"))) == ["CDS a", "EDS a"]


@pytest.mark.parametrize("is_delta", [True, False])
def test_clusters_are_warmed_while_newer_ones_wait_for_an_answer(is_delta: bool) -> None:
    stream = ServerStream(is_delta)
    ask(stream, Kind.CLUSTER)
    ask(stream, Kind.LISTENER)
    clusters, *more = stream.publish(snapshot("1", CDS_a="1", EDS_a="1", LDS_l="1", SDS_s="1"))
    assert (shown([clusters]), more) == (["CDS a" if is_delta else "CDS 1"], [])
    # Envoy asks before it answers, and answers when the clusters are warm.
    ask(stream, Kind.ENDPOINTS, "a")
    ask(stream, Kind.SECRET, "s")
    newer = snapshot("2", CDS_a="1", CDS_b="1", EDS_a="1", EDS_b="1", LDS_l="1", SDS_s="1")
    warming = stream.publish(newer)
    assert shown(warming) == (["EDS a", "SDS s"] if is_delta else ["EDS 1", "SDS 1"])
    answer(stream, warming, names=() if is_delta else ("a",))
    assert stream.publish(newer) == []
    answer(stream, [clusters])
    assert shown(stream.publish(newer)) == (["CDS b"] if is_delta else ["CDS 1 1"])


def test_state_of_the_world_sends_all_clusters_and_drops_the_gone_ones_last() -> None:
    stream = ServerStream(delta=False)
    ask(stream, Kind.CLUSTER)
    ask(stream, Kind.ROUTES, "r")
    answer(stream, stream.publish(snapshot("1", CDS_a="a", CDS_b="b", RDS_r="r1")), names=())
    now = snapshot("2", CDS_b="b", CDS_c="c", RDS_r="r2")
    ask(stream, Kind.ROUTES, "r")
    made = stream.publish(now)
    assert shown(made) == ["CDS a b c", "RDS r2"]
    ask(stream, Kind.CLUSTER, nonce=made[0].nonce)
    ask(stream, Kind.ROUTES, "r", nonce=made[1].nonce)
    assert shown(stream.publish(now)) == ["CDS b c"]


def test_held_is_what_was_accepted(delta: ServerStream) -> None:
    held = delta.subscriptions[Kind.CLUSTER].held
    (first,) = delta.publish(snapshot("1", CDS_a="1", CDS_b="1"))[:1]
    assert held == set()
    answer(delta, [first], error="no")
    assert held == set()
    for _ in range(2):
        answer(delta, delta.publish(snapshot("1", CDS_a="1", CDS_b="1")))
    assert held == {"a", "b"}
    (changed,) = delta.publish(snapshot("2", CDS_a="2", CDS_b="1"))
    assert held == {"a", "b"}
    answer(delta, [changed], error="no")
    assert held == {"a", "b"}
    delta.publish(snapshot("3", CDS_b="1"))
    ask(delta, Kind.LISTENER, nonce="x")
    assert held == {"a", "b"}


def test_held_is_what_who_comes_back_came_with() -> None:
    stream = ServerStream(delta=True)
    ask(stream, Kind.CLUSTER, "*", initial_resource_versions={"a": "1", "gone": "1"})
    assert stream.subscriptions[Kind.CLUSTER].held == {"a", "gone"}
    now = snapshot("9", CDS_a="1")
    answer(stream, stream.publish(now))
    answer(stream, stream.publish(now))
    assert stream.subscriptions[Kind.CLUSTER].held == {"a"}


def test_held_in_a_state_of_the_world() -> None:
    stream = ServerStream(delta=False)
    ask(stream, Kind.CLUSTER)
    answer(stream, stream.publish(snapshot("1", CDS_a="a", CDS_b="b")))
    held = stream.subscriptions[Kind.CLUSTER].held
    assert held == {"a", "b"}
    answer(stream, stream.publish(snapshot("2", CDS_b="b2", CDS_c="c")), error="no")
    assert held == {"a", "b"}


@pytest.mark.parametrize("kind", [Kind.CLUSTER, Kind.ENDPOINTS])
def test_what_is_gone_is_not_taken_from_under_the_hands_of_who_asks_by_name(kind: Kind) -> None:
    stream = ServerStream(delta=True)
    ask(stream, kind, "a")
    answer(stream, stream.publish(snapshot("1", **{f"{kind.short}_a": "1"})))
    assert stream.publish(snapshot("2")) == []
    assert stream.holding
    assert shown(stream.publish(snapshot("2"), hurry=True)) == [f"{kind.short} -a"]

    ask(stream, kind, resource_names_unsubscribe=["a"])
    assert stream.publish(snapshot("2")) == []
    assert not stream.holding


@pytest.mark.parametrize("is_delta", [True, False])
def test_an_envoy_gives_up_endpoints_when_their_cluster_is_removed(is_delta: bool) -> None:
    """Nothing waits for that: it can't give them up before."""
    stream = ServerStream(is_delta)
    first = snapshot("1", CDS_a="1", CDS_b="1", EDS_a="1", EDS_b="1")
    ask(stream, Kind.CLUSTER)
    answer(stream, stream.publish(first))
    ask(stream, Kind.ENDPOINTS, "a", "b")
    answer(stream, stream.publish(first), names=() if is_delta else ("a", "b"))
    left = snapshot("2", CDS_b="1", EDS_b="1")
    made = stream.publish(left)
    assert shown(made) == (["CDS -a"] if is_delta else ["CDS 1"])
    assert stream.hold is None
    if is_delta:
        ask(stream, Kind.ENDPOINTS, resource_names_unsubscribe=["a"])
    else:
        ask(stream, Kind.ENDPOINTS, "b")
    answer(stream, made)
    assert stream.publish(left) == []
    assert stream.hold is None


def test_endpoints_that_are_gone_while_their_cluster_stays_wait_for_their_cancelling() -> None:
    stream = ServerStream(delta=True)
    ask(stream, Kind.CLUSTER)
    ask(stream, Kind.ENDPOINTS, "a")
    answer(stream, stream.publish(snapshot("1", CDS_a="1", EDS_a="1")))
    assert shown(stream.publish(snapshot("2", CDS_a="1"))) == []
    assert stream.hold is Hold.CANCEL


def test_an_incomplete_snapshot_takes_nothing_from_who_comes_back() -> None:
    stream = ServerStream(delta=True)
    ask(stream, Kind.CLUSTER, "*", initial_resource_versions={"a": "1", "b": "1"})
    now = snapshot("1", CDS_a="2", CDS_c="1")
    made = stream.publish(now, keep=True)
    assert shown(made) == ["CDS c"]
    answer(stream, made)
    made = stream.publish(now)
    assert shown(made) == ["CDS a"]
    answer(stream, made)
    assert shown(stream.publish(now)) == ["CDS -b"]


def test_limits_and_violations() -> None:
    with pytest.raises(ProtocolError, match="must carry the node"):
        ServerStream(delta=True).received(pb.DeltaDiscoveryRequest(type_url=Kind.CLUSTER.type_url))
    odd = pb.Node(id="x")
    odd.metadata.fields["LABELS"].number_value = float("nan")
    with pytest.raises(ProtocolError, match="metadata can't be read"):
        ServerStream(delta=True).received(pb.DeltaDiscoveryRequest(node=odd, type_url=Kind.CLUSTER.type_url))
    stream = ServerStream(delta=True, max_names=3)
    with pytest.raises(ProtocolError, match="'nonsense' is not served; served are type"):
        stream.received(pb.DeltaDiscoveryRequest(node=NODE, type_url="nonsense"))
    with pytest.raises(ProtocolError, match="more than 1024 characters"):
        ask(stream, Kind.ROUTES, "x" * 1025)
    ask(stream, Kind.ROUTES, "1", "2")
    with pytest.raises(ProtocolError, match="more than 3 names") as caught:
        ask(stream, Kind.ENDPOINTS, "1", "2")
    assert caught.value.code == "RESOURCE_EXHAUSTED"
