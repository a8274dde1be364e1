"""What is pushed, when, and to whom.

- A snapshot is compiled when a stream needs it, once for all streams of equal clients that ask for
  the same (a listener that one of them asked for before costs nothing), and again after each `publish`.
- `publish` compiles nothing itself: it marks every stream. Each stream compares in its own task and
  sends only what differs, so a client that nothing concerns is sent nothing, and a slow client
  delays nobody: it has one mark and not a queue, and gets the newest snapshot when it is ready.
- What clients of flavours meshlib and grpc are sent follows from the listeners that they ask for, and
  a reconnecting one may ask for its clusters first: it is sent nothing until it asked for listeners,
  else it would be told that its clusters are gone.
- A service that has just started does not know yet who serves: until `settle`, clients that come
  back with what an earlier life sent them keep it, and are sent only what they have not.
- A compiler that fails for one client leaves that client with what it has; others go on.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from meshlib.control.serve.closures import BY_NAME, Closures, Compiler
from meshlib.control.serve.limits import BIND_SECONDS, HOLD_SECONDS
from meshlib.printable import printable
from meshlib.xds.kinds import Kind
from meshlib.xds.node import Client
from meshlib.xds.server_stream import Hold, ServerStream
from meshlib.xds.snapshot import Resource, Snapshot

if TYPE_CHECKING:  # which loads gRPC; whoever compiles without serving does not need it
    from meshlib.control.serve.callers import Caller

log = logging.getLogger(__name__)

_MAX_ID = 256
MAX_SPARE = 100
"""How many snapshots that no stream uses are kept between two configurations."""


def _late(hold: Hold | None) -> tuple[int, str]:
    """How it is told that a client lets something wait too long: what nobody needs is nobody's trouble."""
    if hold is Hold.CANCEL:
        return logging.INFO, "%s did not cancel what is gone; it is told so now"
    return logging.WARNING, "%s did not ask for its clusters' endpoints; it is sent its routes now"


class Nothing:
    """The compiler before the first one is published: there is nothing."""

    version = ""

    def resources(self, client: Client, listeners: frozenset[str]) -> Iterable[Resource]:
        """No resources."""
        return ()


class Connection:
    """One open stream, as the hub and the status see it."""

    def __init__(self, number: int, delta: bool, caller: "Caller", now: float, seen: int) -> None:
        self.number = number
        self.caller = caller
        self.stream = ServerStream(delta)
        self.since = now
        self.behind_since: float | None = None
        """When the first publish came that this client has not answered; None: it is up to date."""
        self.seen = seen
        """How many configurations had been published when it was last up to date."""
        self.dirty = asyncio.Event()

    @property
    def peer(self) -> str:
        """`host:port` of the other end."""
        return self.caller.address

    @property
    def name(self) -> str:
        """Who it says it is, and where."""
        client = self.stream.client
        return f"{printable(client.id[:_MAX_ID])} at {self.peer}" if client and client.id else self.peer

    @property
    def listeners(self) -> frozenset[str]:
        """The listener names that the closure starts from."""
        client = self.stream.client
        return self.stream.names(Kind.LISTENER) if client and client.flavour in BY_NAME else frozenset()

    @property
    def introduced(self) -> bool:
        """Whether it is known what this client is to be sent."""
        client = self.stream.client
        return client is not None and (
            client.flavour not in BY_NAME or Kind.LISTENER in self.stream.subscriptions
        )

    @property
    def waiting(self) -> bool:
        """Whether something was sent that is not answered."""
        return self.stream.holding or any(s.pending for s in self.stream.subscriptions.values())


class Hub:
    """The current compiler, the open streams, and the snapshots that they share. One event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, settled: bool = True) -> None:
        """`clock` gives seconds; `settled=False`: `settle` will be called."""
        self._clock = clock
        self._settled = settled
        self._compiler: Compiler = Nothing()
        self._published = False
        self._closures = Closures(self._compiler)
        self._snapshots: dict[tuple[Client, frozenset[str]], Snapshot | None] = {}
        self._connections: dict[int, Connection] = {}
        self._numbers = itertools.count(1)
        self._versions = 0

    @property
    def version(self) -> str:
        """Of the configuration in force; empty before the first."""
        return self._compiler.version

    @property
    def published(self) -> int:
        """How many configurations were published so far."""
        return self._versions

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The open streams, oldest first."""
        return tuple(self._connections.values())

    def publish(self, compiler: Compiler) -> None:
        """Puts a configuration in force; called on the event loop. The caller batches changes."""
        self._compiler = compiler
        self._published = True
        self._versions += 1
        self._closures = Closures(compiler)
        self._snapshots.clear()
        now = self._clock()
        for connection in self._connections.values():
            if connection.behind_since is None:
                connection.behind_since = now
            connection.dirty.set()

    def settle(self) -> None:
        """Who serves is known now: clients that came back are brought up to date."""
        if not self._settled:
            self._settled = True
            for connection in self._connections.values():
                connection.dirty.set()

    def opened(self, delta: bool, caller: "Caller") -> Connection:
        """A stream began."""
        connection = Connection(next(self._numbers), delta, caller, self._clock(), self._versions)
        self._connections[connection.number] = connection
        return connection

    def closed(self, connection: Connection) -> None:
        """A stream ended."""
        del self._connections[connection.number]

    def heard(self, connection: Connection, request: Any) -> None:
        """A request came; the server stream's ProtocolError goes to the caller."""
        if connection.stream.received(request):
            connection.dirty.set()

    async def due(self, connection: Connection) -> list[Any]:
        """Waits until there may be something to send, and gives it; possibly nothing after all."""
        stream = connection.stream
        hurry, seconds = False, BIND_SECONDS if stream.unbound else None
        try:
            async with asyncio.timeout(HOLD_SECONDS if stream.holding else seconds):
                await connection.dirty.wait()
        except TimeoutError:
            hurry = stream.holding
            if hurry:
                log.log(*_late(stream.hold), connection.name)
            else:
                stream.try_unbound()
        connection.dirty.clear()
        client = connection.stream.client
        if client is None or not connection.introduced or not self._published:
            return []
        snapshot = self._snapshot(client, connection)
        if snapshot is None:
            return []
        keep = connection.stream.returning and not self._settled
        responses = connection.stream.publish(snapshot, hurry, keep)
        if not responses and not connection.waiting:
            connection.behind_since = None
            connection.seen = self._versions
        return responses

    def _snapshot(self, client: Client, connection: Connection) -> Snapshot | None:
        key = (client, connection.listeners)
        if key not in self._snapshots:
            if len(self._snapshots) > MAX_SPARE + len(self._connections):
                used = {(c.stream.client, c.listeners) for c in self._connections.values()}
                self._snapshots = {k: s for k, s in self._snapshots.items() if k in used}
                self._closures.keep({client for client, _ in used if client is not None})
            self._snapshots[key] = self._compiled(*key)
        return self._snapshots[key]

    def _compiled(self, client: Client, listeners: frozenset[str]) -> Snapshot | None:
        try:
            return self._closures.snapshot(client, listeners)
        except Exception:
            version = self._compiler.version
            log.exception("configuration %s can't be compiled for %s; it keeps what it has", version, client)
            return None
