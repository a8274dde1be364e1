"""The socket that leads to the control service: what is written comes there, and back; its end ends both."""

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.ports import free_port

from meshlib.dataplane.control_socket import leading_to, listen_at
from meshlib.errors import ConfigError

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Gives back what comes, and ends after a line `end`."""
    while piece := await reader.read(100_000):
        writer.write(piece)
        await writer.drain()
        if piece.endswith(b"end\n"):
            break
    writer.close()


@asynccontextmanager
async def control(port: int) -> AsyncIterator[None]:
    async with await asyncio.start_server(echo, "127.0.0.1", port):
        yield


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield reader, writer
    finally:
        writer.close()


async def said(stream: Stream, text: bytes) -> bytes:
    stream[1].write(text)
    async with asyncio.timeout(20):
        return await stream[0].readexactly(len(text))


def test_it_leads_there_and_back_and_ends_with_it(tmp_path: Path) -> None:
    path, port = tmp_path / "s", free_port()

    async def run() -> None:
        async with leading_to(f"127.0.0.1:{port}", listen_at(path), lambda: None):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with connected(path) as early, asyncio.timeout(20):
                assert await early[0].read() == b""  # nobody is there
            async with control(port), connected(path) as one, connected(path) as other:
                much = b"x" * 2_000_000 + b"\n"
                assert await asyncio.gather(said(one, much), said(other, b"hello\n")) == [much, b"hello\n"]
                assert await said(one, b"end\n") == b"end\n"
                assert await one[0].read() == b""
                assert await said(other, b"still\n") == b"still\n"
        assert not path.exists()

    asyncio.run(run())


def test_a_socket_left_behind_is_replaced_and_a_long_path_refused(tmp_path: Path) -> None:
    async def run(path: Path) -> None:
        async with leading_to("127.0.0.1:1", listen_at(path), lambda: None):
            assert path.is_socket()

    (tmp_path / "s").touch()
    asyncio.run(run(tmp_path / "s"))
    with pytest.raises(ConfigError, match="too long for a socket's path"):
        asyncio.run(run(tmp_path / ("s" * 104)))
    with pytest.raises(ConfigError, match="can't be listened at"):
        asyncio.run(run(tmp_path / "none/s"))
