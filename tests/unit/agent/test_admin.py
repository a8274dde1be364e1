"""What is made of Envoy's admin interface; a small server on a Unix socket stands in for it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from meshlib.agent.admin import Admin, AdminUnreachable, Listening


@contextlib.asynccontextmanager
async def answering(
    folder: Path, answers: Mapping[str, bytes], chunked: bool = False
) -> AsyncIterator[Admin]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1].partition("?")[0]
        body = answers.get(path)
        status = b"200 OK" if body is not None else b"404 Not Found"
        body = body or b""
        if chunked:
            parts = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:3], body[3:]) if p)
            writer.write(
                b"HTTP/1.1 " + status + b"\r\ntransfer-encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"
            )
        else:
            writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "s")
    try:
        yield Admin(folder / "s")
    finally:
        server.close()


def socket(address: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": address, "port_value": port}}


LISTENERS = {
    "listener_statuses": [
        {"name": "b", "local_address": socket("::1", 2)},
        {"name": "a", "local_address": socket("127.0.0.1", 1)},
        {"name": "c", "local_address": {"pipe": {"path": "/x"}}},
    ]
}


@pytest.mark.parametrize("chunked", [False, True])
async def test_what_it_says(tmp_path: Path, chunked: bool) -> None:
    answers = {
        "/ready": b"LIVE\n",
        "/listeners": json.dumps(LISTENERS).encode(),
        "/stats": b'{"stats": [{"name": "x", "value": 2}, {"name": "http.admin.x", "value": 1}, '
        b'{"name": "y", "value": 3}, {"histograms": {}}]}',
    }
    async with answering(tmp_path, answers, chunked) as admin:
        assert await admin.ready()
        assert await admin.listening() == (
            Listening("a", "127.0.0.1:1"),
            Listening("b", "[::1]:2"),
            Listening("c", "unix:/x"),
        )
        assert await admin.count("x") == 5, "who asks is not counted"


async def test_what_is_no_answer(tmp_path: Path) -> None:
    async with answering(tmp_path, {"/listeners": b"<html>"}) as admin:
        assert not await admin.ready()
        with pytest.raises(AdminUnreachable, match="no JSON"):
            await admin.listening()
    with pytest.raises(AdminUnreachable):
        await Admin(tmp_path / "nobody").listening()
    assert not await Admin(tmp_path / "nobody").ready()
