"""Against uvicorn: large bodies both ways, many at once, its keep-alive timeout."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from support.fake_mesh import FakeMesh, fake_mesh

import meshlib

URL = "http://reviews:9080/"


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Sends each part of the body back as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["raw_path"])]})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


async def collect(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Sends the body back once it is whole."""
    whole, more = b"", True
    while more:
        message = await receive()
        whole += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": whole})


@contextlib.asynccontextmanager
async def serving(app: Any, keep_alive: float = 5) -> AsyncIterator[FakeMesh]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, lifespan="off", log_level="warning", timeout_keep_alive=keep_alive)  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([listening]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield fake_mesh([listening.getsockname()[1]])
        finally:
            server.should_exit = True
            await task


async def test_large_bodies_many_at_once() -> None:
    bodies = [bytes([number]) * 1_000_000 for number in range(16)]
    async with serving(collect) as mesh, meshlib.AsyncClient(mesh=mesh, timeout=30) as client:  # type: ignore[arg-type]
        answers = await asyncio.gather(*(client.post(URL, content=body) for body in bodies))
        assert [answer.content for answer in answers] == bodies
        pool = client._transport._sender._connections._pools["c"]  # type: ignore[attr-defined]
        assert (pool.opened, pool.idle) == (16, 16)
        assert mesh.in_flight() == 0


async def test_both_ways_for_threads() -> None:
    def work(mesh: FakeMesh) -> list[int]:
        with meshlib.Client(mesh=mesh, timeout=30) as client:  # type: ignore[arg-type]
            return [len(client.post(URL, content=iter([b"x" * 50_000] * 3)).content) for _ in range(3)]

    async with serving(echo) as mesh:
        assert await asyncio.to_thread(work, mesh) == [150_000] * 3


async def test_connections_that_uvicorn_closed_are_replaced() -> None:
    async with serving(collect, 0.05) as mesh, meshlib.AsyncClient(mesh=mesh) as client:  # type: ignore[arg-type]
        for _ in range(3):
            assert (await client.post(URL, content=b"x")).content == b"x"
            await asyncio.sleep(0.1)
        pool = client._transport._sender._connections._pools["c"]  # type: ignore[attr-defined]
        assert (pool.opened, mesh.in_flight()) == (1, 0)
