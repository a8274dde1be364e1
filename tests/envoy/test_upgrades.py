"""Requests that ask for WebSocket: Envoy and our whole path try, wait and give up alike."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.envoy import run_envoy
from support.fake_mesh import fake_mesh

import meshlib

ROUTE: dict[str, Any] = {
    "timeout": "1.5s",
    "retry_policy": {
        "retry_on": "5xx",
        "num_retries": 3,
        "per_try_timeout": "0.5s",
        "retry_back_off": {"base_interval": "0.001s"},
    },
}
PATHS = ("/switch", "/503,503,switch", "/close,switch", "/503", "/404", "/never,switch", "/never")
TOLD = {"/switch": (101, b"helloping", 1), "/404": (404, b"no", 1), "/503": (503, b"no", 4)}
ANSWERS = {"503": b"HTTP/1.1 503 No", "404": b"HTTP/1.1 404 No", "200": b"HTTP/1.1 200 OK"}
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello"


class Upstream:
    """The path says what becomes of each try of its request; the last word goes for all that follow."""

    def __init__(self) -> None:
        self.port = 0
        self.tries: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        words = path[1:].split(",")
        word = words[min(self.tries[path], len(words) - 1)]
        self.tries[path] += 1
        if word == "switch":
            writer.write(SWITCH)
            while data := await reader.read(1000):
                writer.write(data)
        elif word == "never":
            await reader.read()
        elif word in ANSWERS:
            writer.write(ANSWERS[word] + b"\r\ncontent-length: 2\r\n\r\nno")
            return True
        return False


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(made.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def bootstrap(port: int) -> dict[str, Any]:
    extensions = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{extensions}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "a",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [
            {"name": "r", "typed_config": {"@type": f"{extensions}.http.router.v3.Router"}},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "v",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c", **ROUTE}}],
                }
            ]
        },
    }

    def at(port: int) -> dict[str, Any]:
        return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}

    filters = [{"filters": [{"name": "h", "typed_config": manager}]}]
    endpoints = {"cluster_name": "c", "endpoints": [{"lb_endpoints": [{"endpoint": at(port)}]}]}
    return {
        "static_resources": {
            "listeners": [{"name": "l", **at(0), "filter_chains": filters}],
            "clusters": [{"name": "c", "type": "STATIC", "load_assignment": endpoints}],
        }
    }


async def of_envoy(port: int, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ask = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    writer.write(ask.encode())
    status = int((await reader.readuntil(b"\r\n\r\n")).split()[1])
    if status == 101:
        await asyncio.sleep(1.6)  # longer than the route's time
        writer.write(b"ping")
        said = await reader.readexactly(9)
    else:
        said = b"" if status == 504 else await reader.readexactly(2)
    writer.close()
    return status, said


async def whole_of_envoy(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode()
    )
    said = await reader.read()
    writer.close()
    return said


async def of_ours(client: meshlib.AsyncClient, path: str) -> tuple[int, bytes]:
    try:
        asked = client.stream("GET", path, headers={"connection": "Upgrade", "upgrade": "websocket"})
        async with asked as response:
            if response.status_code != 101:
                return response.status_code, await response.aread()
            stream = response.extensions["network_stream"]
            await asyncio.sleep(1.6)
            await stream.write(b"ping")
            said = b""
            while len(said) < 9:
                said += await stream.read(9)
            return 101, said
    except meshlib.UpstreamTimedOut as error:
        return error.status, b""


async def test_upgrades_are_tried_as_envoy_tries_them(tmp_path: Path) -> None:
    async with upstream() as theirs, upstream() as ours:
        async with run_envoy(bootstrap(theirs.port), tmp_path) as envoy:
            asked = [of_envoy(envoy.listeners["l"], path) for path in PATHS]
            expected = dict(zip(PATHS, await asyncio.gather(*asked), strict=True))
            lost = await whole_of_envoy(envoy.listeners["l"], "/200")
        mesh: Any = fake_mesh([ours.port], route=ROUTE)
        async with meshlib.AsyncClient(mesh=mesh, base_url="http://reviews:9080") as client:
            found = dict(
                zip(PATHS, await asyncio.gather(*(of_ours(client, path) for path in PATHS)), strict=True)
            )
            kept = await of_ours(client, "/200")
        assert found == expected
        # An upgrade that is answered with 200: Envoy loses the body (docs/how-to/gateway.md); we do not.
        assert (lost[:15], lost[-23:]) == (b"HTTP/1.1 200 OK", b"\r\ncontent-length: 0\r\n\r\n")
        assert kept == (200, b"no")
        assert ours.tries == theirs.tries
        assert mesh.in_flight() == 0
        assert {path: (*expected[path], theirs.tries[path]) for path in TOLD} == TOLD
