"""The control stream of a node's Envoy goes by way of the agent, which knows so what was last good, and
stands in with it while the control service can't be reached.

    Envoy ◄──ADS──► here ◄──ADS, by the same stream──► control service
                      │
                  last good

Rules:

- What is said is passed on as it is, both ways; whoever speaks is the node, by its certificate.
- If there is a connection to the control service, it decides: what it refuses, nobody else gives. Without one
  an Envoy that comes is answered from what was last good, for workloads that are enrolled now and were the
  same then; others stay closed.
- As soon as there is a connection again, Envoy comes anew, says what it has, and is sent what differs.
- What was last good is known a second after it came, and written then, unless that costs more than a fifth of
  the time; and at an orderly end.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from meshlib.agent.answering import answers
from meshlib.agent.last_good import Heard, LastGood, Store, together
from meshlib.agent.workload import Workload
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.server_stream import ProtocolError, ServerStream
from meshlib.xds.snapshot import Resource, Snapshot

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds for a connection to the control service, before the last good configuration is of use."""
LOOK_SECONDS = 1.0
SHARE = 4
"""How many times as long as a write took there is none after it."""
_OPTIONS = (
    # A whole mesh in a message, from the control service to its Envoy.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
_CHANNEL = (
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Members: TypeAlias = Callable[[], "Sequence[tuple[Workload, bool]] | None"]
"""The workloads that are there, and whether the control service knows each and its listeners are there; None:
the node ends, and nothing changes any more.
"""


class Relay:
    """Serves at a socket; `async with` starts and stops it."""

    def __init__(self, socket: Path, control: Path, members: Members, store: Store | None) -> None:
        """`control`: the socket that leads to the control service; `store` None: in memory alone."""
        self._socket, self._control, self._members = socket, control, members
        self._last_good = LastGood(store)
        self._heard: Heard | None = None
        """On the newest stream."""
        self._unsaved: dict[Workload, tuple[Resource, ...]] = {}
        self._begun: Heard | None = None
        self._count = 0
        self._kept: frozenset[Workload] = frozenset()
        self._shown: tuple[Workload, ...] | None = None
        self._snapshot = Snapshot("last good")
        """Of what is shown; None: it may be something else by now."""
        self._stack = contextlib.AsyncExitStack()
        self._channel: Any = None

    async def __aenter__(self) -> "Relay":
        self._channel = grpc.aio.insecure_channel(f"unix:{self._control}", options=_CHANNEL)
        self._stack.push_async_callback(self._channel.close)
        server = grpc.aio.server(options=_OPTIONS)
        service, _, method = pb.DELTA_ADS.removeprefix("/").partition("/")
        methods = {method: grpc.stream_stream_rpc_method_handler(self._stream)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        server.add_insecure_port(f"unix:{self._socket}")
        await server.start()
        self._stack.push_async_callback(server.stop, 0)
        self._socket.chmod(0o600)
        keeping = asyncio.create_task(self._keep())
        self._stack.push_async_callback(asyncio.to_thread, self._save)
        self._stack.push_async_callback(_ended, keeping)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # Streams

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        if await self._reached():
            async for said in self._passed_on(requests, context):
                yield said
        else:
            async for said in self._stood_in(requests, context):
                yield said

    async def _reached(self) -> bool:
        """Waits for a connection to the control service, or until there is something to stand in with."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._channel.channel_ready()
                    return True
            if self._now().resources:
                return False

    async def _passed_on(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        heard = self._heard = Heard(self._known(self._heard))

        async def asking() -> AsyncIterator[bytes]:
            async for said in requests:
                heard.asked(pb.DeltaDiscoveryRequest.FromString(said))
                yield said

        call = self._channel.stream_stream(pb.DELTA_ADS)(asking())
        try:
            async for said in call:
                heard.said(pb.DeltaDiscoveryResponse.FromString(said))
                yield said
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        finally:
            call.cancel()

    async def _stood_in(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        log.warning("the control service can't be reached; Envoy has the last good configuration")
        decoded = (pb.DeltaDiscoveryRequest.FromString(said) async for said in requests)
        back = asyncio.ensure_future(self._channel.channel_ready())
        try:
            async for response in answers(ServerStream(delta=True), decoded, self._now, back):
                yield response.SerializeToString()
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            back.cancel()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the control service can be reached again")

    def _now(self) -> Snapshot:
        """What is known of the workloads that are there now; the same object, if it is the same."""
        members = self._members()
        if members is None:
            return self._snapshot
        shown = tuple(workload for workload, _ in members if self._last_good.of(workload))
        if shown != self._shown:
            found = (resource for one in shown for resource in self._last_good.of(one))
            self._shown, self._snapshot = shown, Snapshot.of(self._snapshot.version, together(found))
        return self._snapshot

    def _known(self, before: Heard | None) -> Callable[[Kind, str, str], Resource | None]:
        """What an Envoy may have that comes again."""
        heard, stood_in = {} if before is None else before.resources, self._snapshot

        def known(kind: Kind, name: str, version: str) -> Resource | None:
            both = heard.get((kind, name)), stood_in.get(kind, name)
            return next((one for one in both if one is not None and one.version == version), None)

        return known

    # What was last good

    async def _keep(self) -> None:
        loop, due = asyncio.get_running_loop(), 0.0
        while True:
            began = loop.time()
            try:
                self._look()
                if began >= due and self._unsaved:
                    await asyncio.to_thread(self._save)
                    due = loop.time() + SHARE * (loop.time() - began)
            except Exception:
                # Nobody else would hear of it.
                log.exception("the last good configuration is not kept; it is tried again")
            await asyncio.sleep(LOOK_SECONDS)

    def _save(self) -> None:
        unsaved, self._unsaved = self._unsaved, {}
        if unsaved:
            self._last_good.save(unsaved)

    def _look(self) -> None:
        members, heard = self._members(), self._heard
        if members is None:
            return
        there = {workload for workload, _ in members}
        self._last_good.leave(there)
        self._unsaved = {one: found for one, found in self._unsaved.items() if one in there}
        if heard is None or not self._steady(heard):
            return
        settled = {workload.name: workload for workload, is_settled in members if is_settled}
        if "" in heard.touched:
            heard.touched |= settled.keys()
        new = {name for name, workload in settled.items() if workload not in self._kept}
        names = heard.whole((heard.touched & settled.keys()) | new)
        heard.touched -= {"", *names}
        if not names:
            return
        found = {settled[name]: resources for name, resources in heard.by_owner(names).items()}
        self._kept = (self._kept & set(settled.values())) | found.keys()
        self._last_good.take(found)
        self._unsaved = self._unsaved | found
        self._shown = None

    def _steady(self, heard: Heard) -> bool:
        """Whether all that a stream begins with has come: nothing did since the last look."""
        if heard is not self._begun:
            count, self._count = self._count, heard.responses
            if not heard.responses or count != heard.responses:
                return False
            self._begun = heard
        return True


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
