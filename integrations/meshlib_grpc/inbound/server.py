"""`meshlib_grpc.server(…)`: a `grpc.Server` whose ports are the mesh's."""

import asyncio
import socket
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from meshlib.dataplane.gate import Gate
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.register import Registration
from meshlib_grpc.inbound.door import Door
from meshlib_grpc.inbound.health import Health
from meshlib_grpc.inbound.interceptor import ServerInterceptor
from meshlib_grpc.inbound.standing import FAREWELL, Standing, listen, registration


class Server(Standing, grpc.Server):  # type: ignore[misc]
    """A server for threads. Its handlers are added as to any server; its ports by `add_port`."""

    def __init__(
        self,
        thread_pool: ThreadPoolExecutor,
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
        """All but the last three are `grpc.server`'s. See `meshlib_grpc.server`."""
        Standing.__init__(self, mesh, register, options)
        first = ServerInterceptor(self._mesh, met=self._passage.met)
        self._server = grpc.server(
            thread_pool,
            handlers,
            (first, *(interceptors or ())),
            options,
            maximum_concurrent_rpcs,
            compression,
        )
        self._health = Health() if health else None
        if self._health is not None:
            self._health.add_to(self._server)
        self._loop: _Loop | None = None
        self._lock = threading.RLock()  # `stop` may be called by a signal's handler, within itself
        self._stopping: threading.Event | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Serves, once it is known who may call.

        ControlUnavailable: it is not known; it may be started again. ConfigError: it has no port, somebody
        else serves there, or it can't be registered; nothing of it stays.
        """
        gates = self._gates()
        for gate in gates:
            gate.prepare()
        self._serves = True
        try:
            self._serve(gates)
        except BaseException:
            self._end(None)
            raise

    def _serve(self, gates: Sequence[Gate]) -> None:
        self._server.add_insecure_port(self._passage.open())
        self._server.start()
        self._loop = _Loop()
        patience = self._mesh.bootstrap.request_headers_timeout
        for listening, gate in zip(self._sockets, gates, strict=True):
            listen(listening)
            self._doors.append(self._loop.run(self._open(listening, gate, patience)))
        if self._registers:
            self._registration = registration(self._mesh, self._sockets)
        if self._health is not None:
            self._health.serving()

    async def _open(self, listening: socket.socket, gate: Gate, patience: float) -> Door:
        return Door([listening], gate, self._passage, patience)

    def stop(self, grace: float | None) -> threading.Event:
        """Leaves the mesh, then stops; the event is set when all is done.

        Callers are told first (the setting `drain`), and served meanwhile. Then no more calls are taken, and
        those that run are cut off after `grace` seconds, at once if it is None. It does not block.
        """
        with self._lock:
            if self._stopping is None:
                self._stopping = threading.Event()
                name = "meshlib-grpc-stop"
                threading.Thread(target=self._stop, args=(grace,), name=name, daemon=True).start()
            else:
                self._stopping.set()  # a second one does not wait for callers to hear
        return self._ended

    def _stop(self, grace: float | None) -> None:
        try:
            if self._health is not None:
                self._health.leaving()
            if self._registration is not None:
                self._drain(self._registration)
        finally:
            self._end(grace)

    def _end(self, grace: float | None) -> None:
        """Takes no more calls; when those that run have ended nothing is left of it."""
        loop, self._loop = self._loop, None
        try:
            if loop is not None:
                for door in self._doors:
                    loop.run(_of(door.stop))
            self._server.stop(grace).wait()
            if loop is not None:
                for door in self._doors:
                    loop.run(door.close(FAREWELL))
                loop.close()
        finally:
            for one in self._sockets:
                one.close()
            if self._registration is not None:
                self._registration.close()
            self._passage.close()
            self._ended.set()

    def _drain(self, place: Registration) -> None:
        assert self._stopping is not None  # noqa: S101 - `stop` made it

        def drain() -> None:
            place.drain()
            stopping.set()

        stopping = self._stopping
        threading.Thread(target=drain, name="meshlib-grpc-drain", daemon=True).start()
        stopping.wait()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """As gRPC's: blocks until it has stopped; True if the time was over before."""
        return not self._ended.wait(timeout)


async def _of(act: Any) -> None:
    act()


class _Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="meshlib-grpc-ports", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Does it there, and waits."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
