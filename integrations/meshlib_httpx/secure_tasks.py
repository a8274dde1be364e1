"""As `secure`, for tasks."""

import asyncio
import importlib
from typing import Any

import httpx

from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.tcp.dial import adial, ais_ruled
from meshlib_httpx.secure import FindMesh, core_of


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


class _AsyncWanted:
    """As `_Wanted`."""

    def __init__(self, own: Any, mesh: Mesh, host: str, port: int) -> None:
        self._own, self._mesh, self._host, self._port = own, mesh, host, port

    async def start_tls(self, ssl_context: Any, server_hostname: str, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Connects, and shakes hands."""
        core = importlib.import_module(core_of(self._own))
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
