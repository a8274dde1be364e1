"""httpx2 in the mesh: what `meshlib_httpx` is for httpx.

with meshlib_httpx2.Client() as client:
    client.get("http://reviews:9080/")

httpx2.Client(transport=meshlib_httpx2.Transport(mesh))

httpx2 is httpx under another name, so there is one implementation (`twin`). Where the application has said
`httpx2.alias_httpx()`, `meshlib_httpx` and `meshlib.Client` are httpx2's as well, and the same as these.
"""

import math
from typing import TYPE_CHECKING, Any

from meshlib_httpx2.twin import load

if TYPE_CHECKING:
    import httpx2

    from meshlib.dataplane.mesh import Mesh

    class Client(httpx2.Client):
        """An httpx2.Client in the mesh."""

        def __init__(self, *, mesh: Mesh | None = None, **arguments: Any) -> None: ...

    class AsyncClient(httpx2.AsyncClient):
        """An httpx2.AsyncClient in the mesh, on asyncio."""

        def __init__(self, *, mesh: Mesh | None = None, **arguments: Any) -> None: ...

    class Transport(httpx2.BaseTransport):
        """For `httpx2.Client(transport=…)`. Thread-safe."""

        def __init__(
            self,
            mesh: Mesh | None = None,
            https: httpx2.BaseTransport | None = None,
            keepalive_expiry: float = math.inf,
        ) -> None: ...

    class AsyncTransport(httpx2.AsyncBaseTransport):
        """For `httpx2.AsyncClient(transport=…)`, on asyncio. One event loop at a time."""

        def __init__(
            self,
            mesh: Mesh | None = None,
            https: httpx2.AsyncBaseTransport | None = None,
            keepalive_expiry: float = math.inf,
        ) -> None: ...
else:
    Client, AsyncClient = load("clients").Client, load("clients").AsyncClient
    Transport, AsyncTransport = load("transports").Transport, load("transports").AsyncTransport
    errors = load("errors")

__all__ = ["AsyncClient", "AsyncTransport", "Client", "Transport"]
