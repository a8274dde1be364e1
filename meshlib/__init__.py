"""A service mesh inside the Python process: Istio's YAML, Envoy's xDS, no sidecar.

    with meshlib.Client() as client:          # an httpx.Client; AsyncClient is an httpx.AsyncClient
        client.get("http://reviews:9080/")

    meshlib.register(labels={"app": "reviews"}, ports={"http": 9080})     # in a server
    mesh = meshlib.connect("mesh/")           # rules from a folder, without a control service

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
    RefusedResource,
    RequestError,
    UpstreamProtocolError,
    UpstreamReset,
    UpstreamTimedOut,
)

if TYPE_CHECKING:
    from meshlib.dataplane.mesh import Mesh, connect, default
    from meshlib.dataplane.register import Registration, register
    from meshlib_httpx import AsyncClient, Client

__all__ = [
    "AsyncClient",
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
    "RefusedResource",
    "Registration",
    "RequestError",
    "UpstreamProtocolError",
    "UpstreamReset",
    "UpstreamTimedOut",
    "connect",
    "default",
    "register",
]

_LAZY = {
    "AsyncClient": "meshlib_httpx",
    "Client": "meshlib_httpx",
    "Mesh": "meshlib.dataplane.mesh",
    "Registration": "meshlib.dataplane.register",
    "connect": "meshlib.dataplane.mesh",
    "default": "meshlib.dataplane.mesh",
    "register": "meshlib.dataplane.register",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("meshlib")
    elif name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module 'meshlib' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})
