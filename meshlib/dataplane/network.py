"""What sends attempts, and waits between them: sockets, unless a mesh brings something else.

`Network` makes the connections of one client; a mesh without a network of its own has `SOCKETS`.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meshlib.core.actions import Attempt, Await, Begin, Ended, Mirror
from meshlib.core.request import Failed, ResponseHead
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.dns import LookUp
from meshlib.dataplane.http import blocking
from meshlib.dataplane.http.cut import Cut
from meshlib.dataplane.http.limits import NO_TIMEOUTS, OwnTimeouts
from meshlib.dataplane.http.pools import MOST_IDLE
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.http.secure import MakeContexts

if TYPE_CHECKING:
    from meshlib.dataplane.http import asynchronous
    from meshlib.dataplane.mesh import Mesh


class Received(Protocol):
    """A response whose head is here."""

    head: ResponseHead
    version: bytes
    reason: bytes
    whole: bytes | None
    """The body, if all of it came with the head: the exchange has ended then. None: it is to be iterated."""

    def close(self) -> None:
        """Ends the exchange."""


class Response(Received, Protocol):
    """One for threads; it is iterated once."""

    def __iter__(self) -> Iterator[bytes]:
        """The body. Broken, TooSlow."""
        ...

    def ready(self) -> bytes | Need:
        """The next part of the body, if it has come. Broken."""
        ...


class AsyncResponse(Received, Protocol):
    """One for tasks."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body. Broken, TooSlow."""
        ...

    def ready(self) -> bytes | Need:
        """The next part of the body, if it has come. Broken."""
        ...

    def more(self) -> Awaitable[None]:
        """Waits until more has come for `ready`; a wait may be cancelled and begun again. Broken, TooSlow."""
        ...


class Connections(Protocol):
    """Those of a client, for threads."""

    def send(
        self,
        attempt: Attempt,
        body: bytes | Iterable[bytes],
        own: OwnTimeouts = NO_TIMEOUTS,
        cut: Cut | None = None,
    ) -> Response | Failed:
        """One try; another thread may give it up with `cut`. TooSlow: one of the application's own limits
        passed; Unsendable; errors of `body`.
        """
        ...

    def close(self) -> None:
        """Closes what is idle now, and the rest when its exchange ends."""

    def abandon(self) -> None:
        """In the child of a fork: lets go without a word to the peers."""


class Several(Protocol):
    """Makes several tries of one request at a time, for a thread."""

    def do(self, step: Begin | Await) -> tuple[Response | None, Ended | None]:
        """What a flow says; gives the response that came, if one did, and what became of the try, if one has
        ended. TooSlow; Unsendable; errors of the body.
        """
        ...

    def close(self) -> None:
        """Gives up what is in flight."""


class AsyncConnections(Protocol):
    """Those of a client, for the tasks of one event loop."""

    def send(
        self, attempt: Attempt, body: bytes | AsyncGenerator[bytes, None], own: OwnTimeouts = NO_TIMEOUTS
    ) -> Awaitable[AsyncResponse | Failed]:
        """As of `Connections`."""
        ...

    def close(self) -> None:
        """As of `Connections`."""


Clock = Callable[[], float]


def _for_tasks(
    clock: Clock, contexts: MakeContexts, longest_idle: float, most_idle: int = MOST_IDLE
) -> "asynchronous.Connections":
    # With asyncio: an application without tasks needs neither.
    from meshlib.dataplane.http import asynchronous

    return asynchronous.Connections(clock, contexts, longest_idle, most_idle)


async def _asleep(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


class Network(NamedTuple):
    """Makers of connections; each is given the clock, the workload's TLS contexts, and the seconds for which
    a connection is kept at most that nobody uses.
    """

    connections: Callable[[Clock, MakeContexts, float], Connections] = blocking.Connections
    aconnections: Callable[[Clock, MakeContexts, float], AsyncConnections] = _for_tasks
    sleep: Callable[[float], None] = time.sleep
    asleep: Callable[[float], Awaitable[None]] = _asleep
    look_up: LookUp | None = None
    """Which addresses a host has, for clusters of DNS names; None: they go to the network as they are.
    A mesh without a network of its own asks the system.
    """
    mirror: Callable[[Mirror, RequestBody], None] | None = None
    """Takes copies of requests; None: they are sent over the connections, in the background."""
    several: Callable[[Connections, RequestBody, OwnTimeouts], Several] | None = None
    """Makes hedged tries for a thread, over its connections; None: other threads make them."""


SOCKETS = Network()


def connections_of(mesh: "Mesh", contexts: MakeContexts, longest_idle: float) -> Connections:
    """Connections for threads. Sockets are told of what changes in the mesh."""
    if mesh.network is not None:
        return mesh.network.connections(mesh.clock, contexts, longest_idle)
    most_idle = mesh.bootstrap.idle_connections
    made = blocking.Connections(mesh.clock, contexts, longest_idle, most_idle)
    mesh.told_to(made)
    return made


def aconnections_of(mesh: "Mesh", contexts: MakeContexts, longest_idle: float) -> AsyncConnections:
    """The same for tasks of the running loop."""
    if mesh.network is not None:
        return mesh.network.aconnections(mesh.clock, contexts, longest_idle)
    made = _for_tasks(mesh.clock, contexts, longest_idle, mesh.bootstrap.idle_connections)
    mesh.told_to(made)
    return made
