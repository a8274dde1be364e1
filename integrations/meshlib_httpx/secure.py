"""What https:// URLs go through: httpx's own transport, whose connections are made by the mesh's `tls` rules.

The transport is made at the first request: a CA bundle takes long to load.
"""

import asyncio
import importlib
import os
from collections.abc import Callable
from typing import Any

import httpx

from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.tcp.dial import adial, ais_ruled, dial, is_ruled

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


class AsyncSecure(httpx.AsyncBaseTransport):
    """For tasks."""

    def __init__(self, arguments: dict[str, Any], find: FindMesh) -> None:
        """As `Secure`."""
        self._arguments = arguments
        self._find = find
        self._made: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request."""
        if self._made is None:
            self._made = httpx.AsyncHTTPTransport(**self._arguments)
            pool: Any = self._made._pool  # noqa: SLF001 - httpx has no argument for it
            pool._network_backend = _AsyncBackend(pool._network_backend, self._find)  # noqa: SLF001
        return await self._made.handle_async_request(request)

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._made is not None:
            await self._made.aclose()


class _Backend:
    """httpcore's network backend, as far as it makes connections to hosts."""

    def __init__(self, own: Any, find: FindMesh) -> None:
        self._own, self._find = own, find
        self.sleep = own.sleep

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **more: Any) -> Any:
        """A stream, which the mesh makes when the name is known that is asked for."""
        mesh = self._find()
        if not is_ruled(mesh, host, port):
            return self._own.connect_tcp(host, port, timeout, **more)
        return _Wanted(self._own, mesh, host, port)


class _AsyncBackend:
    """As `_Backend`."""

    def __init__(self, own: Any, find: FindMesh) -> None:
        self._own, self._find = own, find
        self.sleep = own.sleep

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, **more: Any) -> Any:  # noqa: ASYNC109
        """As of `_Backend`."""
        mesh = self._find()
        if not await ais_ruled(mesh, host, port):
            return await self._own.connect_tcp(host, port, timeout, **more)
        return _AsyncWanted(self._own, mesh, host, port)


class _Wanted:
    """A stream that begins with TLS."""

    def __init__(self, own: Any, mesh: Mesh, host: str, port: int) -> None:
        self._own, self._mesh, self._host, self._port = own, mesh, host, port

    def start_tls(self, ssl_context: Any, server_hostname: str, timeout: float | None = None) -> Any:
        """Connects, and shakes hands."""
        made = dial(self._mesh, self._host, self._port, server_hostname, timeout)
        kind = importlib.import_module(f"{_core_of(self._own)}._backends.sync").SyncStream
        try:
            return kind(made).start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            made.close()
            raise

    def close(self) -> None:
        """Nothing is there yet."""


class _AsyncWanted:
    """As `_Wanted`."""

    def __init__(self, own: Any, mesh: Mesh, host: str, port: int) -> None:
        self._own, self._mesh, self._host, self._port = own, mesh, host, port

    async def start_tls(self, ssl_context: Any, server_hostname: str, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Connects, and shakes hands."""
        core = importlib.import_module(_core_of(self._own))
        try:
            async with asyncio.timeout(timeout):
                made = await adial(self._mesh, self._host, self._port, server_hostname)
                try:
                    reader, writer = await asyncio.open_connection(
                        sock=made, ssl=ssl_context, server_hostname=server_hostname
                    )
                except BaseException:
                    made.close()
                    raise
        except TimeoutError as error:
            raise core.ConnectTimeout(error) from error
        return _Stream(core, reader, writer)

    async def aclose(self) -> None:
        """Nothing is there yet."""


class _Stream:
    """httpcore's AsyncNetworkStream on asyncio's streams."""

    def __init__(self, core: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._core, self._reader, self._writer = core, reader, writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """What came, nothing at the end."""
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise self._core.ReadTimeout(error) from error
        except OSError as error:
            raise self._core.ReadError(error) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Sends all of it."""
        try:
            async with asyncio.timeout(timeout):
                if buffer:
                    self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise self._core.WriteTimeout(error) from error
        except OSError as error:
            raise self._core.WriteError(error) from error

    async def aclose(self) -> None:
        """Closes it."""
        self._writer.close()

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks for."""
        match info:
            case "is_readable":  # of an idle connection: the peer has closed it
                return self._reader.at_eof() or self._writer.is_closing()
            case "client_addr":
                return self._writer.get_extra_info("sockname")
            case "server_addr":
                return self._writer.get_extra_info("peername")
        return self._writer.get_extra_info(info)


def _core_of(own: Any) -> str:
    """The name of the httpcore that a backend is of."""
    return str(type(own).__module__.partition(".")[0])
