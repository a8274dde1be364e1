"""What sends calls for tasks: meshlib's sender over gRPC's channels, and what a flow acts with."""

import asyncio
import weakref
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import grpc

from meshlib.core.actions import Attempt, Flow, Mirror
from meshlib.core.request import Failed
from meshlib.dataplane import exchange, network
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.telemetry.outbound import introduced
from meshlib_grpc.asynchronous import AsyncStreamed, Connections, Started
from meshlib_grpc.bodies import AsyncMessages, Message
from meshlib_grpc.channels import Wanted
from meshlib_grpc.hands import resumed
from meshlib_grpc.hedged import AsyncHedged
from meshlib_grpc.options import Options
from meshlib_grpc.pool import LOOKS
from meshlib_grpc.sender import refuse_network
from meshlib_grpc.unary import Unary, Wishes

T = TypeVar("T")


class AsyncSender(exchange.AsyncSender):
    """meshlib's sender, over gRPC's channels. One event loop at a time."""

    def __init__(self, mesh: Mesh | exchange.FindMesh, options: Options) -> None:
        super().__init__(mesh)
        self._options = options
        self.streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self.calls: set[Any] = set()
        """Those that go on, and streams that may (`aio_call`)."""
        self._closed = False

    def refuse(self) -> None:
        """UsageError: the channel is closed."""
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")  # gRPC's words

    def begin(self, request: exchange.Request, hands: "AsyncHands") -> Flow | None:
        """Begins the first try of a call with one request and one response at once, and gives what follows;
        None: something has to be waited for before it is known what to do.
        """
        mesh = self.mesh
        view = mesh.known(request.name)
        if view is None or self._connections is None or self._loop is not asyncio.get_running_loop():
            return None
        return hands.begin(request.flow(mesh, view))

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
        calls = [call for call in (*self.calls, *self.streams) if not call.done()]
        going = {asyncio.ensure_future(call.ended()): call for call in calls}
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
    """What a flow acts with.

    A call with one request and one response may be made in the task that awaits it (`inline`). Who cancels
    the call then must not cancel that task, but what it waits for.
    """

    __slots__ = ("_body", "_first", "_request", "_sender", "_waiting", "_wishes", "inline", "last", "wanted")

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
        self.inline = False
        self._first: Started | Failed | Wanted | BaseException | None = None
        """The first try, if it began before somebody waited."""
        self._waiting: asyncio.Future[Any] | None = None
        """What is waited for inline, after the first try."""

    def begin(self, flow: Flow) -> Flow:
        """Begins the first try, if nothing else is to be done before it; and what follows. Does not wait."""
        action = flow.send(None)
        if isinstance(action, Attempt):
            body = self._body
            assert isinstance(body, Message)  # noqa: S101 - of the one request
            try:
                self._first = self._sender.channels().start(
                    self._introduced(action), body.message, self._wishes
                )
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                self._first = error
        return resumed(flow, action)

    async def send(self, attempt: Attempt) -> Unary | AsyncStreamed | Failed:
        """One try."""
        made: Unary | AsyncStreamed | Failed
        first = self._first
        if isinstance(first, Started):
            try:
                made = await self._sender.channels().outcome(first)
            finally:
                self._first = None
        elif self.inline:
            made = await self._inline(self._make(attempt))
        else:
            made = await self._make(attempt)
        if not isinstance(made, Failed):
            self.last = made
        return made

    async def _inline(self, work: Awaitable[T]) -> T:
        waiting: asyncio.Future[T] = asyncio.ensure_future(work)
        self._waiting = waiting
        try:
            return await waiting
        finally:
            self._waiting = None

    @property
    def begun(self) -> bool:
        """Whether the first try is on its way."""
        return isinstance(self._first, Started)

    def cancel(self) -> None:
        """Ends what is waited for inline."""
        if isinstance(self._first, Started):
            self._first.call.cancel()
        if self._waiting is not None:
            self._waiting.cancel()

    def _introduced(self, attempt: Attempt) -> Attempt:
        if attempt.tls is None:
            return attempt
        return introduced(attempt, attempt.tls, self._sender.mesh.telemetry)

    async def _make(self, attempt: Attempt) -> Unary | AsyncStreamed | Failed:
        sender, body = self._sender, self._body
        attempt = self._introduced(attempt)
        if self.wanted is None:
            first, self._first = self._first, None
            if isinstance(first, Failed):
                return first
            if isinstance(first, BaseException):
                raise first
            assert isinstance(body, Message)  # noqa: S101 - of the one request
            if isinstance(first, Wanted):
                return await sender.channels().unary(attempt, body.message, self._wishes, wanted=first)
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
        wait = (self._sender.mesh.network or network.SOCKETS).asleep(seconds)
        await (self._inline(wait) if self.inline else wait)
