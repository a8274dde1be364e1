"""What sends calls for tasks: meshlib's sender over gRPC's channels, and what a flow acts with."""

import asyncio
import weakref
from typing import Any, cast

import grpc

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.request import Failed
from meshlib.dataplane import exchange, network
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.telemetry.outbound import introduced
from meshlib_grpc.asynchronous import AsyncStreamed, Connections
from meshlib_grpc.bodies import AsyncMessages, Message
from meshlib_grpc.hedged import AsyncHedged
from meshlib_grpc.options import Options
from meshlib_grpc.pool import LOOKS
from meshlib_grpc.sender import refuse_network
from meshlib_grpc.unary import Unary, Wishes


class AsyncSender(exchange.AsyncSender):
    """meshlib's sender, over gRPC's channels. One event loop at a time."""

    def __init__(self, mesh: Mesh | exchange.FindMesh, options: Options) -> None:
        super().__init__(mesh)
        self._options = options
        self.calls: weakref.WeakSet[Any] = weakref.WeakSet()
        """Those that may go on (`aio_call`)."""
        self._closed = False

    def refuse(self) -> None:
        """UsageError: the channel is closed."""
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")  # gRPC's words

    def channels(self) -> Connections:
        """Those of the running loop."""
        return self.connections()  # type: ignore[return-value]  # as made below

    def _connect(self) -> network.AsyncConnections:
        mesh = self.mesh
        refuse_network(mesh.network)
        most_idle = mesh.bootstrap.idle_connections
        made = Connections(mesh.clock, lambda: mesh.view, self._contexts, self._options, most_idle)
        mesh.told_to(made)
        return made

    async def aclose(self, grace: float | None = None) -> None:
        """Ends the calls, after `grace` seconds, and the connections; the mesh stays."""
        self._closed = True
        going = {asyncio.ensure_future(call.ended()): call for call in self.calls if not call.done()}
        if going and grace:
            await asyncio.wait(going, timeout=grace)
        for ending, call in going.items():
            if not ending.done():
                call.cancel()
        if going:
            await asyncio.wait(going)
        made = cast(Connections | None, self._connections)
        await super().aclose()
        if made is not None:
            await made.closed()


class AsyncHands:
    """What a flow acts with."""

    __slots__ = ("_body", "_request", "_sender", "_wishes", "last", "wanted")

    def __init__(
        self, sender: AsyncSender, request: exchange.Request, body: Message | AsyncMessages, wishes: Wishes
    ) -> None:
        self._sender = sender
        self._request = request
        self._body = body
        self._wishes = wishes
        self.last: Unary | AsyncStreamed | None = None
        self.wanted: asyncio.Event | None = None
        """Whether the first metadata is all that is waited for; None: it is a call with one request and one
        response.
        """

    async def send(self, attempt: Attempt) -> Unary | AsyncStreamed | Failed:
        """One try."""
        made = await self._make(attempt)
        if not isinstance(made, Failed):
            self.last = made
        return made

    async def _make(self, attempt: Attempt) -> Unary | AsyncStreamed | Failed:
        sender, body = self._sender, self._body
        if attempt.tls is not None:
            attempt = introduced(attempt, attempt.tls, sender.mesh.telemetry)
        if self.wanted is None:
            assert isinstance(body, Message)  # noqa: S101 - of the one request
            return await sender.channels().unary(attempt, body.message, self._wishes)
        for looks in range(LOOKS, 0, -1):
            begun = await sender.channels().begin(attempt, body, self._wishes)
            if isinstance(begun, Failed):
                return begun
            settled = await begun.settle(self.wanted)
            if not isinstance(settled, Failed):
                break
            begun.close()
            if looks == 1 or not begun.again(settled):
                break
        return settled

    def _came(self, response: Unary | AsyncStreamed) -> None:
        self.last = response

    def several(self) -> AsyncHedged:
        """Several at a time."""
        return AsyncHedged(self._make, self._came)

    def mirror(self, mirror: Mirror) -> None:
        """A copy, in the background."""
        self._sender.mirror(mirror, self._request)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await (self._sender.mesh.network or network.SOCKETS).asleep(seconds)
