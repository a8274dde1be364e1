"""Requests byte by byte over keep-alive connections: nothing between a case and Envoy tidies them up."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Call:
    """One request to make."""

    method: str
    authority: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def is_grpc(self) -> bool:
        """Whether Envoy takes it for gRPC: by its content-type."""
        kind = ",".join(value for name, value in self.headers if value and name.lower() == "content-type")
        return kind == "application/grpc" or kind.startswith("application/grpc+")

    def encode(self, case: int) -> bytes:
        """The bytes on the wire; `case` picks the route configuration."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {self.authority}", f"x-case: {case}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.method not in ("GET", "DELETE", "OPTIONS"):
            lines.append("content-length: 0")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def __str__(self) -> str:
        return (
            f"{self.method} {self.path}  Host: {self.authority}  {' | '.join(map(': '.join, self.headers))}"
        )


@dataclass(frozen=True, slots=True)
class Received:
    """A response as it came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str


async def ask_all(port: int, calls: Sequence[tuple[int, Call]]) -> list[Received]:
    """The answers to all calls, each given with its case's number, in their order."""
    results: list[Received | None] = [None] * len(calls)
    todo = iter(range(len(calls)))

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for number in todo:
                writer.write(calls[number][1].encode(calls[number][0]))
                results[number] = got = await receive(reader)
                if ("connection", "close") in got.headers:
                    writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
        finally:
            writer.close()
            await writer.wait_closed()

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(work())
    return [result for result in results if result is not None]


async def receive(reader: asyncio.StreamReader, *, body: bool = True) -> Received:
    """One response; `body` false: it has none, as after HEAD."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    headers = tuple(
        (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)
    )
    status = int(first.split(" ", 2)[1])
    found = dict(headers)
    content = b""
    if body and found.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            content += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif body:
        content = await reader.readexactly(int(found.get("content-length", "0")))
    return Received(status, headers, content.decode("latin-1"))
