"""A service mesh inside the Python process: Istio's YAML, Envoy's xDS, no sidecar.

    with meshlib.Client() as client:          # an httpx.Client; AsyncClient is an httpx.AsyncClient
        client.get("http://reviews:9080/")

    meshlib.register(labels={"app": "reviews"}, ports={"http": 9080})     # in a server
    mesh = meshlib.connect("mesh/")           # rules from a folder, without a control service
    meshlib.create_connection(("db", 5432))   # a socket; open_connection gives asyncio's streams

Names are loaded when they are first used: `import meshlib` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from meshlib.errors import (
    Closed,
    ConfigError,
    ConnectFailed,
    ConnectTimedOut,
    ControlError,
    ControlUnavailable,
    Flight,
    InvalidDocument,
    MeshError,
    NoUpstream,
    RefusedResource,
    RequestError,
    UpstreamProtocolError,
    UpstreamReset,
    UpstreamTimedOut,
)

if TYPE_CHECKING:
    import asyncio
    import socket
    import ssl as tls

    from meshlib.dataplane.mesh import Mesh
    from meshlib.dataplane.register import Registration
    from meshlib.dataplane.telemetry.provider import MeterProvider
    from meshlib_httpx import AsyncClient, AsyncTransport, Client, Transport

__all__ = [
    "AsyncClient",
    "AsyncTransport",
    "Client",
    "Closed",
    "ConfigError",
    "ConnectFailed",
    "ConnectTimedOut",
    "ControlError",
    "ControlUnavailable",
    "Flight",
    "InvalidDocument",
    "Mesh",
    "MeshError",
    "MeterProvider",
    "NoUpstream",
    "RefusedResource",
    "Registration",
    "RequestError",
    "Transport",
    "UpstreamProtocolError",
    "UpstreamReset",
    "UpstreamTimedOut",
    "connect",
    "create_connection",
    "default",
    "open_connection",
    "register",
]

_LAZY = {
    "AsyncClient": "meshlib_httpx",
    "AsyncTransport": "meshlib_httpx",
    "Client": "meshlib_httpx",
    "Mesh": "meshlib.dataplane.mesh",
    "MeterProvider": "meshlib.dataplane.telemetry.provider",
    "Registration": "meshlib.dataplane.register",
    "Transport": "meshlib_httpx",
}
_DEFAULT: Any = object()
_shared: dict[str, "Mesh"] = {}


def connect(control: Any = None, **settings: Any) -> "Mesh":
    """A mesh of one's own: `control` is `host:port` or a folder of YAML; other settings as of `bootstrap`.

    Nothing starts before the first call. ConfigError: a setting can't be used, or the folder can't be
    served because the extra `control` is not installed.
    """
    from meshlib.bootstrap import bootstrap
    from meshlib.dataplane.mesh import Mesh, ads_source

    found = bootstrap(control=control, **settings)
    if not found.local:
        return Mesh(found, ads_source)
    from meshlib.local import local_source

    return Mesh(found, local_source)


def default() -> "Mesh":
    """The process-wide mesh, configured by the environment; made at the first call, or after its close."""
    found = _shared.get("mesh")
    if found is not None and found.closed:
        _shared.pop("mesh", None)
        found = None
    # No lock, for a fork to find held: of several threads one wins, and nothing starts before it is asked.
    return found or _shared.setdefault("mesh", connect())


def create_connection(
    address: tuple[str, int],
    timeout: float | None = _DEFAULT,
    source_address: tuple[str, int] | None = None,
    *,
    server_hostname: str | None = None,
    mesh: "Mesh | None" = None,
) -> "socket.socket":
    """A connection to `(host, port)` by the mesh's rules (VirtualService `tcp` and `tls`, DestinationRule),
    as `socket.create_connection` makes one: a socket for a driver that takes one.

    It is a `socket.socket`, or, where the mesh secures it, an `ssl.SSLSocket`. `timeout`, in seconds (None:
    none; not given: `socket.getdefaulttimeout()`), bounds connecting and is the socket's own from then on.
    `server_hostname` is the name (SNI) that the application will ask for by its own TLS, for `tls` rules;
    not given: the host. `mesh` is the process's own unless given.

    ConnectFailed, ConnectTimedOut, NoUpstream, ControlUnavailable, RefusedResource, Closed: each is a
    ConnectionError, too, and ConnectTimedOut a TimeoutError.
    """
    import socket as sockets

    from meshlib.dataplane.tcp.sockets import create_connection as make

    seconds = sockets.getdefaulttimeout() if timeout is _DEFAULT else timeout
    return make(mesh or default(), address, seconds, source_address, server_hostname)


async def open_connection(
    host: str,
    port: int,
    *,
    limit: int = 2**16,
    ssl: "tls.SSLContext | bool | None" = None,
    server_hostname: str | None = None,
    mesh: "Mesh | None" = None,
) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter]":
    """A connection to `host:port` by the mesh's rules, as `asyncio.open_connection` makes one.

    `ssl` and `server_hostname` are for TLS of the application's own, inside of whatever the mesh does; their
    name (the host, if none is given) is what `tls` rules are asked with. `mesh` and errors: see
    `create_connection`; of the application's own TLS ssl.SSLError. How long it may take is the
    DestinationRule's connectTimeout, and that of `asyncio.timeout` around it.
    """
    from meshlib.dataplane.tcp.streams import open_connection as make

    return await make(mesh or default(), host, port, limit, ssl, server_hostname)


def register(*, mutual_tls: bool = False, **settings: Any) -> "Registration":
    """Makes this process an endpoint of every service that selects its labels; settings as of `bootstrap`.

    `ports` (or MESHLIB_PORTS) is needed. With a folder of YAML as `control` the clients of this process
    find it, and nobody else. `mutual_tls` says that what listens there takes the mesh's mutual TLS, as
    `meshlib serve` does; clients then speak it. ConfigError: `ports` is missing, or something can't be used.
    """
    from meshlib.bootstrap import bootstrap
    from meshlib.dataplane.register import Registration

    found = bootstrap(**settings)
    if not found.local:
        return Registration(found, mutual_tls=mutual_tls)
    from meshlib.local import LocalRegistrar

    return Registration(found, LocalRegistrar, mutual_tls=mutual_tls)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("meshlib")
    elif name in _LAZY:
        value = getattr(_load(_LAZY[name]), name)
    else:
        raise AttributeError(f"module 'meshlib' has no attribute {name!r}")
    globals()[name] = value
    return value


def _load(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if module != "meshlib_httpx" or error.name != "httpx":
            raise
    # httpx2 is its successor, and whoever has only that one means that one.
    return importlib.import_module("meshlib_httpx2")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})
