"""A scripted HTTP/1.1 upstream on loopback: the request itself says what becomes of each of its tries.

`x-script` lists what happens to the first try, the second, …; the last word goes for all that follow:
`503` is a status, `429|x-a=1|x-b=2` one with headers, `reset` a connection reset before the response,
`close` an orderly end before it, `cut` one in the middle of the body, `slow` a 503 after `SLOW`
seconds, `never` no answer at all. A word that ends in `@0.2` happens so many seconds later.
A response says in `x-try` which try it answers. `x-id` names the request;
`tries` tells by it when each try came and what its x-envoy-… and grpc-… headers said.
"""

import asyncio
import socket
import struct
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

SLOW = 0.4
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing resets."""


class Try(NamedTuple):
    """A request as the upstream saw it."""

    at: float
    """Seconds, on the event loop's clock."""
    told: dict[str, str]
    """Its x-envoy-… and grpc-… headers."""


@dataclass(slots=True)
class Upstream:
    """A running upstream."""

    port: int = 0
    tries: defaultdict[str, list[Try]] = field(default_factory=lambda: defaultdict(list))
    """All requests seen so far, by their `x-id`."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection stays."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:])
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        await reader.readexactly(int(headers.get("content-length", "0")))
        script = headers["x-script"].split(",")
        seen = self.tries[headers["x-id"]]
        word, _, later = script[min(len(seen), len(script) - 1)].partition("@")
        told = {name: value for name, value in headers.items() if name.startswith(("x-envoy-", "grpc-"))}
        told.pop("x-envoy-internal", None)
        seen.append(Try(asyncio.get_running_loop().time(), told))
        number = len(seen)
        if later:
            await asyncio.sleep(float(later))
        if word == "never":
            await reader.read()
        elif word == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif word == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        elif word != "close":
            await asyncio.sleep(SLOW if word == "slow" else 0)
            writer.write(_response(f"{'503' if word == 'slow' else word}|x-try={number}"))
            await writer.drain()
            return True
        return False


def _response(word: str) -> bytes:
    status, *headers = word.split("|")
    lines = [f"HTTP/1.1 {status} Scripted", "content-length: 0"]
    lines += [": ".join(header.split("=", 1)) for header in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@asynccontextmanager
async def run_upstream() -> AsyncIterator[Upstream]:
    """An upstream for as long as the block runs."""
    upstream = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(upstream.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=1024)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
