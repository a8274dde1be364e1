"""The ASGI middleware in a Starlette application, and the caller as a dependency."""

from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection
from starlette.applications import Starlette

import meshlib.core.caller
from meshlib.dataplane.gate import Gate
from meshlib_asgi import MeshMiddleware


def install(app: Starlette, gate: Gate | None = None, *, port: int | None = None) -> None:
    """Puts an application behind the mesh's policies.

    `gate` None: of the process's own mesh at `port`; that None: the port that the server says.
    """
    app.add_middleware(MeshMiddleware, gate, port=port)


def _caller(connection: HTTPConnection) -> meshlib.core.caller.Caller:
    found: meshlib.core.caller.Caller = connection.state.mesh
    return found


Caller = Annotated[meshlib.core.caller.Caller, Depends(_caller)]
"""The caller of the request, for a handler's parameter; of a WebSocket, too."""
