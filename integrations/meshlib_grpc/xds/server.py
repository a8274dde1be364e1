"""`xds_server(…)`: gRPC's own xDS server (`grpc.server(xds=True)`), which has the mesh's policies by itself.

bootstrap there ─► gRPC serves, once it has its listener ─► the port takes connections ─► registered, healthy
─► … stop ─► draining ─► drained ─► calls finish ─► gone
"""

import logging
import socket
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.register import Registration
from meshlib.errors import ConfigError
from meshlib_grpc.inbound.standing import ANYWHERE, REUSE, mesh_of, settings_of, shares
from meshlib_grpc.xds.homes import homes

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05
"""Between two looks whether the port takes connections."""


class XdsServer(grpc.Server):  # type: ignore[misc]
    """Its handlers are added as to any server; its ports by `add_port`."""

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
    ) -> None:
        """All but the last two are `grpc.server`'s. See `meshlib_grpc.xds_server`."""
        self._mesh = mesh_of(mesh)
        self._registers = register
        homes.enter(self._mesh, lambda: self)  # before gRPC reads the bootstrap, which it does here
        options = tuple(options or ())
        if not shares(options):
            options = (*options, (REUSE, 0))
        self._server = grpc.server(
            thread_pool,
            handlers,
            interceptors,
            options,
            maximum_concurrent_rpcs,
            compression,
            xds=True,
        )
        self._addresses: list[tuple[str, int]] = []
        self._registration: Registration | None = None
        self._lock = threading.RLock()  # `stop` may be called by a signal's handler, within itself
        self._stopping = False
        self._ended = threading.Event()

    def __repr__(self) -> str:
        return f"<XdsServer of ports {', '.join(str(port) for _, port in self._addresses) or 'none'}>"

    def add_port(self, address: str) -> int:
        """Serves at `IP:port` as the mesh says; the port. ConfigError: gRPC can't serve there."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"address: found {address!r}; needed is IP:port, such as 0.0.0.0:9080: the policies of a "
                "port are asked for by its number, before it is bound"
            )
        fallback = grpc.insecure_server_credentials()
        self._server.add_secure_port(address, grpc.xds_server_credentials(fallback))
        self._addresses.append((host.strip("[]"), int(port)))
        return int(port)

    def add_insecure_port(self, address: str) -> NoReturn:
        """ConfigError: such a port would be outside of the mesh; `add_port` makes one."""
        raise ConfigError(
            "add_port(address) opens a port of the mesh, which decides who may connect, and how"
        )

    def add_secure_port(self, address: str, server_credentials: Any) -> NoReturn:
        """As of `add_insecure_port`."""
        self.add_insecure_port(address)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        """As gRPC's."""
        self._server.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """As gRPC's."""
        self._server.add_registered_method_handlers(service_name, method_handlers)

    def start(self) -> None:
        """Serves as soon as it is known who may call, and is an endpoint from then on; waits for neither.

        ConfigError: something can't be used.
        """
        if self._registers and self._registration is None:
            found = settings_of(self._mesh.bootstrap, self._addresses)
            mutual = not found.allow_plaintext
            self._registration = Registration(found, mutual_tls=mutual, serving=False)
        self._server.start()
        if self._registration is not None:
            name = "meshlib-grpc-xds-look"
            threading.Thread(target=self._look, args=(self._registration,), name=name, daemon=True).start()

    def _look(self, registration: Registration) -> None:
        """Whether gRPC serves, nobody but its ports says."""
        for address in self._addresses:
            while not _answers(address):
                if self._ended.wait(LOOK_SECONDS) or self._stopping:
                    return
        registration.serve()

    def stop(self, grace: float | None) -> threading.Event:
        """Leaves the mesh, then stops; the event is set when all is done. It does not block.

        Callers are told first (the setting `drain`), and served meanwhile; then those calls that run have
        `grace` seconds. A second one does not wait for callers to hear.
        """
        with self._lock:
            again, self._stopping = self._stopping, True
        if again:
            if self._registration is not None:
                self._registration.close()
        else:
            name = "meshlib-grpc-xds-stop"
            threading.Thread(target=self._stop, args=(grace,), name=name, daemon=True).start()
        return self._ended

    def _stop(self, grace: float | None) -> None:
        try:
            if self._registration is not None:
                self._registration.drain()
            self._server.stop(grace).wait()
        finally:
            if self._registration is not None:
                self._registration.close()
            self._ended.set()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """As gRPC's: blocks until it has stopped; True if the time was over before."""
        return not self._ended.wait(timeout)


def _answers(address: tuple[str, int]) -> bool:
    host, port = address
    loopback = "::1" if ":" in host else "127.0.0.1"
    try:
        socket.create_connection((loopback if host in ANYWHERE else host, port), 1).close()
    except OSError:
        return False
    return True
