"""httpx's `limits` on requests that the mesh routes: how many may be on their way at once.

- A request holds its place from when it is sent until its response is read or closed, as a connection does.
- Who finds none waits as long as the pool time-out says (`httpx.Timeout(pool=…)`), then `httpx.PoolTimeout`.
- The mesh's own limits (connectionPool) hold besides.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import httpx


class Bounded(httpx.BaseTransport):
    """A transport with so many requests at once. Thread-safe."""

    def __init__(self, transport: httpx.BaseTransport, most: int) -> None:
        """`transport` is closed with this one."""
        self._transport = transport
        self._places = threading.Semaphore(most)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request. PoolTimeout: there was no place for it in time."""
        if not self._places.acquire(timeout=_patience(request)):
            raise _too_late(request)
        try:
            response = self._transport.handle_request(request)
        except BaseException:
            self._places.release()
            raise
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _Stream(response.stream, self._places.release)
        return response

    def close(self) -> None:
        """Closes the transport."""
        self._transport.close()


class AsyncBounded(httpx.AsyncBaseTransport):
    """As `Bounded`, on asyncio. First come, first served; one event loop at a time."""

    def __init__(self, transport: httpx.AsyncBaseTransport, most: int) -> None:
        """`transport` is closed with this one."""
        self._transport = transport
        self._most = most
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places = asyncio.Semaphore(most)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request. PoolTimeout: there was no place for it in time."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._places = loop, asyncio.Semaphore(self._most)
        places, patience = self._places, _patience(request)
        try:
            async with asyncio.timeout(None if patience is None or not places.locked() else patience):
                await places.acquire()
        except TimeoutError:
            raise _too_late(request) from None
        try:
            response = await self._transport.handle_async_request(request)
        except BaseException:
            places.release()
            raise
        if isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _AsyncStream(response.stream, places.release)
        return response

    async def aclose(self) -> None:
        """Closes the transport."""
        await self._transport.aclose()


class _Stream(httpx.SyncByteStream):
    """A body that gives its place up when it is closed, once."""

    def __init__(self, stream: httpx.SyncByteStream, leave: Callable[[], None]) -> None:
        self._stream = stream
        self._leaving = contextlib.ExitStack()
        self._leaving.callback(leave)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        with self._leaving:
            self._stream.close()


class _AsyncStream(httpx.AsyncByteStream):
    """As `_Stream`."""

    def __init__(self, stream: httpx.AsyncByteStream, leave: Callable[[], None]) -> None:
        self._stream = stream
        self._leaving = contextlib.ExitStack()
        self._leaving.callback(leave)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        with self._leaving:
            await self._stream.aclose()


def _patience(request: httpx.Request) -> float | None:
    patience: float | None = request.extensions.get("timeout", {}).get("pool")
    return patience


def _too_late(request: httpx.Request) -> httpx.PoolTimeout:
    return httpx.PoolTimeout("no place became free in time, by this client's limits", request=request)
