"""A WebSocket server on loopback, of the `websockets` library: it gives back what it is sent."""

import asyncio
import contextlib
import http
import threading
from collections.abc import Iterator
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response


async def _answer(connection: ServerConnection) -> None:
    if connection.request is not None and connection.request.path == "/greets":
        await connection.send("welcome")
    async for message in connection:
        if message == "close":
            return
        await connection.send(message)


async def _admit(connection: ServerConnection, request: Request) -> Response | None:
    if request.path == "/moved":
        moved = connection.respond(http.HTTPStatus.FOUND, "")
        moved.headers["Location"] = "/live"
        return moved
    return connection.respond(http.HTTPStatus.FORBIDDEN, "not you\n") if request.path == "/no" else None


@contextlib.contextmanager
def websocket_server(**arguments: Any) -> Iterator[int]:
    """Its port. `/greets` speaks first, `/no` is forbidden, `/moved` is at `/live`."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    end = asyncio.Event()
    ports: list[int] = []

    async def run() -> None:
        async with serve(_answer, "127.0.0.1", 0, process_request=_admit, **arguments) as server:
            ports.append(next(iter(server.sockets)).getsockname()[1])
            started.set()
            await end.wait()

    def main() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=main)
    thread.start()
    assert started.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
