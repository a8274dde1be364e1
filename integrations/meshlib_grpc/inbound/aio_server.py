"""`meshlib_grpc.aio_server(…)`: a `grpc.aio.Server` whose ports are the mesh's."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from grpc import aio

from meshlib.dataplane.gate import Gate
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.register import Registration
from meshlib_grpc.inbound.aio_interceptor import AsyncServerInterceptor
from meshlib_grpc.inbound.door import Door
from meshlib_grpc.inbound.health import Health
from meshlib_grpc.inbound.standing import FAREWELL, Standing, listen, registration


class AsyncServer(Standing, aio.Server):  # type: ignore[misc]
    """A server for tasks. Its handlers are added as to any server; its ports by `add_port`."""

    def __init__(
        self,
        migration_thread_pool: Executor | None = None,
        handlers: Sequence[Any] | None = None,
        interceptors: Sequence[Any] | None = None,
        options: Sequence[tuple[str, Any]] | None = None,
        maximum_concurrent_rpcs: int | None = None,
        compression: Any = None,
        *,
        mesh: Mesh | None = None,
        register: bool = True,
        health: bool = False,
    ) -> None:
        """All but the last three are `grpc.aio.server`'s. See `meshlib_grpc.aio_server`."""
        Standing.__init__(self, mesh, register, options)
        first = AsyncServerInterceptor(self._mesh, met=self._passage.met)
        self._server = aio.server(
            migration_thread_pool,
            handlers,
            (first, *(interceptors or ())),
            options,
            maximum_concurrent_rpcs,
            compression,
        )
        self._health = Health(tasks=True) if health else None
        if self._health is not None:
            self._health.add_to(self._server)
        self._stopping: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Serves, once it is known who may call.

        ControlUnavailable: it is not known; it may be started again. ConfigError: it has no port, somebody
        else serves there, or it can't be registered; nothing of it stays.
        """
        gates = self._gates()
        for gate in gates:
            await gate.aprepare()
        self._serves = True
        try:
            await self._serve(gates)
        except BaseException:
            await self._end(None)
            raise

    async def _serve(self, gates: Sequence[Gate]) -> None:
        self._server.add_insecure_port(self._passage.open())
        await self._server.start()
        patience = self._mesh.bootstrap.request_headers_timeout
        for listening, gate in zip(self._sockets, gates, strict=True):
            listen(listening)
            self._doors.append(Door([listening], gate, self._passage, patience))
        if self._registers:
            self._registration = await asyncio.to_thread(registration, self._mesh, self._sockets)
        if self._health is not None:
            await self._health.serving()

    async def stop(self, grace: float | None) -> None:
        """Leaves the mesh, then stops, and waits for that.

        Callers are told first (the setting `drain`), and served meanwhile. Then no more calls are taken, and
        those that run are cut off after `grace` seconds, at once if it is None. A second `stop` does not wait
        for callers to hear.
        """
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(grace))
        else:
            self._hurry.set()
        await asyncio.shield(self._stopping)

    async def _stop(self, grace: float | None) -> None:
        try:
            if self._health is not None:
                await self._health.leaving()
            if self._registration is not None:
                await self._drain(self._registration)
        finally:
            await self._end(grace)

    async def _end(self, grace: float | None) -> None:
        """Takes no more calls; when those that run have ended nothing is left of it."""
        try:
            for door in self._doors:
                door.stop()
            await self._server.stop(grace)
            for door in self._doors:
                await door.close(FAREWELL)
        finally:
            for one in self._sockets:
                one.close()
            if self._registration is not None:
                await asyncio.to_thread(self._registration.close)
            self._passage.close()
            self._ended.set()

    async def _drain(self, place: Registration) -> None:
        drained = asyncio.ensure_future(asyncio.to_thread(place.drain))
        hurried = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - gRPC's
        """As gRPC's: waits until it has stopped; True if the time was over before."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            return True
        return False
