"""The control stream by way of the agent, and its end: what Envoy is told then. All on Unix sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from meshlib.agent import relay
from meshlib.agent.relay import Relay
from meshlib.agent.workload import Workload
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour, to_node
from meshlib.xds.server_stream import ProtocolError, ServerStream
from meshlib.xds.snapshot import Resource, Snapshot

A, B = (Workload(name, (("http", 9080),), address="10.0.0.1", netns=f"/run/netns/{name}") for name in "ab")
LISTENERS = Kind.LISTENER.type_url
METHOD = pb.DELTA_ADS


def listener(name: str) -> Resource:
    return Resource(Kind.LISTENER, name, "1", pb.Listener(name=name).SerializeToString())


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


class Control:
    """A control service that can go and come."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.snapshot = Snapshot.of("1", [listener("a/inbound"), listener("b/inbound")])
        self.refuses = False
        self.nodes: list[str] = []

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        if self.refuses:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the node is not known")
        stream = ServerStream(delta=True)
        async for request in requests:
            if request.HasField("node"):
                self.nodes.append(request.node.id)
            try:
                stream.received(request)
            except ProtocolError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            for response in stream.publish(self.snapshot):
                yield response

    @contextlib.asynccontextmanager
    async def there(self) -> AsyncIterator[None]:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=pb.DeltaDiscoveryRequest.FromString,
            response_serializer=pb.DeltaDiscoveryResponse.SerializeToString,
        )
        service, _, method = METHOD.removeprefix("/").partition("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)


class Envoy:
    """One stream of it, for its listeners."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def ask(self, **versions: str) -> None:
        said = pb.DeltaDiscoveryRequest(type_url=LISTENERS)
        said.node.CopyFrom(to_node(Client(Flavour.NODE, node="vm1", id="node~vm1")))
        for name, version in versions.items():
            said.initial_resource_versions[name.replace("_", "/")] = version
        await self._call.write(said)

    async def told(self) -> list[str]:
        """The names of the next response, which is accepted."""
        found = await self._call.read()
        await self._call.write(pb.DeltaDiscoveryRequest(type_url=LISTENERS, response_nonce=found.nonce))
        return [*(one.name for one in found.resources), *(f"-{one}" for one in found.removed_resources)]


class Stage:
    """A relay, and whoever is at its ends."""

    def __init__(self, folder: Path) -> None:
        self.ads = folder / "ads"
        self.control = Control(folder / "control")
        self.kept = Folder()
        self.members: list[tuple[Workload, bool]] | None = [(A, True)]
        self.relay = Relay(self.ads, self.control.socket, lambda: self.members, self.kept)

    @contextlib.asynccontextmanager
    async def envoy(self) -> AsyncIterator[Envoy]:
        async with grpc.aio.insecure_channel(f"unix:{self.ads}") as channel:
            stream = channel.stream_stream(
                METHOD,
                request_serializer=pb.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=pb.DeltaDiscoveryResponse.FromString,
            )
            yield Envoy(stream())

    async def keeps(self, *whose: Workload) -> None:
        """Waits until that is what is kept."""
        while len(self.kept.kept) != len(whose):
            await asyncio.sleep(0.001)

    async def holds(self) -> None:
        """An Envoy has what the control service gives, and that is kept."""
        async with self.control.there(), self.envoy() as envoy:
            await envoy.ask()
            assert await envoy.told() == ["a/inbound", "b/inbound"]
            await self.keeps(A)


# gRPC's tasks know one loop in a process at a time.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(relay, "PATIENCE", 0.05)
    monkeypatch.setattr(relay, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr("meshlib.agent.answering.LOOK_SECONDS", 0.01)
    made = Stage(tmp_path)
    async with asyncio.timeout(30), made.relay:
        yield made


async def test_what_is_said_is_passed_on_and_kept_by_workload(stage: Stage) -> None:
    await stage.holds()
    assert stage.ads.stat().st_mode & 0o777 == 0o600
    assert stage.control.nodes == ["node~vm1"]
    assert list(stage.kept.kept.values()) == [(listener("a/inbound"),)]
    stage.members = []
    await stage.keeps()


async def test_without_a_control_service_envoy_has_what_was_last_good_of_who_is_there(stage: Stage) -> None:
    await stage.holds()
    async with stage.envoy() as envoy:
        await envoy.ask()
        assert await envoy.told() == ["a/inbound"]
        # As those come and go that are known.
        stage.members = [(B, False), (A, True)]
        stage.kept.save(
            {
                key.replace('"a"', '"b"').replace("/a", "/b"): (listener("b/inbound"),)
                for key in stage.kept.kept
            }
        )
        stage.relay._last_good._of.pop(B, None)
        assert await envoy.told() == ["b/inbound"]
        stage.members = [(B, False)]
        assert await envoy.told() == ["-a/inbound"]
        # Not when the node ends.
        stage.members = None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await envoy.told()


async def test_it_is_there_for_the_next_life_of_the_agent(stage: Stage, tmp_path: Path) -> None:
    await stage.holds()
    next_one = Stage(tmp_path)
    next_one.ads, next_one.kept = tmp_path / "next", stage.kept
    next_one.relay = Relay(next_one.ads, stage.control.socket, lambda: next_one.members, stage.kept)
    async with next_one.relay, next_one.envoy() as envoy:
        await envoy.ask()
        assert await envoy.told() == ["a/inbound"]


async def test_who_comes_with_what_it_has_loses_nothing(stage: Stage) -> None:
    await stage.holds()
    async with stage.envoy() as envoy:
        await envoy.ask(a_inbound="1", b_inbound="1")
        assert await envoy.told() == []


async def test_when_the_control_service_is_back_envoy_comes_again_and_is_sent_what_differs(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    await stage.holds()
    stage.control.snapshot = Snapshot.of("2", [listener("a/inbound"), listener("a/two")])
    async with stage.envoy() as envoy:
        await envoy.ask()
        assert await envoy.told() == ["a/inbound"]
        async with stage.control.there():
            with pytest.raises(grpc.aio.AioRpcError, match=r"(?s)UNAVAILABLE.*can be reached again"):
                await envoy.told()
            async with stage.envoy() as again:
                await again.ask(a_inbound="1")
                assert await again.told() == ["a/two"]
                while len(next(iter(stage.kept.kept.values()))) != 2:
                    await asyncio.sleep(0.001)
    said = [record.message for record in caplog.records if record.name == relay.__name__]
    assert said == ["the control service can't be reached; Envoy has the last good configuration"]


async def test_what_a_control_service_refuses_nobody_gives(stage: Stage) -> None:
    await stage.holds()
    stage.control.refuses = True
    async with stage.control.there():
        for _ in range(2):
            async with stage.envoy() as envoy:
                await envoy.ask()
                with pytest.raises(
                    grpc.aio.AioRpcError, match=r"(?s)PERMISSION_DENIED.*the node is not known"
                ):
                    await envoy.told()


async def test_who_is_not_settled_or_nothing_is_known_of_waits(stage: Stage) -> None:
    stage.members = [(A, False)]
    async with stage.envoy() as envoy:
        await envoy.ask()
        telling = asyncio.create_task(envoy.told())
        await asyncio.sleep(0.1)
        assert not telling.done()
        async with stage.control.there():
            assert await telling == ["a/inbound", "b/inbound"]
            await asyncio.sleep(0.1)
            assert stage.kept.kept == {}
            stage.members = [(A, True)]
            await stage.keeps(A)
