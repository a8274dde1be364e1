"""What is no body has a bound: heads as Envoy's, trailers and chunks' extensions; a body has none."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from support.policed import POLICY, gate

import meshlib
from meshlib_asgi import MeshMiddleware
from meshlib_uvicorn.head_size import MOST_BYTES, MOST_HEADERS, sized
from meshlib_uvicorn.server import Server

HEAD = b"GET /x HTTP/1.1\r\nhost: reviews\r\n"
CHUNKED = b"POST /x HTTP/1.1\r\nhost: reviews\r\ntransfer-encoding: chunked\r\n\r\n"
CLOSED = b"HTTP/1.1 431 "


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Tells what it was given, once the body is whole."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    told = {"size": size, "headers": [name.decode() for name, _ in scope["headers"]]}
    body = json.dumps(told).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(params=["httptools", "h11"])
async def port(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[int]:
    guard = gate(tmp_path, POLICY.split("---")[0])
    async with guard.mesh:
        await guard.aprepare()
        config = uvicorn.Config(
            MeshMiddleware(app, guard), http=request.param, log_level="critical", lifespan="off"
        )
        server = Server(config, guard)
        listening = socket.create_server(("127.0.0.1", 0))
        serving = await server.begin([listening])
        yield listening.getsockname()[1]
        server.should_exit = True
        await serving


async def talk(port: int, *pieces: bytes) -> bytes:
    """What comes back until the connection ends; each piece is one write."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        got = b""
        with contextlib.suppress(ConnectionError):
            while more := await reader.read(65536):
                got += more
    writer.close()
    return got


def told(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer[:100]
    return json.loads(body)


def head(size: int, count: int) -> bytes:
    """One of so many bytes of URL, names and values, and so many headers."""
    lines = [b"connection: close", *(b"%04d: " % number for number in range(count - 3))]
    known = len(b"/xhostreviewsconnectionclose") + 4 * (count - 3)
    lines.append(b"long: " + b"x" * (size - known - 4))
    return HEAD + b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.mark.parametrize("step", [1 << 20, 1000])
async def test_a_head_of_the_largest_size_is_served(port: int, step: int) -> None:
    whole = head(MOST_BYTES, MOST_HEADERS)
    answer = await talk(port, *(whole[start : start + step] for start in range(0, len(whole), step)))
    assert len(told(answer)["headers"]) == MOST_HEADERS + 1  # it came without x-request-id


@pytest.mark.parametrize("step", [1 << 20, 1000])
@pytest.mark.parametrize(("size", "count"), [(MOST_BYTES + 1, 50), (1000, MOST_HEADERS + 1)])
async def test_a_larger_one_is_not(port: int, step: int, size: int, count: int) -> None:
    whole = head(size, count)
    answer = await talk(port, *(whole[start : start + step] for start in range(0, len(whole), step)))
    assert answer.startswith(CLOSED)
    assert answer.count(b"HTTP/1.1") == 1


ENDLESS = {
    "url": (b"GET /", b"x" * 100_000),
    "name": (HEAD, b"x" * 100_000),
    "value": (HEAD + b"x: ", b"x" * 100_000),
    "headers": (HEAD, b"x: 1\r\n" * 20_000),
    "second": (HEAD + b"\r\n" + HEAD + b"x: ", b"x" * 100_000),
    "after a body": (CHUNKED + b"1\r\nx\r\n0\r\n\r\n" + HEAD + b"x: ", b"x" * 100_000),
    "trailers": (CHUNKED + b"1\r\nx\r\n0\r\n", b"x: 1\r\n" * 20_000),
    "trailer": (CHUNKED + b"1\r\nx\r\n0\r\nx: ", b"x" * 100_000),
    "extension": (CHUNKED + b"1;", b"x" * 100_000),
}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_what_never_ends_is_cut_off(port: int, kind: str) -> None:
    first, piece = ENDLESS[kind]
    sent = 0

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while sent < 100_000_000:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    sending = asyncio.create_task(send(writer))
    got = b""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            while more := await reader.read(65536):
                got += more
        await sending
    writer.close()
    assert sent < 20_000_000  # what the kernel took
    assert got == b"" or CLOSED in got or b"HTTP/1.1 400 " in got


async def test_a_body_has_no_bound(port: int) -> None:
    body = b"x" * 3_000_000
    length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    assert told(await talk(port, HEAD + length + body))["size"] == len(body)
    chunks = b"".join(b"%x\r\n%s\r\n" % (size, b"x" * size) for size in (1, 300_000, 65536, 2, 1_000_000))
    closing = CHUNKED[:-2] + b"connection: close\r\n\r\n"
    assert told(await talk(port, closing + chunks + b"0\r\n\r\n"))["size"] == 1_365_539


async def test_requests_that_come_together_are_each_served(port: int) -> None:
    many = [HEAD + b"x: %s\r\n\r\n" % (b"x" * 20_000)] * 20
    answer = await talk(port, b"".join((*many, HEAD, b"connection: close\r\n\r\n")))
    assert answer.count(b"HTTP/1.1 200 ") == 21


@pytest.mark.parametrize("step", [1 << 20, 1])
async def test_trailers_are_no_headers(port: int, step: int) -> None:
    whole = (
        CHUNKED[:-2] + b"connection: close\r\n\r\n1\r\nx\r\n0\r\n"
        b"x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/productpage\r\nhost: y\r\n\r\n"
    )
    pieces: Iterator[bytes] = (whole[start : start + step] for start in range(0, len(whole), step))
    names = told(await talk(port, *pieces))["headers"]
    assert names == ["host", "transfer-encoding", "connection", "x-request-id"]


def test_a_protocol_that_has_no_bound_is_refused() -> None:
    with pytest.raises(meshlib.ConfigError, match="http: Protocol can't be bounded"):
        sized(asyncio.Protocol)
