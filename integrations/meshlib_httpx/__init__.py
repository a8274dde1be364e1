"""httpx in the mesh: a Client and an AsyncClient that are httpx's own, and transports for one's own.

with meshlib.Client() as client:
    client.get("http://reviews:9080/")

httpx.Client(transport=meshlib.Transport(mesh))
"""

from meshlib_httpx.clients import AsyncClient, Client
from meshlib_httpx.transports import AsyncTransport, Transport

__all__ = ["AsyncClient", "AsyncTransport", "Client", "Transport"]
