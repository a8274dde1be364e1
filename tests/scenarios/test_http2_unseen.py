"""A stream that its peer has not processed is made once more, unseen, where that does no harm."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.commands import wait_until
from support.fake_mesh import FakeMesh, fake_mesh
from support.h2_server import H2Server, h2_server

import meshlib
from meshlib.core.http2 import Http2
from meshlib.errors import UpstreamReset

URL = "http://reviews:9080"


@pytest.fixture
def server() -> Iterator[H2Server]:
    with h2_server() as made:
        yield made


async def ask(mesh: FakeMesh, tasks: bool, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
    """The responses to requests that are made one after the other, of one client."""

    def arguments(number: int, method: str, path: str, content: Any) -> dict[str, Any]:
        return {"method": method, "url": path, "content": content, "headers": {"x-id": str(number)}}

    if tasks:
        async with meshlib.AsyncClient(mesh=mesh, base_url=URL, timeout=60) as client:  # type: ignore[arg-type]
            return [await client.request(**arguments(n, *each)) for n, each in enumerate(requests)]

    def block() -> list[httpx.Response]:
        with meshlib.Client(mesh=mesh, base_url=URL, timeout=60) as client:  # type: ignore[arg-type]
            return [client.request(**arguments(n, *each)) for n, each in enumerate(requests)]

    return await asyncio.to_thread(block)


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize(
    ("method", "path", "connections"),
    [
        ("POST", "/once/refuse", 2),  # GOAWAY, the stream is above
        ("POST", "/once/reset/7", 1),  # REFUSED_STREAM
        ("GET", "/once/close", 2),  # lost
    ],
)
async def test_it_is_made_once_more(
    server: H2Server, tasks: bool, method: str, path: str, connections: int
) -> None:
    mesh = fake_mesh([server.port], http2=Http2())
    first, second = await ask(mesh, tasks, ("GET", "/echo", b""), (method, path, b"body"))
    assert (first.status_code, second.status_code, second.content) == (200, 200, b"body")
    assert second.extensions["meshlib"].attempts == 1
    assert (server.connections, len(server.requests), mesh.in_flight()) == (connections, 3, 0)


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize(
    ("before", "method", "path", "seen"),
    [
        ([("GET", "/echo", b"")], "POST", "/once/close", 2),  # it may have been processed
        ([("GET", "/echo", b"")], "GET", "/once/reset/2", 2),  # it was
        ([("GET", "/echo", b"")], "GET", "/once/reset/1", 2),
        ([], "GET", "/once/refuse", 1),  # a connection's first: the peer takes nothing
        ([], "GET", "/once/reset/7", 1),
        ([("GET", "/echo", b"")], "GET", "/reset/7", 3),  # again and again
        ([("GET", "/echo", b"")], "GET", "/refuse", 3),
    ],
)
async def test_what_may_have_been_processed_is_not_and_nothing_for_ever(
    server: H2Server, tasks: bool, before: list[Any], method: str, path: str, seen: int
) -> None:
    mesh = fake_mesh([server.port], http2=Http2())
    with pytest.raises((UpstreamReset, meshlib.UpstreamProtocolError)) as raised:
        await ask(mesh, tasks, *before, (method, path, b""))
    assert raised.value.flight is not None
    assert raised.value.flight.attempts == 1
    assert (len(server.requests), mesh.in_flight()) == (seen, 0)


@pytest.mark.parametrize("tasks", [False, True])
async def test_a_stream_of_the_application_is_left_to_the_rule(server: H2Server, tasks: bool) -> None:
    async def pieces() -> Any:
        yield b"body"

    content: Any = pieces() if tasks else iter([b"body"])
    mesh = fake_mesh([server.port], http2=Http2())
    with pytest.raises(UpstreamReset):
        await ask(mesh, tasks, ("GET", "/echo", b""), ("POST", "/once/refuse", content))
    policy = {"retry_policy": {"retry_on": "refused-stream", "num_retries": 1}}
    mesh = fake_mesh([server.port], route=policy, http2=Http2())
    content = pieces() if tasks else iter([b"body"])
    server.tried.clear()
    answers = await ask(mesh, tasks, ("GET", "/echo", b""), ("POST", "/once/refuse", content))
    assert (answers[1].content, answers[1].extensions["meshlib"].attempts) == (b"body", 2)


@pytest.mark.parametrize("tasks", [False, True])
async def test_a_goaway_counts_even_if_the_reset_is_noticed_first(server: H2Server, tasks: bool) -> None:
    """Nothing is read between the two requests: the second finds out when it writes."""
    mesh = fake_mesh([server.port], http2=Http2())

    def leave() -> None:
        server.go.set()
        wait_until(lambda: not server.open, 60, "the server to be gone")

    if tasks:
        async with meshlib.AsyncClient(mesh=mesh, base_url=URL, timeout=60) as client:  # type: ignore[arg-type]
            assert (await client.get("/leave")).content == b"bye"
            leave()
            assert (await client.post("/echo", content=b"body")).content == b"body"
    else:
        with meshlib.Client(mesh=mesh, base_url=URL, timeout=60) as blocking:  # type: ignore[arg-type]
            assert blocking.get("/leave").content == b"bye"
            leave()
            assert blocking.post("/echo", content=b"body").content == b"body"
    assert (server.connections, len(server.requests)) == (2, 2)
