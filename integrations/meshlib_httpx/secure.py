"""What https:// URLs go through: httpx's own transport, whose connections are made by the mesh's `tls` rules.

The transport is made at the first request: a CA bundle takes long to load. For tasks see `secure_tasks`.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

import httpx

from meshlib.dataplane.mesh import Mesh

FindMesh = Callable[[], Mesh]


class Secure(httpx.BaseTransport):
    """For threads. A child of a fork makes its own: two processes can't share an encrypted connection."""

    def __init__(self, arguments: dict[str, Any], find: FindMesh) -> None:
        """`arguments` are those of httpx's transport; `find` gives the mesh."""
        self._arguments = arguments
        self._find = find
        self._made: dict[int, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request."""
        made = self._made.get(os.getpid())
        if made is None:
            made = httpx.HTTPTransport(**self._arguments)
            pool: Any = made._pool  # noqa: SLF001 - httpx has no argument for it
            pool._network_backend = _Backend(pool._network_backend, self._find)  # noqa: SLF001
            # Of two threads that come first, one's is used; the other's has no connections.
            made = self._made.setdefault(os.getpid(), made)
        return made.handle_request(request)

    def close(self) -> None:
        """Closes the connections."""
        made = self._made.get(os.getpid())
        if made is not None:
            made.close()


class _Backend:
    """httpcore's network backend, as far as it makes connections to hosts."""

    def __init__(self, own: Any, find: FindMesh) -> None:
        self._own, self._find = own, find
        self.sleep = own.sleep

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **more: Any) -> Any:
        """A stream, which the mesh makes when the name is known that is asked for."""
        from meshlib.dataplane.tcp.dial import is_ruled

        mesh = self._find()
        if not is_ruled(mesh, host, port):
            return self._own.connect_tcp(host, port, timeout, **more)
        return _Wanted(self._own, mesh, host, port)


class _Wanted:
    """A stream that begins with TLS."""

    def __init__(self, own: Any, mesh: Mesh, host: str, port: int) -> None:
        self._own, self._mesh, self._host, self._port = own, mesh, host, port

    def start_tls(self, ssl_context: Any, server_hostname: str, timeout: float | None = None) -> Any:
        """Connects, and shakes hands."""
        from meshlib.dataplane.tcp.dial import dial

        made = dial(self._mesh, self._host, self._port, server_hostname, timeout)
        kind = importlib.import_module(f"{core_of(self._own)}._backends.sync").SyncStream
        try:
            return kind(made).start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            made.close()
            raise

    def close(self) -> None:
        """Nothing is there yet."""


def core_of(own: Any) -> str:
    """The name of the httpcore that a backend is of."""
    return str(type(own).__module__.partition(".")[0])
