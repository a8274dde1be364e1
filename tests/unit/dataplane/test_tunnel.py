"""What a proxy answers, byte by byte and all at once."""

import pytest

from meshlib.core.tunnel import Tunnel
from meshlib.dataplane.tcp.tunnel import LONGEST, Answer, NoTunnel, asking

OPEN = b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n"


def test_what_is_asked() -> None:
    assert asking(Tunnel("[::1]:22")) == b"CONNECT [::1]:22 HTTP/1.1\r\nhost: [::1]:22\r\n\r\n"


@pytest.mark.parametrize("status", ["200 OK", "204", "299 x"])
@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_open_tunnel(status: str, before: bytes) -> None:
    said = before + f"HTTP/1.1 {status}\r\ncontent-length: 5\r\n\r\n".encode()
    at_once, slow = Answer(), Answer()
    assert at_once.receive(said + b"more")
    assert at_once.rest == b"more"
    assert [slow.receive(said[n : n + 1]) for n in range(len(said))] == [False] * (len(said) - 1) + [True]
    assert slow.rest == b""


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 300 x\r\n\r\n", "answered 300"),
        (b"HTTP/1.0 407 x\r\n\r\n", "answered 407"),
        (b"HTTP/2 200 x\r\n\r\n", "no HTTP/1.1"),
        (b"HTTP/1.1 2000\r\n\r\n", "no HTTP/1.1"),
        (b"HTTP/1.1 099 x\r\n\r\n", "no HTTP/1.1"),
        (b"HTTP/1.1  200\r\n\r\n", "no HTTP/1.1"),
        (b"HTTP/1.1 20\r\n\r\n", "no HTTP/1.1"),
        (b"hello\r\n\r\n", "no HTTP/1.1"),
        (b"\r\n\r\n", "no HTTP/1.1"),
        (b"HTTP/1.1 2" + b"x" * LONGEST, "too long"),
        (b"h", "no HTTP/1.1$"),
        (b"HTTP/2", "no HTTP/1.1$"),
        (b"HTTP/1.1 100 x\r\n\r\nx", "no HTTP/1.1$"),
        (b"\0", "no HTTP/1.1; it may be HTTP/2"),
        (b"\0\0\x06\x04\0\0\0\0\0", "no HTTP/1.1; it may be HTTP/2"),
        (b"", "closed"),
    ],
)
def test_no_tunnel(said: bytes, why: str) -> None:
    with pytest.raises(NoTunnel, match=why):
        Answer().receive(said)


def test_a_proxy_that_ends_in_the_middle() -> None:
    answer = Answer()
    assert not answer.receive(OPEN[:-1])
    with pytest.raises(NoTunnel, match="closed"):
        answer.receive(b"")
