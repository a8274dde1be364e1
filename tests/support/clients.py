"""Every HTTP client in the mesh behind one face, for the contract that all of them keep.

A blocking client is called in a thread, so one test is for both kinds.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp
import httpx
import httpx2
import requests
import urllib3

import meshlib_aiohttp
import meshlib_httpx
import meshlib_httpx2
import meshlib_requests
import meshlib_urllib3
from meshlib.core.actions import Facts

URL = "http://reviews:9080"
Body = bytes | Sequence[bytes | Exception] | None


class Seen(NamedTuple):
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes
    facts: Facts | None


@dataclass
class Errors:
    """The library's classes, by what happened."""

    refused: type[Exception]
    reset: type[Exception]
    broken_off: type[Exception]
    route_timed_out: type[Exception]
    own_read: type[Exception]
    connect_timed_out: type[Exception]
    protocol: type[Exception]
    upload: type[Exception]
    """One that the application's body raises (a ValueError) comes out as this."""
    secure: type[Exception]
    """To an https:// host that is kept in."""


class Caller:
    """One client. `begin` gives a response whose head is there, to be read a part at a time."""

    errors: Errors
    asynchronous = False

    def __init__(self, mesh: Any, **arguments: Any) -> None:
        raise NotImplementedError

    async def call(
        self,
        path: str,
        method: str = "GET",
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        seconds: float | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Seen:
        """Sends it and reads the response; `seconds` is the application's own limit of a read."""
        raise NotImplementedError

    async def begin(self, path: str) -> Any:
        """A response whose body is read later."""
        raise NotImplementedError

    async def part(self, response: Any) -> bytes:
        """Some of the body; nothing at its end."""
        raise NotImplementedError

    async def end(self, response: Any) -> None:
        """Closes a response."""
        raise NotImplementedError

    async def close(self) -> None:
        """Closes the client."""
        raise NotImplementedError

    def connections(self) -> Any:
        """The mesh's connections that it has."""
        raise NotImplementedError


def pieces(body: Sequence[bytes | Exception]) -> Iterator[bytes]:
    """Chunks, or the error in its turn."""
    for piece in body:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def apieces(body: Sequence[bytes | Exception]) -> AsyncIterator[bytes]:
    """As `pieces`."""
    for piece in pieces(body):
        yield piece


def url_of(path: str) -> str:
    """A path is one of the mesh's host."""
    return path if "://" in path else URL + path


class _Threaded(Caller):
    """A blocking client."""

    async def call(self, path: str, method: str = "GET", **arguments: Any) -> Seen:
        return await asyncio.to_thread(self.send, path, method, **arguments)

    async def begin(self, path: str) -> Any:
        return await asyncio.to_thread(self.open, path)

    async def part(self, response: Any) -> bytes:
        return await asyncio.to_thread(self.next, response)

    async def end(self, response: Any) -> None:
        response.close()

    async def close(self) -> None:
        await asyncio.to_thread(self.shut)

    def send(self, path: str, method: str, **arguments: Any) -> Seen:
        raise NotImplementedError

    def open(self, path: str) -> Any:
        raise NotImplementedError

    def next(self, response: Any) -> bytes:
        raise NotImplementedError

    def shut(self) -> None:
        raise NotImplementedError


def _httpx_errors(library: Any) -> Errors:
    return Errors(
        library.ConnectError,
        library.RemoteProtocolError,
        library.RemoteProtocolError,
        library.ReadTimeout,
        library.ReadTimeout,
        library.ConnectTimeout,
        library.RemoteProtocolError,
        ValueError,
        library.ConnectError,
    )


class Httpx(_Threaded):
    """httpx.Client."""

    errors = _httpx_errors(httpx)
    made: Any = meshlib_httpx.Client
    library: Any = httpx

    def __init__(self, mesh: Any, **arguments: Any) -> None:
        self.client = self.made(mesh=mesh, follow_redirects=True, **arguments)

    def send(self, path: str, method: str, **arguments: Any) -> Seen:
        made = _httpx_arguments(arguments, pieces)
        return _seen_of_httpx(self.client.request(method, url_of(path), **made))

    def open(self, path: str) -> Any:
        response = self.client.send(self.client.build_request("GET", url_of(path)), stream=True)
        response.parts = response.iter_raw()
        return response

    def next(self, response: Any) -> bytes:
        return next(response.parts, b"")

    def shut(self) -> None:
        self.client.close()

    def connections(self) -> Any:
        return self.client._transport._sender._connections


class Httpx2(Httpx):
    """httpx2.Client."""

    errors = _httpx_errors(httpx2)
    made = meshlib_httpx2.Client
    library = httpx2


class AsyncHttpx(Caller):
    """httpx.AsyncClient."""

    errors = _httpx_errors(httpx)
    made: Any = meshlib_httpx.AsyncClient
    asynchronous = True

    def __init__(self, mesh: Any, **arguments: Any) -> None:
        self.client = self.made(mesh=mesh, follow_redirects=True, **arguments)

    async def call(self, path: str, method: str = "GET", **arguments: Any) -> Seen:
        made = _httpx_arguments(arguments, apieces)
        return _seen_of_httpx(await self.client.request(method, url_of(path), **made))

    async def begin(self, path: str) -> Any:
        response = await self.client.send(self.client.build_request("GET", url_of(path)), stream=True)
        response.parts = response.aiter_raw()
        return response

    async def part(self, response: Any) -> bytes:
        return await anext(response.parts, b"")

    async def end(self, response: Any) -> None:
        await response.aclose()

    async def close(self) -> None:
        await self.client.aclose()

    def connections(self) -> Any:
        return self.client._transport._sender._connections


class AsyncHttpx2(AsyncHttpx):
    """httpx2.AsyncClient."""

    errors = _httpx_errors(httpx2)
    made = meshlib_httpx2.AsyncClient


def _httpx_arguments(
    arguments: dict[str, Any], streamed: Callable[[Sequence[bytes | Exception]], Any]
) -> dict[str, Any]:
    body, seconds = arguments.pop("body", None), arguments.pop("seconds", None)
    if body is not None:
        arguments["content"] = body if isinstance(body, bytes) else streamed(body)
    if seconds is not None:
        arguments["timeout"] = seconds
    if arguments.get("auth") is None:
        arguments.pop("auth", None)
    return arguments


def _seen_of_httpx(response: Any) -> Seen:
    return Seen(
        response.status_code, dict(response.headers), response.content, response.extensions.get("meshlib")
    )


class Requests(_Threaded):
    """requests.Session."""

    errors = Errors(
        requests.ConnectionError,
        requests.ConnectionError,
        requests.exceptions.ChunkedEncodingError,
        requests.ReadTimeout,
        requests.ReadTimeout,
        requests.ConnectTimeout,
        requests.ConnectionError,
        ValueError,
        requests.ConnectionError,
    )

    def __init__(self, mesh: Any) -> None:
        self.session = meshlib_requests.Session(mesh=mesh)
        self.adapter: Any = self.session.get_adapter(URL)

    def send(
        self, path: str, method: str, *, body: Body = None, seconds: float | None = None, **arguments: Any
    ) -> Seen:
        data = body if body is None or isinstance(body, bytes) else pieces(body)
        response = self.session.request(method, url_of(path), data=data, timeout=seconds, **arguments)
        found = meshlib_requests.facts(response)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Seen(response.status_code, headers, response.content, found)

    def open(self, path: str) -> Any:
        response: Any = self.session.get(url_of(path), stream=True)
        response.parts = response.iter_content(None)
        return response

    def next(self, response: Any) -> bytes:
        return response.raw.read1(65536) or b""

    def shut(self) -> None:
        self.session.close()

    def connections(self) -> Any:
        return self.adapter.sender._connections


class Urllib3(_Threaded):
    """urllib3.PoolManager."""

    errors = Errors(
        urllib3.exceptions.NewConnectionError,
        urllib3.exceptions.ProtocolError,
        urllib3.exceptions.ProtocolError,
        urllib3.exceptions.ReadTimeoutError,
        urllib3.exceptions.ReadTimeoutError,
        urllib3.exceptions.ConnectTimeoutError,
        urllib3.exceptions.ProtocolError,
        ValueError,
        urllib3.exceptions.MaxRetryError,
    )

    def __init__(self, mesh: Any) -> None:
        self.manager = meshlib_urllib3.PoolManager(mesh=mesh)
        self.sender = self.manager.sender

    def send(
        self,
        path: str,
        method: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        seconds: float | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Seen:
        made = dict(headers or {})
        if auth is not None:
            made |= urllib3.make_headers(basic_auth=":".join(auth))
        data = body if body is None or isinstance(body, bytes) else pieces(body)
        response = self.manager.request(
            method,
            url_of(path),
            headers=made,
            body=data,
            timeout=seconds,
            retries=urllib3.Retry(3, read=False) if seconds else None,
        )
        found = {name.lower(): value for name, value in response.headers.items()}
        return Seen(response.status, found, response.data, meshlib_urllib3.facts(response))

    def open(self, path: str) -> Any:
        return self.manager.request("GET", url_of(path), preload_content=False)

    def next(self, response: Any) -> bytes:
        return response.read1(65536) or b""

    def shut(self) -> None:
        self.manager.clear()

    def connections(self) -> Any:
        return self.sender._connections


class Aiohttp(Caller):
    """aiohttp.ClientSession."""

    errors = Errors(
        aiohttp.ClientConnectorError,
        aiohttp.ServerDisconnectedError,
        aiohttp.ClientPayloadError,
        aiohttp.ServerTimeoutError,
        aiohttp.SocketTimeoutError,
        aiohttp.ConnectionTimeoutError,
        aiohttp.ClientResponseError,
        aiohttp.ClientConnectionError,
        aiohttp.ClientConnectorError,
    )
    asynchronous = True

    def __init__(self, mesh: Any, **arguments: Any) -> None:
        jar = aiohttp.CookieJar(unsafe=True)
        self.session = meshlib_aiohttp.ClientSession(mesh=mesh, cookie_jar=jar, **arguments)
        self.connector: Any = self.session.connector

    async def call(
        self,
        path: str,
        method: str = "GET",
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        seconds: float | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Seen:
        made = dict(headers or {})
        if auth is not None:
            made["Authorization"] = aiohttp.encode_basic_auth(*auth)
        data = body if body is None or isinstance(body, bytes) else apieces(body)
        limit = aiohttp.ClientTimeout(total=None, sock_read=seconds)
        async with self.session.request(
            method, url_of(path), headers=made, data=data, timeout=limit
        ) as response:
            found = {name.lower(): value for name, value in response.headers.items()}
            return Seen(response.status, found, await response.read(), meshlib_aiohttp.facts(response))

    async def begin(self, path: str) -> Any:
        return await self.session.get(url_of(path))

    async def part(self, response: Any) -> bytes:
        found: bytes = await response.content.readany()
        return found

    async def end(self, response: Any) -> None:
        response.close()

    async def close(self) -> None:
        await self.session.close()

    def connections(self) -> Any:
        return self.connector.sender._connections


CALLERS: dict[str, type[Caller]] = {
    "httpx": Httpx,
    "httpx-async": AsyncHttpx,
    "httpx2": Httpx2,
    "httpx2-async": AsyncHttpx2,
    "requests": Requests,
    "urllib3": Urllib3,
    "aiohttp": Aiohttp,
}


@contextlib.asynccontextmanager
async def calling(kind: str, mesh: Any) -> AsyncIterator[Caller]:
    """A client of that kind while the block runs; then nothing of it is in flight or open."""
    caller = CALLERS[kind](mesh)
    try:
        yield caller
        if hasattr(mesh, "in_flight"):
            await until(lambda: mesh.in_flight() == 0)
    finally:
        found = caller.connections()
        await caller.close()
    if hasattr(found, "_pools"):
        await until(lambda: all(pool.opened == 0 for pool in found._pools.values()))


async def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    """Waits for something, with a bound."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.002)


Act = Callable[[Caller], Awaitable[Any]]
