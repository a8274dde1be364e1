"""The control service: edits and registrations become configuration; a failure changes nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from meshlib.control.built import Built
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.registration import Registration
from meshlib.control.service import ControlService
from meshlib.control.sources.files import FileSource
from meshlib.control.sources.source import Loaded
from meshlib.errors import ConfigError
from meshlib.xds import pb
from meshlib.xds.client_stream import ClientStream, Update
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client, Flavour, to_node
from meshlib.xds.snapshot import Resource


class Edited:
    """A source whose documents are one word."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.saved: asyncio.Queue[str] = asyncio.Queue()

    def load(self) -> Loaded:
        return Loaded((self.word,))  # type: ignore[arg-type]

    async def watch(self) -> AsyncIterator[None]:
        while True:
            self.word = await self.saved.get()
            yield


@dataclass
class Word:
    version: str
    text: str

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        for name in listeners:
            yield Resource.of(Kind.LISTENER, name, pb.Listener(name=name, stat_prefix=self.text))


def error(word: str) -> Problem:
    return Problem(Severity.ERROR, "MESH8", word)


def build(loaded: Loaded, registrations: tuple[Registration, ...], version: str, _: bytes) -> Built:
    word = str(loaded.documents[0])
    if word == "broken":
        raise ValueError("no such word")
    who = ",".join(r.address for r in registrations)
    return Built(
        Word(version, f"{word} {who}".strip()), (error(word), Problem(Severity.WARNING, "MESH9", "w"))
    )


class Peer:
    """A delta client; `held` is what it came back with."""

    def __init__(self, channel: grpc.aio.Channel, held: dict[str, str] | None = None) -> None:
        self.state = ClientStream(to_node(Client(Flavour.MESHLIB, id="peer")), True)
        self.state.hold(Kind.LISTENER, held or {})
        self.state.subscribe(Kind.LISTENER, ["a:80", *(held or {})])
        self.call = channel.stream_stream(
            pb.DELTA_ADS,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=pb.DeltaDiscoveryResponse.FromString,
        )()

    async def next(self) -> Update:
        for message in self.state.to_send():
            await self.call.write(message)
        update = self.state.received(await asyncio.wait_for(self.call.read(), 30))
        self.state.ack(update)
        for message in self.state.to_send():
            await self.call.write(message)
        return update

    async def words(self) -> dict[str, str]:
        return {name: r.message().stat_prefix for name, r in (await self.next()).resources.items()}


async def test_edits_and_registrations_reach_clients_at_once() -> None:
    source = Edited("one")
    async with (
        ControlService(
            source, build, "127.0.0.1:0", allow_plaintext=True, grace=0.01, wall=lambda: 12.5
        ) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        peer = Peer(channel)
        assert await peer.words() == {"a:80": "one"}
        took = []
        for number, word in enumerate(("quick", "at once", "soon", "early", "two"), 2):
            began = time.monotonic()
            source.saved.put_nowait(word)
            update = await peer.next()
            took.append(time.monotonic() - began)
            assert (update.version, update.resources["a:80"].message().stat_prefix) == (
                f"12500.{number}",
                word,
            )
        assert min(took) < 0.15  # a busy machine is late sometimes; who waits is late every time

        joining = channel.stream_stream(pb.HDS, request_serializer=lambda m: m.SerializeToString())()
        message = pb.HealthCheckRequestOrEndpointHealthResponse()
        message.health_check_request.node.id = "r"
        message.health_check_request.node.metadata.update({"PORTS": {"http": 80}})
        await joining.write(message)
        message = pb.HealthCheckRequestOrEndpointHealthResponse()
        report = message.endpoint_health_response.endpoints_health.add(health_status="HEALTHY")
        report.endpoint.address.socket_address.address = "10.0.0.1"
        await joining.write(message)
        assert await peer.words() == {"a:80": "two 10.0.0.1"}
        joining.cancel()
        assert await peer.words() == {"a:80": "two"}


async def test_what_cannot_be_built_changes_nothing_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    source = Edited("one")
    async with (
        ControlService(source, build, "127.0.0.1:0", allow_plaintext=True, wall=lambda: 1) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        peer = Peer(channel)
        assert await peer.words() == {"a:80": "one"}
        source.saved.put_nowait("broken")
        async with asyncio.timeout(30):
            while len(service.status()["errors"]) == 1:
                await asyncio.sleep(0.001)
        found: dict[str, Any] = service.status()
        assert found["version"] == "1000.1"
        assert found["errors"] == [
            str(error("one")),
            "configuration 1000.2 can't be built: ValueError('no such word')",
        ]
        assert found["warnings"] == ["Warning [MESH9] w"]
        source.saved.put_nowait("three")
        assert await peer.words() == {"a:80": "three"}
        assert service.status()["errors"] == [str(error("three"))]
    assert "1000.1 stays in force" in caplog.text


async def test_who_comes_back_keeps_what_it_has_until_the_service_is_settled() -> None:
    began = time.monotonic()
    async with (
        ControlService(Edited("new"), build, "127.0.0.1:0", allow_plaintext=True, settle=0.3) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        peer = Peer(channel, held={"b:80": "older"})
        assert await peer.words() == {"a:80": "new"}
        assert await peer.words() == {"b:80": "new"}
        assert 0.3 <= time.monotonic() - began < 20


async def test_a_port_that_is_taken_leaves_nothing_running() -> None:
    async with ControlService(Edited("one"), build, "127.0.0.1:0", allow_plaintext=True) as service:
        with pytest.raises(ConfigError, match="already in use"):
            async with ControlService(Edited("one"), build, service.address, allow_plaintext=True):
                pass
    assert len(asyncio.all_tasks()) == 1


async def test_a_saved_file_reaches_a_client_within_a_fraction_of_a_second(tmp_path: Path) -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {ports: [{port: 80}]}\n"
    (tmp_path / "a.yaml").write_text(text % "one")

    def names(loaded: Loaded, _: tuple[Registration, ...], version: str, __: bytes) -> Built:
        return Built(Word(version, " ".join(document.name for document in loaded.documents)))

    async with (
        ControlService(FileSource(tmp_path), names, "127.0.0.1:0", allow_plaintext=True) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        peer = Peer(channel)
        assert await peer.words() == {"a:80": "one"}
        took = []
        for number, word in enumerate(("two", "three", "four"), 2):
            await asyncio.sleep(0.1)
            began = time.monotonic()
            (tmp_path / "a.yaml").write_text(text % word)
            assert await peer.words() == {"a:80": word}
            took.append(time.monotonic() - began)
            assert service.status()["version"].endswith(f".{number}")
        assert min(took) < 0.4


async def test_what_could_not_be_read_is_read_again_and_told_until_then() -> None:
    class Failing(Edited):
        broken = 0

        def load(self) -> Loaded:
            if self.broken > 0:
                self.broken -= 1
                raise OSError("the disk is away")
            return super().load()

    source = Failing("one")
    async with ControlService(
        source, build, "127.0.0.1:0", allow_plaintext=True, wall=lambda: 12.5
    ) as service:
        source.broken = 1
        source.saved.put_nowait("two")
        async with asyncio.timeout(30):
            while not any("the disk is away" in text for text in service.status()["errors"]):
                await asyncio.sleep(0.005)
            while service.hub.version != "12500.2":
                await asyncio.sleep(0.005)
        assert not any("the disk is away" in text for text in service.status()["errors"])
