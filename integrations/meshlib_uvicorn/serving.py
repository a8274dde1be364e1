"""One process that serves one application in the mesh, from its first policy to its last request.

    policy known ─► application started ─► port open ─► registered ─► … signal ─► draining ─► drained ─► end

Rules:

- Nothing is served before it is known what is asked of callers: without a policy there is no port.
- Others hear that it leaves before it stops taking requests; those that are in flight are finished.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

import meshlib
from meshlib.dataplane.gate import Gate
from meshlib.dataplane.mesh import Mesh
from meshlib_asgi import MeshMiddleware
from meshlib_uvicorn.server import Server


async def serve(
    app: Any,
    listening: socket.socket,
    mesh: Mesh,
    register: Callable[[], meshlib.Registration] | None = None,
    *,
    ready: Callable[[], None] = lambda: None,
    graceful: float = 30.0,
    **options: Any,
) -> int:
    """Serves an ASGI application at a listening socket until it is told to stop; the exit code.

    `register` is called once the port is open (None: somebody else registers); `ready` after that.
    `graceful`: seconds for requests in flight at the end. `options` are uvicorn.Config's.
    ControlUnavailable: no policy is known.
    """
    gate = Gate(mesh, listening.getsockname()[1])
    await gate.aprepare()
    config = uvicorn.Config(
        MeshMiddleware(app, gate),
        interface="asgi3",
        timeout_graceful_shutdown=max(1, round(graceful)),
        proxy_headers=False,  # who calls is what the connection shows
        server_header=False,
        **options,
    )
    registration: meshlib.Registration | None = None

    async def leave() -> None:
        if registration is not None:
            await asyncio.to_thread(registration.drain)

    server = Server(config, gate, leave, patience=mesh.bootstrap.request_headers_timeout)
    serving = await server.begin([listening])
    try:
        if not serving.done():
            if register is not None:
                registration = await asyncio.to_thread(register)
            if not server.should_exit:  # it may have been told to stop meanwhile
                ready()
        await serving
    finally:
        if registration is not None:
            await asyncio.to_thread(registration.close)
    return 0 if server.started else 1
