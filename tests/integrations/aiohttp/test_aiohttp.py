"""aiohttp's own API in the mesh: what the contract of all clients does not ask."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support.fake_mesh import FakeMesh, fake_mesh
from support.raw_server import RawServer, raw_server
from support.tls_server import tls_server

import meshlib_aiohttp

URL = "http://reviews:9080"


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.fixture
def mesh(server: RawServer) -> FakeMesh:
    return fake_mesh([server.port])


@pytest.fixture
async def session(mesh: FakeMesh) -> AsyncIterator[aiohttp.ClientSession]:
    async with meshlib_aiohttp.ClientSession(URL, mesh=mesh) as made:  # type: ignore[arg-type]
        yield made
        assert mesh.in_flight() == 0


async def test_the_total_time_is_aiohttps(session: aiohttp.ClientSession) -> None:
    for path in ("/slow/5", "/slowbody/5"):
        with pytest.raises(TimeoutError) as raised:
            async with session.get(path, timeout=aiohttp.ClientTimeout(total=0.05)) as response:
                await response.read()
        assert not isinstance(raised.value, aiohttp.ClientError)


async def test_a_read_that_is_given_up_may_be_begun_again(session: aiohttp.ClientSession) -> None:
    async with session.get("/drip") as response:
        found = b""
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.03):
                    await response.content.readexactly(1000)
        while len(found) < 3:
            found += await response.content.readany()
        assert set(found) == {ord(".")}


async def test_a_response_that_nobody_reads_keeps_its_connection(
    session: aiohttp.ClientSession, server: RawServer
) -> None:
    before = server.connections
    for _ in range(3):
        async with session.get("/echo") as response:
            assert response.status == 200
        async with session.head("/echo") as response:
            assert response.ok
    assert server.connections == before + 1


async def test_lines_and_chunks_of_the_body(session: aiohttp.ClientSession) -> None:
    async with session.get("/chunks/30") as response:
        parts = [await response.content.readuntil(b";") for _ in range(30)]
        assert await response.content.read() == b""
    assert parts == [b"chunk %d;" % number for number in range(30)]
    async with session.get("/big/1048576") as response:
        sizes = [len(part) async for part in response.content.iter_chunked(10_000)]
    assert sum(sizes) == 1048576
    assert max(sizes) <= 10_000


async def test_raise_for_status_and_json(session: aiohttp.ClientSession) -> None:
    async with session.get("/echo") as response:
        assert (await response.json())["method"] == "GET"
        assert response.url.host == "reviews"
        assert response.raw_headers[1] == (b"X-A", b"1")
    with pytest.raises(aiohttp.ClientResponseError) as raised:
        async with session.get("/status/404", raise_for_status=True):
            pass
    assert (raised.value.status, raised.value.message) == (404, "As Asked")


async def test_the_facts_of_a_response(session: aiohttp.ClientSession) -> None:
    async with session.get("/echo") as response:
        found = meshlib_aiohttp.facts(response)
    assert found is not None
    assert (found.cluster, found.attempts) == ("c", 1)


async def test_a_body_that_aiohttp_would_write_itself(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"x" * 300_000)
    with file.open("rb") as opened:
        async with session.post("/echo", data=opened) as response:
            assert (await response.json())["size"] == 300_000
    form = aiohttp.FormData({"a": "1"})
    form.add_field("f", b"text", filename="a.txt")
    async with session.post("/echo", data=form) as response:
        told = dict((await response.json())["headers"])
        assert told["Content-Type"].startswith("multipart/form-data; boundary=")
    async with session.post("/echo", data=b"text" * 100, compress="gzip") as response:
        told = await response.json()
        assert gzip.decompress(bytes.fromhex(told["body"])) == b"text" * 100


async def test_tracing_and_middlewares_of_the_application(mesh: FakeMesh) -> None:
    happened: list[str] = []
    config = aiohttp.TraceConfig()

    def noted(name: str) -> Any:
        async def note(*_: object) -> None:
            happened.append(name)

        return note

    config.on_request_start.append(noted("start"))
    config.on_request_headers_sent.append(noted("headers"))
    config.on_request_chunk_sent.append(noted("chunk"))
    config.on_response_chunk_received.append(noted("received"))
    config.on_request_end.append(noted("end"))

    async def signed(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        request.headers["x-signed"] = "yes"
        answered: aiohttp.ClientResponse = await handler(request)
        return answered

    connector = meshlib_aiohttp.Connector(mesh)  # type: ignore[arg-type]
    arguments: Any = {"trace_configs": [config], "middlewares": [signed]}
    async with (
        aiohttp.ClientSession(URL, connector=connector, **arguments) as session,
        session.post("/echo", data=b"x") as response,
    ):
        assert ["x-signed", "yes"] in (await response.json())["headers"]
    assert happened == ["start", "headers", "chunk", "end", "received"]


async def test_a_tracker_of_an_upload(session: aiohttp.ClientSession) -> None:
    tracker = aiohttp.UploadTracker()
    async with session.post("/echo", data=b"x" * 10, upload_tracker=tracker) as response:
        await response.read()
    await tracker.upload_complete


async def test_the_limit_of_the_connector(mesh: FakeMesh) -> None:
    connector = meshlib_aiohttp.Connector(mesh, limit=1)  # type: ignore[arg-type]
    async with aiohttp.ClientSession(URL, connector=connector) as session:
        async with session.get("/drip"):
            with pytest.raises(aiohttp.ConnectionTimeoutError):
                await session.get("/echo", timeout=aiohttp.ClientTimeout(connect=0.02))
        async with session.get("/echo") as response:
            assert response.status == 200
        del response
        kept = await session.get("/echo")  # not read, not closed
        async with session.get("/echo") as response:
            assert response.status == 200
        kept.close()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_encoded_bodies_are_decoded(coding: str) -> None:
    async def encoded(request: web.Request) -> web.Response:
        response = web.Response(body=b"0123456789" * 100_000)
        response.enable_compression(web.ContentCoding(coding))
        return response

    async with serving(encoded) as port:
        mesh = fake_mesh([port])
        async with meshlib_aiohttp.ClientSession(URL, mesh=mesh) as session:  # type: ignore[arg-type]
            async with session.get("/") as response:
                assert await response.read() == b"0123456789" * 100_000
            async with session.get("/") as response:
                size = 0
                async for part in response.content.iter_chunked(1000):
                    size += len(part)
                assert size == 1_000_000
            async with session.get("/", auto_decompress=False) as response:
                assert len(await response.read()) < 100_000


async def test_a_body_that_is_not_encoded_as_it_says() -> None:
    async def lying(request: web.Request) -> web.Response:
        return web.Response(body=b"no gzip at all", headers={"Content-Encoding": "gzip"})

    async with serving(lying) as port:
        mesh = fake_mesh([port])
        async with (
            meshlib_aiohttp.ClientSession(URL, mesh=mesh) as session,  # type: ignore[arg-type]
            session.get("/") as response,
        ):
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError, match="gzip"):
                await response.read()
        assert mesh.in_flight() == 0


async def test_websockets_are_plain_aiohttp() -> None:
    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data + "!")
        return socket

    async with serving(talk) as port:
        mesh = fake_mesh([])
        async with (
            meshlib_aiohttp.ClientSession(mesh=mesh) as session,  # type: ignore[arg-type]
            session.ws_connect(f"http://127.0.0.1:{port}/") as socket,
        ):
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello!"


async def test_https_goes_out_as_aiohttp_sends_it(tmp_path: Path) -> None:
    with tls_server(tmp_path) as (port, trusted):
        context = ssl.create_default_context(cafile=trusted)
        mesh = fake_mesh([])
        async with meshlib_aiohttp.ClientSession(mesh=mesh) as session:  # type: ignore[arg-type]
            async with session.get(f"https://localhost:{port}/", ssl=context) as response:
                assert await response.text() == "secret"
                assert meshlib_aiohttp.facts(response) is None
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(f"https://localhost:{port}/")


async def test_a_closed_session_and_wrong_arguments(mesh: FakeMesh) -> None:
    connector = meshlib_aiohttp.Connector(mesh)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="connector"):
        meshlib_aiohttp.ClientSession(connector=connector, mesh=mesh)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="both"):
        meshlib_aiohttp.Connector(mesh, namespace="default")  # type: ignore[arg-type]
    session = aiohttp.ClientSession(URL, connector=connector, connector_owner=False)
    await connector.close()
    with pytest.raises(RuntimeError, match="closed"):
        await session.get("/echo")
    await session.close()


class serving:  # noqa: N801 - a block
    """An aiohttp server with one handler while the block runs; gives its port."""

    def __init__(self, handler: Any) -> None:
        application = web.Application()
        application.router.add_get("/", handler)
        self._runner = web.AppRunner(application)

    async def __aenter__(self) -> int:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
