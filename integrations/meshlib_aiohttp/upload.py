"""A request's body: bytes where aiohttp has bytes, else what its payload writes, a chunk at a time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_reqrep import ClientRequest
from aiohttp.compression_utils import ZLibCompressor
from aiohttp.payload import BytesPayload, Payload
from aiohttp.tracing import Trace


async def source_of(request: ClientRequest, traces: list[Trace]) -> "bytes | Upload":
    """What is sent as the body of a request that has one."""
    payload = request._body  # noqa: SLF001
    assert payload is not None  # noqa: S101 - else there is nothing to send
    if type(payload).write is BytesPayload.write and not request.compress:
        whole = bytes(await payload.as_bytes())
        for trace in traces:
            await trace.send_request_chunk_sent(request.method, request.url, whole)
        length = request._get_content_length()  # noqa: SLF001
        return whole if length is None else whole[:length]
    return Upload(request, payload, traces)


class Upload(AbstractStreamWriter):
    """What a payload writes is kept until the mesh asks for it; the payload waits meanwhile."""

    def __init__(self, request: ClientRequest, payload: Payload, traces: list[Trace]) -> None:
        self._request = request
        self._payload = payload
        self._traces = traces
        self._chunks: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(1)
        self._task: asyncio.Task[None] | None = None
        self._compress = ZLibCompressor(encoding=str(request.compress)) if request.compress else None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Its chunks, once. aiohttp's error for one of the application's body."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self._read()

    async def _read(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise self._wrapped(chunk) from chunk
            yield chunk

    def _wrapped(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError):
            if error.errno is None and isinstance(error, TimeoutError):
                return error
            return aiohttp.ClientOSError(error.errno, f"Can not write request body for {self._request.url}")
        return aiohttp.ClientConnectionError(
            f"Failed to send bytes into the underlying connection {self._request.url}: {error!r}"
        )

    async def _run(self) -> None:
        try:
            await self._payload.write_with_length(self, self._request._get_content_length())  # noqa: SLF001
            if self._compress is not None:
                await self._chunks.put(self._compress.flush())
        except Exception as error:  # noqa: BLE001 - the application's, told to who sends
            await self._chunks.put(error)
        else:
            await self._chunks.put(None)

    async def write(self, chunk: Any) -> None:
        """Keeps a chunk until it is asked for."""
        data = bytes(chunk)
        for trace in self._traces:
            await trace.send_request_chunk_sent(self._request.method, self._request.url, data)
        if self._compress is not None:
            data = await self._compress.compress(data)
        if data:
            await self._chunks.put(data)

    def close(self) -> None:
        """Nobody wants the rest; the payload is told so as a cancelled task is."""
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._task.cancel()

    # What aiohttp's payloads do not ask of a writer.

    async def write_eof(self, chunk: bytes = b"") -> None:
        """The end is when the payload has returned."""

    async def drain(self) -> None:
        """`write` has waited."""

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        """As the request says."""

    def enable_chunking(self) -> None:
        """The mesh's codec does."""

    async def write_headers(self, status_line: str, headers: Any) -> None:
        """The mesh's codec does."""
