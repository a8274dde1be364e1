"""A server's place in the mesh: its ports, its registration, and in which order it comes and goes.

policies known ─► gRPC serves ─► ports open ─► registered, healthy ─► … stop ─► unhealthy, draining ─► drained
─► no new connections, calls finish ─► all closed

A start that fails once gRPC serves goes the rest of the way: nothing of it stays.
"""

import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import meshlib
from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.gate import Gate
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.register import Registration
from meshlib.errors import ConfigError
from meshlib_grpc.inbound.door import Door, Passage

log = logging.getLogger(__name__)

ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
REUSE = "grpc.so_reuseport"
FAREWELL = 3.0
"""Seconds for the rest of an answer, once all calls have ended."""


def bind(address: str, shared: bool = False) -> socket.socket:
    """A socket at `host:port`; port 0 is a free one. `shared`: others may listen there, too. ConfigError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535 or "/" in host:
        raise ConfigError(
            f"address: found {address!r}; needed is host:port, such as 0.0.0.0:9080 or [::]:9080"
        )
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"can't serve at {address}: {error.strerror or error}") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # as gRPC: of every address, IPv4's too
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        made.bind(where)
    except OSError as error:
        made.close()
        raise ConfigError(f"can't serve at {address}: {error.strerror or error}") from None
    return made


def listen(bound: socket.socket) -> None:
    """Takes connections from now on. ConfigError: others do so there, by whatever name."""
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(1024)
    except OSError as error:
        raise ConfigError(f"can't serve at {host}, port {port}: {error.strerror or error}") from None


def shares(options: Sequence[tuple[str, object]]) -> bool:
    """Whether gRPC's arguments let other servers listen at the same port. gRPC's own word is that they may;
    here two servers at one port are a mistake unless it is said.
    """
    return any(name == REUSE and bool(value) for name, value in options)


def registration(mesh: Mesh, sockets: Sequence[socket.socket]) -> Registration:
    """Says that the server is there. What the settings do not say, address and port, is the sockets'."""
    found = settings_of(mesh.bootstrap, [one.getsockname()[:2] for one in sockets])
    mutual = not found.local and not found.allow_plaintext
    if not found.local:
        return Registration(found, mutual_tls=mutual)
    from meshlib.local import LocalRegistrar

    return Registration(found, LocalRegistrar, mutual_tls=mutual)


def settings_of(settings: Bootstrap, names: Sequence[tuple[str, int]]) -> Bootstrap:
    """With the ports `grpc`, `grpc-1`, … and the address of sockets of these names, where there are none."""
    ports = settings.ports or tuple(
        (f"grpc-{place}" if place else "grpc", port) for place, (_, port) in enumerate(names)
    )
    address = settings.address or next((host for host, _ in names if host not in ANYWHERE), "")
    return replace(settings, ports=ports, address=address)


def mesh_of(mesh: Mesh | None) -> Mesh:
    """The mesh that was given, or the process's own."""
    return mesh or meshlib.default()


class Standing:
    """What servers for threads and for tasks have in common: ports of the mesh, handlers of gRPC's."""

    _server: Any

    def __init__(self, mesh: Mesh | None, register: bool, options: Sequence[tuple[str, Any]] | None) -> None:
        self._mesh = mesh_of(mesh)
        self._registers = register
        self._shared = shares(options or ())
        self._passage = Passage()
        self._sockets: list[socket.socket] = []
        self._doors: list[Door] = []
        self._registration: Registration | None = None
        self._started = False
        self._serves = False

    def __repr__(self) -> str:
        ports = ", ".join(str(one.getsockname()[1]) for one in self._sockets if one.fileno() >= 0)
        return f"<{type(self).__name__} of ports {ports or 'none'}, {len(self._passage.met)} connections>"

    def add_port(self, address: str) -> int:
        """Serves at `host:port` (port 0: a free one) from `start` on, as the mesh says; the port.

        ConfigError: nobody can serve there, or it serves already.
        """
        if self._started:
            raise ConfigError("add_port comes before start")
        made = bind(address, self._shared)
        # The kernel lets nobody else in from the moment that one of them listens.
        if not self._shared and made.getsockname() in [one.getsockname() for one in self._sockets]:
            made.close()
            raise ConfigError(f"can't serve at {address}: it does already")
        self._sockets.append(made)
        return int(made.getsockname()[1])

    def _gates(self) -> list[Gate]:
        """Those of its ports. ConfigError: it has none, or serves, or has served."""
        if self._serves:
            raise ConfigError("start comes once")
        if not self._sockets:
            raise ConfigError("there is no port; add_port comes before start")
        self._started = True
        return [Gate(self._mesh, one.getsockname()[1]) for one in self._sockets]

    def add_insecure_port(self, address: str) -> NoReturn:
        """ConfigError: gRPC's own ports would be outside of the mesh; `add_port` makes one."""
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
        """What generated code calls beside `add_generic_rpc_handlers`. Of calls that go this way gRPC does
        not tell which host was asked for; so none does.
        """
