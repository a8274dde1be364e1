"""`response.extensions["network_stream"]`: httpcore's interface to a connection after a 101.

What is written for httpx (httpx-ws, for one) finds what it knows, errors of httpcore included.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpcore

from meshlib.dataplane.http.upgrade import CHUNK, AsyncUpgraded, Upgraded


@contextmanager
def _told(late: type[Exception], lost: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise lost(str(error)) from error


class NetworkStream(httpcore.NetworkStream):
    """One for threads: one may read while another writes."""

    def __init__(self, upgraded: Upgraded) -> None:
        self._upgraded = upgraded

    def read(self, max_bytes: int = CHUNK, timeout: float | None = None) -> bytes:
        """What came; nothing at all: the peer has ended. httpcore.ReadTimeout, httpcore.ReadError."""
        with _told(httpcore.ReadTimeout, httpcore.ReadError):
            return self._upgraded.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Sends all of it. httpcore.WriteTimeout, httpcore.WriteError."""
        with _told(httpcore.WriteTimeout, httpcore.WriteError):
            self._upgraded.write(buffer, timeout)

    def close(self) -> None:
        """Ends it."""
        self._upgraded.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Never: connections are secured by the mesh."""
        raise NotImplementedError("the mesh secures its connections itself")

    def get_extra_info(self, info: str) -> Any:
        """`socket`, `client_addr`, `server_addr`, `ssl_object`; None of anything else."""
        made = self._upgraded.socket
        match info:
            case "socket":
                return made
            case "client_addr":
                return made.getsockname()
            case "server_addr":
                return made.getpeername()
            case "ssl_object":
                return self._upgraded.tls
        return None


_INFOS = {
    "client_addr": "sockname",
    "server_addr": "peername",
    "socket": "socket",
    "ssl_object": "ssl_object",
}


class AsyncNetworkStream(httpcore.AsyncNetworkStream):
    """One for tasks."""

    def __init__(self, upgraded: AsyncUpgraded) -> None:
        self._upgraded = upgraded

    async def read(self, max_bytes: int = CHUNK, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """As of `NetworkStream`."""
        with _told(httpcore.ReadTimeout, httpcore.ReadError):
            return await self._upgraded.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """As of `NetworkStream`."""
        with _told(httpcore.WriteTimeout, httpcore.WriteError):
            await self._upgraded.write(buffer, timeout)

    async def aclose(self) -> None:
        """Ends it."""
        self._upgraded.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Never, as of `NetworkStream`."""
        raise NotImplementedError("the mesh secures its connections itself")

    def get_extra_info(self, info: str) -> Any:
        """As of `NetworkStream`."""
        transport = self._upgraded.transport
        return None if transport is None or info not in _INFOS else transport.get_extra_info(_INFOS[info])
