"""What a peer may send: the codecs of HTTP/1.1 and HTTP/2, whole and in pieces."""

import contextlib
from typing import Any

from fuzz.choices import Choices

from meshlib.core.request import RequestHead, ResponseHead
from meshlib.dataplane.http import h2codec
from meshlib.dataplane.http.codec import Codec
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.http.syntax import Malformed

_METHODS = ("GET", "HEAD", "POST", "CONNECT")
_UPGRADE = ((b"Connection", b"upgrade"), (b"Upgrade", b"x"))
_PREFIXES = (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


def response(data: bytes) -> None:
    """HTTP/1.1: a response is whole, or Malformed; how its bytes are cut does not matter."""
    choices = Choices(data)
    method, headers = choices.one(_METHODS), choices.one(((), _UPGRADE))
    start, closes, size = choices.one(_PREFIXES), choices.below(2) == 1, 1 + choices.below(8)
    said = start + choices.rest()
    head = RequestHead(method, "http", "a", "/", headers)
    whole = _read(head, [said] if said else [], closes=closes)
    pieces = [said[at : at + size] for at in range(0, len(said), size)]
    cut = _read(head, pieces, closes=closes)
    assert whole[-1] == cut[-1], (whole, cut)
    if whole[-1] != "malformed":
        assert whole == cut, (whole, cut)


def _read(asked: RequestHead, pieces: list[bytes], *, closes: bool) -> list[Any]:
    """The heads and the body that come of it, whether the connection may be used again, how it ended."""
    codec = Codec()
    codec.whole(asked, b"")
    found: list[Any] = []
    body = b""
    steps = 0
    ended = "waits"
    feed = [*pieces, b""] if closes else pieces
    try:
        for piece in feed:
            codec.receive(piece)
            while (part := codec.next()) is not Need.DATA:
                steps += 1
                assert steps < 100_000, "no end"
                if part is Need.NOTHING:
                    ended = "whole"
                    break
                if isinstance(part, ResponseHead):
                    assert 100 <= part.status <= 999
                    assert all(name and b"\n" not in name + value for name, value in part.headers)
                    found.append(part)
                else:
                    assert isinstance(part, bytes)
                    assert part
                    body += part
    except Malformed:
        assert not codec.reuse()
        return [*found, body, False, "malformed"]
    assert len(found) <= 1
    return [*found, body, codec.reuse(), ended]


_KINDS = tuple(range(11))
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_BLOCK = bytes.fromhex("88")
"""`:status: 200` in HPACK."""


def frames(data: bytes) -> None:
    """HTTP/2: any frames at all. Nothing is raised; a stream has its response, waits, or fails."""
    choices = Choices(data)
    said = b"" if choices.below(8) == 7 else _SETTINGS
    while choices.left:
        said += _frame(choices)
    size = 1 + choices.below(8)
    _spoken([said])
    _spoken([said[at : at + size] for at in range(0, len(said), size)])


def bytes_of_h2(data: bytes) -> None:
    """HTTP/2: any bytes after the greeting."""
    _spoken([_SETTINGS, data])


def _frame(choices: Choices) -> bytes:
    kind = choices.one(_KINDS)
    flags = choices.below(256)
    stream = choices.one((1, 3, 0, 5, 2, 0x7FFFFFFF))
    payload = choices.take(choices.one((0, 1, 4, 5, 6, 8, 9, 12, 17, 40)))
    if kind == 1 and choices.below(2) == 0:
        flags, payload = flags & ~0x28 | 4, _BLOCK + payload
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _spoken(pieces: list[bytes]) -> None:
    codec = h2codec.Codec()
    get = codec.open(RequestHead("GET", "http", "a", "/", ()), whole=True)
    post = codec.open(RequestHead("POST", "http", "a", "/", ()), whole=False)
    codec.outgoing()
    for number, piece in enumerate([*pieces, b""]):
        codec.receive(piece, float(number))
        codec.outgoing()
        for stream in (get, post):
            _hear(codec, stream)
        if not post.over and codec.failed is None:
            codec.send(post, b"x" * 100)
    assert codec.failed is not None
    for stream in (get, post):
        assert stream.over
        codec.release(stream)
    codec.outgoing()


def _hear(codec: h2codec.Codec, stream: h2codec.Stream) -> None:
    with contextlib.suppress(h2codec.Reset):
        while isinstance(codec.next(stream), ResponseHead | bytes):
            pass
