"""What is pushed, when and to whom, without sockets."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import pytest

from meshlib.control.serve import push
from meshlib.control.serve.callers import Caller
from meshlib.control.serve.push import Connection, Hub
from meshlib.control.status import status
from meshlib.xds import pb
from meshlib.xds.client_stream import ClientStream
from meshlib.xds.kinds import BY_TYPE_URL, Kind
from meshlib.xds.node import Client, Flavour, to_node
from meshlib.xds.snapshot import Resource


class Marked:
    """A listener for each name asked for; its content is the mark of that name."""

    def __init__(self, version: str, **marks: str) -> None:
        self.version = version
        self.marks = marks
        self.asked: list[tuple[str, frozenset[str]]] = []

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        self.asked.append((client.namespace, listeners))
        for name in sorted(listeners & self.marks.keys()):
            mark = self.marks[name]
            yield Resource.of(Kind.LISTENER, name, pb.Listener(name=name, stat_prefix=mark))


class Peer:
    """A client and the hub's end of its stream."""

    def __init__(self, hub: Hub, *targets: str, namespace: str = "shop", name: str = "peer") -> None:
        self.hub = hub
        self.connection: Connection = hub.opened(True, Caller("here", None))
        client = Client(Flavour.MESHLIB, namespace=namespace, id=name)
        self.state = ClientStream(to_node(client), delta=True)
        self.state.subscribe(Kind.LISTENER, list(targets))
        self.say()

    def say(self) -> None:
        for message in self.state.to_send():
            self.hub.heard(self.connection, message)

    async def sent(self) -> list[Any]:
        """What the hub would send now."""
        return await self.hub.due(self.connection) if self.connection.dirty.is_set() else []

    def take(self, responses: list[Any], refusal: str = "") -> dict[str, str]:
        """Name and mark of what came; accepts it, or refuses all of it."""
        found = {}
        for response in responses:
            update = self.state.received(response)
            for name, resource in update.resources.items():
                found[name] = str(resource.message().stat_prefix)
            if refusal:
                self.state.nack(update, dict.fromkeys(update.resources, refusal))
            else:
                self.state.ack(update)
        self.say()
        return found


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(clock: Clock) -> Hub:
    return Hub(clock)


async def test_a_slow_client_gets_the_newest_only_and_delays_nobody(hub: Hub) -> None:
    hub.publish(Marked("1.1", a="1"))
    slow, quick = Peer(hub, "a", name="slow"), Peer(hub, "a", name="quick")
    unanswered = await slow.sent()
    assert quick.take(await quick.sent()) == {"a": "1"}
    for number in range(2, 100):
        hub.publish(Marked(f"1.{number}", a=str(number)))
        assert await slow.sent() == []
        assert quick.take(await quick.sent()) == {"a": str(number)}
    assert slow.take(unanswered) == {"a": "1"}
    newest = await slow.sent()
    assert slow.take(newest) == {"a": "99"}
    assert len(newest) == 1
    assert await slow.sent() == []


async def test_only_those_concerned_are_sent_something(hub: Hub) -> None:
    hub.publish(Marked("1.1", a="1", b="1"))
    of_a, of_b, of_both = Peer(hub, "a"), Peer(hub, "b"), Peer(hub, "a", "b")
    for peer in (of_a, of_b, of_both):
        peer.take(await peer.sent())
        assert await peer.sent() == []
    hub.publish(Marked("1.2", a="1", b="2"))
    assert await of_a.sent() == []
    assert of_b.take(await of_b.sent()) == {"b": "2"}
    assert of_both.take(await of_both.sent()) == {"b": "2"}


async def test_equal_clients_are_compiled_for_once_and_share_every_object(hub: Hub) -> None:
    compiler = Marked("1.1", a="x" * 1000)
    hub.publish(compiler)
    peers = [Peer(hub, "a", name=f"peer-{number}") for number in range(50)]
    other = Peer(hub, "a", namespace="elsewhere")
    for peer in (*peers, other):
        peer.take(await peer.sent())
    assert compiler.asked == [("shop", frozenset({"a"})), ("elsewhere", frozenset({"a"}))]
    held = {id(p.connection.stream.subscriptions[Kind.LISTENER].sent["a"]) for p in (*peers, other)}
    assert len(held) == 1


async def test_nothing_is_sent_before_the_first_configuration(hub: Hub) -> None:
    peer = Peer(hub, "a")
    assert await peer.sent() == []
    hub.publish(Marked("1.1", a="1"))
    assert peer.take(await peer.sent()) == {"a": "1"}


async def test_due_waits_for_a_change(hub: Hub) -> None:
    hub.publish(Marked("1.1", a="1"))
    peer = Peer(hub, "a")
    peer.take(await peer.sent())
    assert await peer.sent() == []
    waiting = asyncio.ensure_future(hub.due(peer.connection))
    await asyncio.sleep(0)
    assert not waiting.done()
    hub.publish(Marked("1.2", a="2"))
    assert peer.take(await waiting) == {"a": "2"}


async def test_status_tells_how_far_behind_a_client_is_and_what_it_refused(hub: Hub, clock: Clock) -> None:
    hub.publish(Marked("1.1", a="1"))
    peer = Peer(hub, "a")
    peer.take(await peer.sent())
    await peer.sent()
    clock.now = 110.0
    hub.publish(Marked("1.2", a="2"))
    hub.publish(Marked("1.3", a="3"))
    clock.now = 112.0
    (told,) = status(hub, clock=clock)["clients"]
    assert (told["connected_seconds"], told["behind_seconds"], told["behind_versions"]) == (12.0, 2.0, 2)
    peer.take(await peer.sent(), refusal="it is ugly")
    (told,) = status(hub, clock=clock)["clients"]
    (kind,) = told["kinds"]
    assert (kind["kind"], kind["nacked"], kind["acked"], kind["refused"]) == ("LDS", "1.3", "1.1", ["a"])
    assert "it is ugly" in kind["nack"]
    hub.publish(Marked("1.4", a="4"))
    assert peer.take(await peer.sent()) == {"a": "4"}
    await peer.sent()
    (told,) = status(hub, clock=clock)["clients"]
    (kind,) = told["kinds"]
    assert (kind["acked"], kind["nack"], kind["refused"], told["behind_seconds"]) == ("1.4", "", [], 0)


async def test_a_closed_stream_is_forgotten(hub: Hub) -> None:
    peer = Peer(hub, "a")
    hub.closed(peer.connection)
    assert hub.connections == ()
    assert status(hub)["clients"] == []


def test_who_has_not_said_its_name_is_not_in_the_status(hub: Hub) -> None:
    hub.opened(True, Caller("here", None))
    assert status(hub)["clients"] == []


@pytest.mark.parametrize(
    ("asked", "level", "said"),
    [
        (("a",), logging.INFO, "did not cancel what is gone; it is told so now"),
        ((), logging.WARNING, "did not ask for its clusters' endpoints; it is sent its routes now"),
    ],
)
async def test_who_lets_something_wait_is_named_with_what_it_did_not_do(
    hub: Hub,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, ...],
    level: int,
    said: str,
) -> None:
    monkeypatch.setattr(push, "HOLD_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    connection = hub.opened(True, Caller("here", None))
    for kind, names in ((Kind.CLUSTER, ()), (Kind.ENDPOINTS, asked), (Kind.LISTENER, ())):
        hub.heard(connection, request(kind, *names))
    hub.publish(Clusters("1.1", "a"))
    for response in await hub.due(connection):
        hub.heard(connection, request(BY_TYPE_URL[response.type_url], nonce=response.nonce))
    hub.publish(Clusters("1.2") if asked else Clusters("1.2", "a"))
    assert await hub.due(connection) == []
    assert await hub.due(connection) != []
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (level, f"peer at here {said}")
    ]


class Clusters:
    """A cluster and a listener; and endpoints of these names."""

    def __init__(self, version: str, *endpoints: str) -> None:
        self.version, self._endpoints = version, endpoints

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        yield Resource.of(Kind.CLUSTER, "a", pb.Cluster(name="a"))
        yield Resource.of(Kind.LISTENER, "l", pb.Listener(name="l"))
        for name in self._endpoints:
            yield Resource.of(Kind.ENDPOINTS, name, pb.ClusterLoadAssignment(cluster_name=name))


def request(kind: Kind, *names: str, nonce: str = "") -> Any:
    made = pb.DeltaDiscoveryRequest(type_url=kind.type_url, resource_names_subscribe=names)
    made.response_nonce = nonce
    made.node.CopyFrom(to_node(Client(Flavour.ENVOY, id="peer")))
    return made
