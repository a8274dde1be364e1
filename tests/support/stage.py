"""A control server on a thread, whose configuration is replaced case after case, and what refuses it.

Every client is compiled for as if it were who the case says. An Envoy's listeners take any free
port, so that none is taken already.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from meshlib.control.compile.compiler import GraphCompiler
from meshlib.control.serve.push import Connection, Hub
from meshlib.control.serve.server import ControlServer
from meshlib.xds.kinds import BY_TYPE_URL, Kind
from meshlib.xds.node import Client, Flavour
from meshlib.xds.snapshot import Resource, Snapshot

BY_NAME = (Flavour.MESHLIB, Flavour.GRPC)
CALM_SECONDS = 0.05
Change = Callable[[Resource], Resource]


@dataclass(frozen=True)
class Refusal:
    """A NACK."""

    client: str
    kind: Kind
    text: str
    version: str = ""
    """Of the configuration that is refused; empty: not known."""


class Recording(Hub):
    """A hub that keeps each NACK."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals: list[Refusal] = []
        self.heard_at = 0.0
        self._sent: dict[tuple[int, str], str] = {}

    async def due(self, connection: Connection) -> list[Any]:
        responses = await super().due(connection)
        self._sent |= {(connection.number, response.nonce): self.version for response in responses}
        return responses

    def heard(self, connection: Connection, request: Any) -> None:
        super().heard(connection, request)
        self.heard_at = time.monotonic()
        if request.HasField("error_detail"):
            client = connection.stream.client
            self.refusals.append(
                Refusal(
                    client.id if client else "",
                    BY_TYPE_URL[request.type_url],
                    request.error_detail.message,
                    self._sent[connection.number, request.response_nonce],
                )
            )


class As:
    """The compiler of a case: everybody is `who`; `change` may spoil what was compiled."""

    def __init__(self, compiler: GraphCompiler, who: Client, change: Change = lambda found: found) -> None:
        self.version = compiler.version
        self._compiler = compiler
        self._who = who
        self._change = change

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        """What `who` would be sent in the flavour of `client`."""
        asking = replace(self._who, flavour=client.flavour, bind="127.0.0.1")
        for resource in self._compiler.resources(asking, listeners):
            yield self._change(self._on_any_port(resource))

    @staticmethod
    def _on_any_port(resource: Resource) -> Resource:
        if resource.kind is Kind.LISTENER:
            message = resource.message()
            if message.HasField("address"):
                message.address.socket_address.port_value = 0
                return Resource.of(Kind.LISTENER, resource.name, message)
        return resource


class Stage:
    """`with Stage() as stage`: a control server at `stage.address`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="stage")
        self._started = threading.Event()
        self._end = asyncio.Event()
        self._hub = Recording()
        self._compiler: As
        self._told: set[str] = set()
        self.address = ""

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = ControlServer(self._hub, "127.0.0.1:0", allow_plaintext=True)
        await server.start()
        self.address = server.address
        self._started.set()
        await self._end.wait()
        await server.stop()

    def __enter__(self) -> "Stage":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def publish(self, compiler: As) -> None:
        """Puts a case in force."""
        self._compiler = compiler
        self._loop.call_soon_threadsafe(self._hub.publish, compiler)

    def refusals(self) -> list[Refusal]:
        """Every NACK of what is in force."""
        found = [one for one in self._hub.refusals if one.version == self._compiler.version]
        self._told |= {one.version for one in found}
        return found

    def late(self) -> list[Refusal]:
        """NACKs of versions of which `refusals` gave none: they came when it had been asked."""
        return [one for one in self._hub.refusals if one.version not in self._told]

    def refusing(self) -> list[str]:
        """The clients whose last answer of some kind was a NACK."""
        return [
            one.stream.client.id
            for one in self._hub.connections
            if one.stream.client and any(of.refused for of in one.stream.subscriptions.values())
        ]

    def wait_for_answers(self, clients: Iterable[str], targets: Iterable[str], seconds: float = 20) -> None:
        """Waits until each of these clients (node ids) has answered all that it is to be sent."""
        until = time.monotonic() + seconds
        while why := self._too_early(list(clients), set(targets)):
            if time.monotonic() > until:
                raise AssertionError(f"after {seconds} s: {why}")
            time.sleep(0.01)

    def _too_early(self, clients: list[str], targets: set[str]) -> str:
        """Asked on the server's own thread: who compiles is one."""

        async def ask() -> str:
            return next(self._unanswered(clients, targets), "")

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(60)

    def _unanswered(self, clients: list[str], targets: set[str]) -> Iterator[str]:
        """Why it is too early, if it is."""
        if self._hub.version != self._compiler.version:
            yield "it is not in force"
        if time.monotonic() - self._hub.heard_at < CALM_SECONDS:
            yield "clients are still talking"
        for client in clients:
            mine = [c for c in self._hub.connections if c.stream.client and c.stream.client.id == client]
            if not mine:
                yield f"{client} is not there"
            asked = {name for one in mine for name in one.stream.names(Kind.LISTENER)}
            flavours = {one.stream.client.flavour for one in mine if one.stream.client}
            if flavours & set(BY_NAME) and not targets <= asked:
                yield f"{client} did not ask for {sorted(targets - asked)}"
            for one in mine:
                yield from self._behind(client, one)

    def _behind(self, client: str, connection: Connection) -> Iterator[str]:
        stream = connection.stream
        if stream.client is None or any(of.refused for of in stream.subscriptions.values()):
            return  # who refused something asks for no more
        if connection.behind_since is not None or connection.dirty.is_set() or connection.waiting:
            yield f"{client} did not answer yet"
        snapshot = Snapshot.of("", self._compiler.resources(stream.client, connection.listeners))
        if missing := snapshot.names(Kind.ROUTES) - stream.names(Kind.ROUTES):
            yield f"{client} did not ask for routes {sorted(missing)}"
        clusters = stream.names(Kind.CLUSTER) or snapshot.names(Kind.CLUSTER)
        if missing := (clusters & snapshot.names(Kind.ENDPOINTS)) - stream.names(Kind.ENDPOINTS):
            yield f"{client} did not ask for endpoints {sorted(missing)}"
