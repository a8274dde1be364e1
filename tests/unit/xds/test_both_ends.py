"""Both ends of an ADS stream against each other, over a network that is late and breaks."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.xds import pb
from meshlib.xds.client_stream import ClientStream
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour, to_node
from meshlib.xds.server_stream import ServerStream
from meshlib.xds.snapshot import Resource, Snapshot

KINDS = (Kind.CLUSTER, Kind.ENDPOINTS, Kind.LISTENER, Kind.ROUTES)
NAMES = ("a", "b", "c")
BAD = 1_000_000


def resource(kind: Kind, name: str, mark: int) -> Resource:
    """A resource that carries a number; from BAD on the client refuses it."""
    match kind:
        case Kind.CLUSTER:
            message = pb.Cluster(name=name, alt_stat_name=str(mark))
        case Kind.ENDPOINTS:
            message = pb.ClusterLoadAssignment(cluster_name=name)
            message.policy.overprovisioning_factor.value = mark
        case Kind.LISTENER:
            message = pb.Listener(name=name, stat_prefix=str(mark))
        case _:
            message = pb.RouteConfiguration(name=name, internal_only_headers=[str(mark)])
    return Resource.of(kind, name, message)


def mark_of(of: Resource) -> int:
    message = of.message()
    match of.kind:
        case Kind.CLUSTER:
            return int(message.alt_stat_name)
        case Kind.ENDPOINTS:
            return int(message.policy.overprovisioning_factor.value)
        case Kind.LISTENER:
            return int(message.stat_prefix)
        case _:
            return int(message.internal_only_headers[0])


@dataclass
class World:
    """A client, a server and the two directions of the stream between them."""

    delta: bool
    whole: bool
    """The client refuses a whole response for one bad resource, as Envoy does."""
    snapshot: Snapshot = field(default_factory=lambda: Snapshot("0"))
    up: deque[Any] = field(default_factory=deque)
    down: deque[Any] = field(default_factory=deque)
    holds: dict[tuple[Kind, str], Resource] = field(default_factory=dict)
    sent: int = 0
    marks: int = 0

    def __post_init__(self) -> None:
        self.client = ClientStream(to_node(Client(Flavour.MESHLIB, id="x")), self.delta)
        self.server = ServerStream(self.delta)

    def change(self, kind: Kind, name: str, what: str) -> None:
        self.marks += 1
        there = {(r.kind, r.name): r for r in self.snapshot}
        there.pop((kind, name), None)
        if what != "gone":
            mark = self.marks + (BAD if what == "bad" else 0)
            there[kind, name] = resource(kind, name, mark)
        self.snapshot = Snapshot.of(str(self.marks), there.values())

    def subscribe(self, kind: Kind, name: str) -> None:
        self.client.subscribe(kind, [name])

    def unsubscribe(self, kind: Kind, name: str) -> None:
        self.flush()
        self.client.unsubscribe(kind, [name])
        wanted = self.client.names(kind)
        for held_kind, held in list(self.holds):
            if held_kind is kind and held not in wanted and "*" not in wanted:
                del self.holds[held_kind, held]
        self.flush()

    def flush(self) -> None:
        self.up.extend(self.client.to_send())

    def publish(self) -> None:
        if self.server.client is not None:
            responses = self.server.publish(self.snapshot)
            assert len({r.type_url for r in responses}) == len(responses), "two of a type under way"
            self.sent += len(responses)
            self.down.extend(responses)

    def deliver_up(self) -> None:
        # Bytes and back, as on a wire.
        if self.up:
            message = self.up.popleft()
            if self.server.received(type(message).FromString(message.SerializeToString())):
                self.publish()

    def deliver_down(self) -> None:
        if self.down:
            update = self.client.received(self.down.popleft())
            errors = {n: "bad" for n, r in update.resources.items() if mark_of(r) >= BAD}
            if errors and self.whole:
                errors = dict.fromkeys(update.resources, "bad company")
                removed: frozenset[str] = frozenset() if not self.delta else update.removed
            else:
                removed = update.removed
            for name, found in update.resources.items():
                if name not in errors:
                    known = self.holds.get((update.kind, name))
                    assert known is None or mark_of(known) <= mark_of(found), "an older one after a newer one"
                    self.holds[update.kind, name] = found
            for name in removed:
                self.holds.pop((update.kind, name), None)
            self.client.nack(update, errors)
            self.flush()

    def repeat_up(self) -> None:
        """The server is told the next thing twice."""
        if self.up:
            self.up.appendleft(self.up[0])
            self.deliver_up()
            self.deliver_up()

    def repeat_down(self) -> None:
        """The client is told the next thing twice, and answers twice with one nonce."""
        if self.down:
            self.down.appendleft(self.down[0])
            self.deliver_down()
            self.deliver_down()

    def reconnect(self) -> None:
        self.up.clear()
        self.down.clear()
        self.client.reset()
        self.server = ServerStream(self.delta)
        self.flush()

    def settle(self) -> None:
        self.flush()
        self.publish()
        for _ in range(2000):
            if not self.up and not self.down:
                if not self.server.holding:
                    return
                self.down.extend(self.server.publish(self.snapshot, hurry=True))
                assert not self.server.holding
            self.deliver_up()
            self.deliver_down()
        raise AssertionError("never comes to rest")

    def check(self) -> None:
        refused = any(r.kind in (Kind.LISTENER, Kind.ROUTES) and mark_of(r) >= BAD for r in self.snapshot)
        for kind in KINDS:
            wanted = self.client.names(kind)
            names = set(NAMES) if "*" in wanted else wanted
            for name in names:
                there, held = self.snapshot.get(kind, name), self.holds.get((kind, name))
                if there is not None and mark_of(there) < BAD:
                    if not (self.whole and not self.delta and kind.wildcard):
                        assert held == there or (held and held.body == there.body), (kind, name)
                elif there is not None:
                    assert held is None or mark_of(held) < BAD
                elif self.delta or kind.wildcard:
                    lives_on = refused and kind in (Kind.CLUSTER, Kind.ENDPOINTS)
                    assert held is None or lives_on or (self.whole and not self.delta), (kind, name)
            held_names = {name for held_kind, name in self.holds if held_kind is kind}
            assert held_names <= names


kinds, names = st.sampled_from(KINDS), st.sampled_from(NAMES)
STEPS = st.one_of(
    st.tuples(st.just("change"), kinds, names, st.sampled_from(["new", "new", "bad", "gone"])),
    st.tuples(st.just("subscribe"), kinds, st.sampled_from([*NAMES, "*"])),
    st.tuples(st.just("unsubscribe"), kinds, st.sampled_from([*NAMES, "*"])),
    st.tuples(
        st.sampled_from(["flush", "publish", "deliver_up", "deliver_down", "deliver_up", "deliver_down"])
    ),
    st.tuples(st.sampled_from(["reconnect", "repeat_up", "repeat_down"])),
)


@pytest.mark.parametrize("whole", [False, True], ids=["by-resource", "whole"])
@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEPS, max_size=60))
def test_the_client_comes_to_hold_the_last_snapshot(
    delta: bool, whole: bool, steps: list[tuple[Any, ...]]
) -> None:
    world = World(delta, whole)
    for name, *arguments in steps:
        getattr(world, name)(*arguments)
    world.settle()
    world.check()
    before = world.sent
    world.publish()
    assert world.sent == before, "the same is sent again"
    world.reconnect()
    world.settle()
    world.check()
