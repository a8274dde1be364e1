"""The control server over real gRPC: raw streams, faults of peers, registration, status."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

from meshlib.control.registration import Registration
from meshlib.control.serve.push import Hub
from meshlib.control.serve.server import ControlServer
from meshlib.control.status import fetch_status, status
from meshlib.errors import ConfigError, ControlUnavailable
from meshlib.xds import pb
from meshlib.xds.client_stream import ClientStream, Update
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour, to_node
from meshlib.xds.snapshot import Resource


@dataclass
class Fixed:
    """A compiler that knows its answers: one listener, and clusters by number."""

    version: str
    mark: str
    compiled: int = 0

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        self.compiled += 1
        for name in listeners:
            if name == "broken":
                raise RuntimeError("this one can't be compiled")
            yield Resource.of(Kind.LISTENER, name, pb.Listener(name=name, stat_prefix=self.mark))
            yield Resource.of(Kind.CLUSTER, name, pb.Cluster(name=name, alt_stat_name=self.mark))


class Peer:
    """A client on a real channel, driven by the client's state machine."""

    def __init__(self, channel: grpc.aio.Channel, delta: bool, name: str = "peer") -> None:
        self.state = ClientStream(to_node(Client(Flavour.MESHLIB, id=name)), delta)
        path = pb.DELTA_ADS if delta else pb.ADS
        reply = pb.DeltaDiscoveryResponse if delta else pb.DiscoveryResponse
        self.call = channel.stream_stream(
            path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=reply.FromString
        )()

    async def say(self) -> None:
        for message in self.state.to_send():
            await self.call.write(message)

    async def next(self) -> Update:
        reply = await asyncio.wait_for(self.call.read(), 30)
        assert reply is not grpc.aio.EOF, await self.call.details()
        update = self.state.received(reply)
        self.state.ack(update)
        await self.say()
        return update


@asynccontextmanager
async def serving(hub: Hub, **options: Any) -> AsyncIterator[tuple[ControlServer, grpc.aio.Channel]]:
    server = ControlServer(hub, "127.0.0.1:0", allow_plaintext=True, **options)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield server, channel
    finally:
        await server.stop()


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_what_is_asked_for_comes_and_a_change_follows(delta: bool) -> None:
    hub = Hub()
    hub.publish(Fixed("1", "one"))
    async with serving(hub) as (_, channel):
        peer = Peer(channel, delta)
        peer.state.subscribe(Kind.LISTENER, ["a:80"])
        await peer.say()
        update = await peer.next()
        assert (update.kind, set(update.resources)) == (Kind.LISTENER, {"a:80"})
        assert update.resources["a:80"].message().stat_prefix == "one"

        took = []
        for version in ("2", "3", "4", "5", "6"):
            began = time.monotonic()
            hub.publish(Fixed(version, f"word {version}"))
            update = await peer.next()
            took.append(time.monotonic() - began)
            assert update.resources["a:80"].message().stat_prefix == f"word {version}"
            assert update.version == version
        assert min(took) < 0.15  # a busy machine is late sometimes; who waits is late every time


async def test_equal_clients_share_what_is_compiled_and_the_rest_is_left_alone() -> None:
    hub, one = Hub(), Fixed("1", "one")
    hub.publish(one)
    async with serving(hub) as (_, channel):
        peers = [Peer(channel, True, f"peer-{n}") for n in range(20)]
        for peer in peers:
            peer.state.subscribe(Kind.LISTENER, ["a:80"])
            await peer.say()
        for peer in peers:
            await peer.next()
        assert one.compiled == 1
        hub.publish(Fixed("2", "one"))
        hub.publish(Fixed("3", "three"))
        updates = await asyncio.gather(*(peer.next() for peer in peers))
        assert {update.version for update in updates} == {"3"}


async def test_a_compiler_that_fails_for_one_client_leaves_the_others(caplog: Any) -> None:
    hub = Hub()
    hub.publish(Fixed("1", "one"))
    async with serving(hub) as (_, channel):
        bad, good = Peer(channel, True), Peer(channel, True)
        bad.state.subscribe(Kind.LISTENER, ["broken"])
        good.state.subscribe(Kind.LISTENER, ["a:80"])
        await bad.say()
        await good.say()
        assert set((await good.next()).resources) == {"a:80"}
        assert "can't be compiled" in caplog.text
        bad.state.unsubscribe(Kind.LISTENER, ["broken"])
        bad.state.subscribe(Kind.LISTENER, ["b:80"])
        await bad.say()
        assert set((await bad.next()).resources) == {"b:80"}


def request(**fields: Any) -> bytes:
    return pb.DiscoveryRequest(**fields).SerializeToString()


NODE = to_node(Client(Flavour.MESHLIB, id="peer"))


@pytest.mark.parametrize(
    ("raw", "code", "text"),
    [
        (b"\xff\xff\xff", "INVALID_ARGUMENT", "can't be decoded"),
        (request(type_url=Kind.LISTENER.type_url), "INVALID_ARGUMENT", "must carry the node"),
        (request(node=NODE, type_url="type.googleapis.com/nonsense"), "INVALID_ARGUMENT", "is not served"),
        (
            request(node=NODE, type_url=Kind.ROUTES.type_url, resource_names=["x" * 2000]),
            "INVALID_ARGUMENT",
            "more than 1024 characters",
        ),
        (
            request(node=NODE, type_url=Kind.ROUTES.type_url, resource_names=map(str, range(30_000))),
            "RESOURCE_EXHAUSTED",
            "more than 20000 names",
        ),
    ],
    ids=["garbage", "no-node", "unknown-type", "long-name", "many-names"],
)
async def test_a_client_that_breaks_the_protocol_is_told_how(raw: bytes, code: str, text: str) -> None:
    hub = Hub()
    hub.publish(Fixed("1", "one"))
    async with serving(hub) as (_, channel):
        call = channel.stream_stream(pb.ADS)()
        await call.write(raw)
        assert await call.code() is grpc.StatusCode[code]
        assert text in await call.details()
        peer = Peer(channel, True)
        peer.state.subscribe(Kind.LISTENER, ["a:80"])
        await peer.say()
        assert set((await peer.next()).resources) == {"a:80"}
        assert len(hub.connections) == 1


def hello(name: str = "ratings-1", **metadata: Any) -> Any:
    message = pb.HealthCheckRequestOrEndpointHealthResponse()
    node = message.health_check_request.node
    node.id = name
    node.metadata.update(
        {
            "NAMESPACE": "shop",
            "SERVICE_ACCOUNT": "ratings",
            "LABELS": {"app": "ratings"},
            "PORTS": {"http": 9080},
        }
        | metadata
    )
    return message


def health(state: str, address: str = "127.0.0.1", port: int = 9080) -> Any:
    message = pb.HealthCheckRequestOrEndpointHealthResponse()
    found = message.endpoint_health_response.endpoints_health.add(health_status=state)
    found.endpoint.address.socket_address.address = address
    found.endpoint.address.socket_address.port_value = port
    return message


def joining(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(
        pb.HDS,
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=pb.HealthCheckSpecifier.FromString,
    )()


async def test_a_server_joins_drains_and_leaves() -> None:
    seen: asyncio.Queue[tuple[Registration, ...]] = asyncio.Queue()
    async with serving(Hub(), on_registrations=seen.put_nowait, grace=0.05) as (_, channel):
        call = joining(channel)
        await call.write(hello())
        assert pb.seconds((await asyncio.wait_for(call.read(), 30)).interval) == 10
        await call.write(health("HEALTHY"))
        (joined,) = await asyncio.wait_for(seen.get(), 30)
        assert joined == Registration(
            "ratings-1@127.0.0.1/http:9080",
            "shop",
            "ratings",
            (("app", "ratings"),),
            "127.0.0.1",
            (("http", 9080),),
        )
        await call.write(health("DRAINING"))
        assert [r.draining for r in await asyncio.wait_for(seen.get(), 30)] == [True]
        await call.write(health("HEALTHY"))
        assert [r.draining for r in await asyncio.wait_for(seen.get(), 30)] == [False]
        call.cancel()
        assert await asyncio.wait_for(seen.get(), 30) == ()


async def test_a_registration_that_is_no_good_is_refused_with_the_reason() -> None:
    async with serving(Hub()) as (server, channel):
        call = joining(channel)
        await call.write(hello(PORTS={"http": "9080"}))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == "metadata PORTS.http is not a number"
        assert server.registrar.registrations == ()


async def test_load_reports_are_taken() -> None:
    async with serving(Hub()) as (_, channel):
        call = channel.stream_stream(
            pb.LRS,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=pb.LoadStatsResponse.FromString,
        )()
        await call.write(pb.LoadStatsRequest(node=NODE))
        assert (await asyncio.wait_for(call.read(), 30)).send_all_clusters
        await call.write(pb.LoadStatsRequest())
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_status_tells_who_is_connected_and_who_refused_what() -> None:
    hub = Hub()
    hub.publish(Fixed("1", "one"))
    told = lambda: status(hub, (), ["a.yaml:3: broken"], [])  # noqa: E731
    async with serving(hub, status=told) as (server, channel):
        peer = Peer(channel, True, "shop-7")
        peer.state.subscribe(Kind.LISTENER, ["a:80"])
        await peer.say()
        update = peer.state.received(await peer.call.read())
        peer.state.nack(update, {"a:80": "no such filter"})
        await peer.say()
        while not hub.connections[0].stream.subscriptions[Kind.LISTENER].error:
            await asyncio.sleep(0.001)
        found = await asyncio.to_thread(fetch_status, server.address, 5)
    assert found["version"] == "1"
    assert found["errors"] == ["a.yaml:3: broken"]
    (client,) = found["clients"]
    assert (client["id"], client["flavour"], client["namespace"]) == ("shop-7", "meshlib", "default")
    assert client["kinds"] == [
        {
            "kind": "LDS",
            "names": ["a:80"],
            "subscribed": 1,
            "sent": 1,
            "held": 0,
            "acked": "",
            "nack": "a:80: no such filter",
            "nacked": "1",
            "refused": ["a:80"],
            "pending": False,
        }
    ]


async def test_a_port_that_is_taken_and_a_service_that_is_not_there() -> None:
    async with serving(Hub()) as (server, _):
        address = server.address
        with pytest.raises(
            ConfigError, match=r"can't listen on 127\.0\.0\.1:\d+: .*[Aa]ddress already in use"
        ):
            await ControlServer(Hub(), address, allow_plaintext=True).start()
    with pytest.raises(ControlUnavailable, match="UNAVAILABLE"):
        await asyncio.to_thread(fetch_status, address, 2)


class Nonsense:
    """A compiler that gives what is no resource."""

    version = "9"

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Any]:
        yield Resource(Kind.LISTENER, "a:80", "1", "text instead of bytes")  # type: ignore[arg-type]


async def test_a_stream_that_cannot_be_served_ends_and_its_client_may_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub()
    hub.publish(Nonsense())
    async with serving(hub) as (_, channel):
        peer = Peer(channel, True)
        peer.state.subscribe(Kind.LISTENER, ["a:80"])
        await peer.say()
        assert await peer.call.code() is grpc.StatusCode.INTERNAL
        assert "sending to" in caplog.text
        hub.publish(Fixed("10", "ten"))
        back = Peer(channel, True)
        back.state.subscribe(Kind.LISTENER, ["a:80"])
        await back.say()
        assert set((await back.next()).resources) == {"a:80"}
        assert len(hub.connections) == 1


async def test_a_client_that_does_not_read_delays_nobody() -> None:
    hub = Hub()
    hub.publish(Fixed("0", "x" * 1_000_000))
    async with serving(hub) as (_, channel):
        slow, quick = Peer(channel, True, "slow"), Peer(channel, True, "quick")
        for peer in (slow, quick):
            peer.state.subscribe(Kind.LISTENER, ["a:80"])
            await peer.say()
        await quick.next()
        for step in range(1, 30):
            hub.publish(Fixed(str(step), f"{step}" * 100_000))
            began = time.monotonic()
            assert (await quick.next()).version == str(step)
            assert time.monotonic() - began < 10
        assert (await slow.next()).version == "0"
        assert (await slow.next()).version == "29"


async def test_routes_wait_no_longer_than_the_limit_for_a_client_that_does_not_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshlib.control.serve.push.HOLD_SECONDS", 0.05)

    class Warming:
        version = "1"

        def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
            yield Resource.of(Kind.CLUSTER, "a", pb.Cluster(name="a"))
            yield Resource.of(Kind.ENDPOINTS, "a", pb.ClusterLoadAssignment(cluster_name="a"))
            yield Resource.of(Kind.LISTENER, "l", pb.Listener(name="l"))

    hub = Hub()
    hub.publish(Warming())
    async with serving(hub) as (_, channel):
        peer = Peer(channel, True)
        peer.state.subscribe(Kind.CLUSTER, ["*"])
        peer.state.subscribe(Kind.LISTENER, ["l"])
        await peer.say()
        assert (await peer.next()).kind is Kind.CLUSTER
        assert (await peer.next()).kind is Kind.LISTENER


async def test_who_asks_for_clusters_before_listeners_is_not_told_that_they_are_gone() -> None:
    hub = Hub()
    hub.publish(Fixed("1", "one"))
    async with serving(hub) as (_, channel):
        peer = Peer(channel, False)
        peer.state.subscribe(Kind.CLUSTER, ["a:80"])
        await peer.say()
        await asyncio.sleep(0.05)
        peer.state.subscribe(Kind.LISTENER, ["a:80"])
        await peer.say()
        first = await peer.next()
        assert (first.kind, set(first.resources)) == (Kind.CLUSTER, {"a:80"})
        assert (await peer.next()).kind is Kind.LISTENER
