"""A body that an authority is shown first, over ASGI: what is read and kept, and who is not waited for."""

import asyncio
import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from meshlib.core.actions import Reply
from meshlib.core.authz.body import BodyWanted, Found, Shown, Unread
from meshlib.core.inbound import Admitted
from meshlib_asgi import MeshMiddleware
from meshlib_asgi.body import Body

WHOLE, PART = BodyWanted(10), BodyWanted(10, partial=True)
DISCONNECT = {"type": "http.disconnect"}


def scope(*headers: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    return {"type": "http", "http_version": "1.1", "headers": list(headers), **more}


CODED = scope((b"transfer-encoding", b"chunked"))


def sized(length: int) -> dict[str, Any]:
    return scope((b"content-length", str(length).encode()))


class Client:
    """Sends pieces, then nothing more."""

    def __init__(self, *pieces: bytes, last: bool = True, leaves: bool = False) -> None:
        self.messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": piece, "more_body": not last or number < len(pieces) - 1}
            for number, piece in enumerate(pieces)
        ]
        if leaves:
            self.messages.append(DISCONNECT)
        self.given = 0

    async def receive(self) -> dict[str, Any]:
        if self.given == len(self.messages):
            await asyncio.Event().wait()
        self.given += 1
        return self.messages[self.given - 1]


async def rest(body: Body) -> list[tuple[bytes, bool]]:
    """All that the application receives."""
    found = []
    while True:
        message = await body.receive()
        found.append((message["body"], message["more_body"]))
        if not message["more_body"]:
            return found


async def test_a_whole_body_is_shown_and_given_in_one_piece() -> None:
    body = Body(sized(6), Client(b"abc", b"def").receive)
    assert await body.read(WHOLE) == Shown(b"abcdef", True, 6)
    assert await body.read(BodyWanted(6)) == Shown(b"abcdef", True, 6)
    assert await rest(body) == [(b"abcdef", False)]


async def test_a_part_is_shown_and_the_rest_follows_as_it_comes() -> None:
    client = Client(b"01234567", b"89abc", b"more", b"end")
    body = Body(CODED, client.receive)
    assert await body.read(PART) == Shown(b"0123456789", False, 13)
    assert client.given == 2
    assert await rest(body) == [(b"0123456789abc", True), (b"more", True), (b"end", False)]


async def test_too_much_is_not_even_read() -> None:
    client = Client(b"x" * 11)
    assert await Body(sized(11), client.receive).read(WHOLE) is Unread.TOO_LARGE
    assert client.given == 0
    client = Client(b"x" * 8, b"x" * 3, b"x" * 1000)
    assert await Body(CODED, client.receive).read(WHOLE) is Unread.TOO_LARGE
    assert client.given == 2


@pytest.mark.parametrize(
    "given", [scope(), sized(0), scope(type="websocket"), scope((b"content-length", b"5"), type="websocket")]
)
async def test_without_a_body_nobody_waits(given: dict[str, Any]) -> None:
    client = Client(b"x")
    body = Body(given, client.receive)
    assert await body.read(WHOLE) is None
    assert client.given == 0
    assert (await body.receive())["body"] == b"x"


@pytest.mark.parametrize(
    ("given", "found"), [(CODED, Shown(b"")), (scope(http_version="2"), None)], ids=["chunked", "HTTP/2"]
)
async def test_an_empty_body(given: dict[str, Any], found: Found) -> None:
    body = Body(given, Client(b"").receive)
    assert await body.read(WHOLE) == found
    assert await rest(body) == [(b"", False)]


async def test_who_is_too_slow_is_not_waited_for() -> None:
    body = Body(sized(6), Client(b"abc", last=False).receive, 0.01)
    assert await body.read(WHOLE) is Unread.TOO_SLOW
    assert await body.read(WHOLE) is Unread.TOO_SLOW


@pytest.mark.parametrize("wanted", [WHOLE, PART])
async def test_who_leaves_is_not_asked_about(wanted: BodyWanted) -> None:
    assert await Body(sized(6), Client(b"abc", last=False, leaves=True).receive).read(wanted) is Unread.GONE


async def test_byte_by_byte_costs_no_more_memory() -> None:
    body = Body(CODED, Client(*[b"x"] * 5000).receive)
    assert await body.read(BodyWanted(4000)) is Unread.TOO_LARGE
    assert body._beginning is not None
    assert sys.getsizeof(body._beginning._data) < 8192


class Guard:
    """A gate that shows the body to an authority, which says `verdict`."""

    identified = staticmethod(lambda head: head)

    mesh = SimpleNamespace(telemetry=SimpleNamespace(wants=lambda listener: False))
    port, verdict = 9080, Unread.TOO_SLOW.reply("1")
    principal = staticmethod(lambda chain: "")

    async def aprepare(self) -> None:
        """The policy is known."""

    async def aadmit(self, head: Any, peer: Any, read: Any) -> Admitted | Reply:
        assert await read(WHOLE) == Shown(b"abc", True, 3)
        return self.verdict


async def answered(version: str) -> Iterable[bytes]:
    """The names of the headers of a refusal."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    guard: Any = Guard()
    asked = {**sized(3), "http_version": version, "path": "/", "client": None, "server": ("h", 1)}
    asked["headers"].append((b"host", b"h"))
    await MeshMiddleware(_unasked, guard)(asked, Client(b"abc").receive, send)
    assert (sent[0]["status"], sent[1]["body"]) == (408, b"request timeout")
    return [name for name, _ in sent[0]["headers"]]


async def _unasked(*_: Any) -> None:
    raise AssertionError("the application was asked")


async def test_the_connection_ends_with_a_body_that_nobody_reads() -> None:
    assert b"connection" in await answered("1.1")
    assert b"connection" not in await answered("2")
