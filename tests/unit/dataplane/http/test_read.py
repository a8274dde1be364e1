"""Responses as a hostile peer sends them: what is one and where it ends, however the bytes are cut."""

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshlib.core.request import Header, ResponseHead
from meshlib.dataplane.http.read import (
    LARGEST_HEAD,
    MOST_HEADERS,
    MOST_INFORMED,
    Need,
    Reader,
)
from meshlib.dataplane.http.syntax import Malformed

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
TWO = OK + b"Content-Length: 2\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass
class Seen:
    """What a reader made of bytes."""

    status: int = 0
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    whole: bool = False
    again: bool = False
    error: str = field(default="", compare=False)
    failed: bool = False


def read(pieces: Iterable[bytes], method: str = "GET", upgrade: bool = False) -> Seen:
    """`b""` among the pieces: the peer closes."""
    reader, seen = Reader(), Seen()
    reader.expect(method, upgrade)
    try:
        for piece in pieces:
            reader.receive(piece)
            while not isinstance(part := reader.next(), Need):
                if isinstance(part, ResponseHead):
                    seen.status, seen.headers = part.status, part.headers
                else:
                    assert part
                    seen.body += part
            seen.whole = part is Need.NOTHING
    except Malformed as error:
        return Seen(failed=True, error=str(error))
    seen.again = reader.clean
    return seen


def cuts(data: bytes, closed: bool = False) -> Iterator[list[bytes]]:
    """Whole, byte by byte, in two at every place near an end of a line, and in random pieces."""
    end = [b""] if closed else []
    yield [data, *end]
    if len(data) < 3000:
        yield [data[at : at + 1] for at in range(len(data))] + end
        for at in range(1, len(data)):
            if data[at - 1] in b"\r\n" or data[at] in b"\r\n":
                yield [data[:at], data[at:], *end]
    dice = random.Random(len(data))
    for _ in range(10):
        places = sorted({0, len(data), *(dice.randrange(len(data)) for _ in range(dice.randint(1, 6)))})
        yield [data[a:b] for a, b in itertools.pairwise(places)] + end


def with_headers(*lines: bytes, body: bytes = b"") -> bytes:
    return OK + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


GOOD: dict[str, tuple[bytes, bytes, bool]] = {
    # name: bytes, the body, whether the connection may be used again
    "a length": (TWO + b"hi", b"hi", True),
    "length zero": (with_headers(b"Content-Length: 0"), b"", True),
    "a padded length": (with_headers(b"content-LENGTH: \t 0002  ", body=b"hi"), b"hi", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"", True),
    "an empty reason": (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", b"", True),
    "a reason in Latin-1": (b"HTTP/1.1 200 \xfcber \t gut\r\nContent-Length: 0\r\n\r\n", b"", True),
    "an unknown status": (b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n", b"", True),
    "an empty header": (with_headers(b"A:", b"B: ", b"Content-Length: 0"), b"", True),
    "close": (with_headers(b"Connection: close", b"Content-Length: 2", body=b"hi"), b"hi", False),
    "close among others": (
        with_headers(b"Connection: a", b"connection: x ,ClOsE", b"Content-Length: 0"),
        b"",
        False,
    ),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi", False),
    "1.0 that would be kept": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
        b"hi",
        False,
    ),
    "204 with a length": (b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n", b"", True),
    "204 with chunks": (b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"", True),
    "304 with a length": (b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", b"", True),
    "304 with chunks": (b"HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"", True),
    "304 with a body": (b"HTTP/1.1 304 No\r\nContent-Length: 2\r\n\r\nhi", b"", False),
    "upgrade that was not made": (
        with_headers(b"Upgrade: h2c", b"Connection: upgrade", b"Content-Length: 2", body=b"hi"),
        b"hi",
        True,
    ),
    "chunks": (CHUNKED + b"2\r\nhi\r\n00A\r\n0123456789\r\n0\r\n\r\n", b"hi0123456789", True),
    "chunks and close": (
        with_headers(
            b"Connection: close", b"Transfer-Encoding: chunked", body=b"2\r\nhi\r\n0\r\n\r\n"
        ),
        b"hi",
        False,
    ),
    "chunked and a tab": (with_headers(b"Transfer-Encoding:\tchunked \t", body=b"0\r\n\r\n"), b"", True),
    "CHUNKED": (with_headers(b"transfer-encoding: CHUNKED ", body=b"0\r\n\r\n"), b"", True),
    "line breaks in chunks": (CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", True),
    "chunk extensions": (CHUNKED + b'2;a=b;c="q;x"\r\nhi\r\n000;z\r\n\r\n', b"hi", True),
    "trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nX: t\r\nDigest: u\r\n\r\n", b"hi", True),
    "surplus after a length": (TWO + b"hi!", b"hi", False),
    "a line break too many": (TWO + b"hi\r\n", b"hi", False),
    "a response too many": (TWO + b"hi" + TWO + b"hi", b"hi", False),
    "surplus after chunks": (CHUNKED + b"2\r\nhi\r\n0\r\n\r\nx", b"hi", False),
    "a line break after chunks": (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n\r\n", b"hi", False),
    "a LF after chunks": (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n\n", b"hi", False),
    "a CR after trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nX: t\r\n\r\n\r", b"hi", False),
    "a response after chunks": (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + TWO + b"hi", b"hi", False),
    "a head after chunks": (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + OK + b"\r\n", b"hi", False),
    "line breaks and a head after chunks": (CHUNKED + b"0\r\n\r\n\r\n\r\n" + CHUNKED, b"", False),
    "chunks after chunks": (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi", False),
    "informed": (CONTINUE + b"HTTP/1.1 103 H\r\nLink: a\r\n\r\n" + TWO + b"hi", b"hi", True),
    "informed with a length": (b"HTTP/1.1 102 P\r\nContent-Length: 9\r\n\r\n" + TWO + b"hi", b"hi", True),
    "informed often": (CONTINUE * MOST_INFORMED + TWO + b"hi", b"hi", True),
    "many headers": (
        with_headers(*[b"a: b"] * (MOST_HEADERS - 1), b"Content-Length: 2", body=b"hi"),
        b"hi",
        True,
    ),
    "a large head": (
        with_headers(b"a: " + b"b" * (LARGEST_HEAD - 43), b"Content-Length: 2", body=b"hi"),
        b"hi",
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_responses(name: str) -> None:
    data, body, again = GOOD[name]
    for pieces in cuts(data):
        seen = read(pieces)
        assert (seen.error, seen.body, seen.whole, seen.again) == ("", body, True, again), pieces


def test_the_largest_head_is_as_large_as_said() -> None:
    assert GOOD["a large head"][0].index(b"\r\n\r\n") + 4 == LARGEST_HEAD


BAD: dict[str, bytes] = {
    # lengths
    "two lengths": with_headers(b"Content-Length: 1", b"Content-Length: 2", body=b"hi"),
    "one length twice": with_headers(b"Content-Length: 2", b"content-length: 2", body=b"hi"),
    "one length twice in a line": with_headers(b"Content-Length: 2, 2", body=b"hi"),
    "an empty length": with_headers(b"Content-Length:", body=b"hi"),
    "a signed length": with_headers(b"Content-Length: +2", body=b"hi"),
    "a negative length": with_headers(b"Content-Length: -2", body=b"hi"),
    "a hexadecimal length": with_headers(b"Content-Length: 0x2", body=b"hi"),
    "a length with a point": with_headers(b"Content-Length: 2.0", body=b"hi"),
    "a length with an underscore": with_headers(b"Content-Length: 1_0", body=b"0123456789"),
    "a length in other digits": with_headers("Content-Length: \u0662".encode(), body=b"hi"),
    "a length of two words": with_headers(b"Content-Length: 2 2", body=b"hi"),
    "a length past 64 bits": with_headers(b"Content-Length: 18446744073709551618", body=b"hi"),
    # codings
    "length and chunks": with_headers(
        b"Content-Length: 2", b"Transfer-Encoding: chunked", body=b"2\r\nhi\r\n0\r\n\r\n"
    ),
    "chunks and length": with_headers(
        b"Transfer-Encoding: chunked", b"Content-Length: 2", body=b"2\r\nhi\r\n0\r\n\r\n"
    ),
    "304 with both": b"HTTP/1.1 304 No\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "another coding": with_headers(b"Transfer-Encoding: gzip", body=b"hi"),
    "identity": with_headers(b"Transfer-Encoding: identity", body=b"hi"),
    "another coding last": with_headers(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "another coding first": with_headers(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked twice": with_headers(
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
    ),
    "chunked twice in a line": with_headers(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "nearly chunked": with_headers(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunked with a tab in it": with_headers(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "quoted chunked": with_headers(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    "an empty coding": with_headers(b"Transfer-Encoding:", body=b"0\r\n\r\n"),
    "chunks in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    # chunks
    "no size": CHUNKED + b"\r\nhi\r\n0\r\n\r\n",
    "a size that is none": CHUNKED + b"zz\r\nhi\r\n0\r\n\r\n",
    "a size with 0x": CHUNKED + b"0x2\r\nhi\r\n0\r\n\r\n",
    "a signed size": CHUNKED + b"+2\r\nhi\r\n0\r\n\r\n",
    "a negative size": CHUNKED + b"-2\r\nhi\r\n0\r\n\r\n",
    "a blank before a size": CHUNKED + b" 2\r\nhi\r\n0\r\n\r\n",
    "a blank after a size": CHUNKED + b"2 \r\nhi\r\n0\r\n\r\n",
    "a size past 64 bits": CHUNKED + b"10000000000000002\r\nhi\r\n0\r\n\r\n",
    "an extension with NUL": CHUNKED + b"2;a\0\r\nhi\r\n0\r\n\r\n",
    "an extension with LF": CHUNKED + b"2;a\nhi\r\n0\r\n\r\n",
    "an extension with CR": CHUNKED + b"2;a\rb\r\nhi\r\n0\r\n\r\n",
    "an extension with a quoted LF": CHUNKED + b'2;a="\n"\r\nhi\r\n0\r\n\r\n',
    "a size that ends with LF": CHUNKED + b"2\nhi\r\n0\r\n\r\n",
    "a chunk that ends with LF": CHUNKED + b"2\r\nhi\n0\r\n\r\n",
    "a chunk that ends with CR": CHUNKED + b"2\r\nhi\r0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"2\r\nhi!\r\n0\r\n\r\n",
    "a chunk shorter than its size": CHUNKED + b"3\r\nhi\r\n0\r\n\r\n",
    "a last LF": CHUNKED + b"2\r\nhi\r\n0\r\n\n",
    "a last size that ends with LF": CHUNKED + b"2\r\nhi\r\n0\n\r\n",
    "a trailer that is none": CHUNKED + b"0\r\nX t\r\n\r\n",
    "a folded trailer": CHUNKED + b"0\r\nX: t\r\n u\r\n\r\n",
    "a trailer with NUL": CHUNKED + b"0\r\nX: t\0\r\n\r\n",
    "a trailer with LF": CHUNKED + b"0\r\nX: t\n\r\n",
    "endless trailers": CHUNKED + b"0\r\n" + b"X: t\r\n" * (LARGEST_HEAD // 6 + 20),
    "an endless trailer": CHUNKED + b"0\r\nX: " + b"x" * (LARGEST_HEAD + 1),
    "an endless trailer's name": CHUNKED + b"0\r\n" + b"x" * (LARGEST_HEAD + 1),
    "an endless extension": CHUNKED + b"2;" + b"x" * (LARGEST_HEAD + 1),
    "an endless size": CHUNKED + b"0" * (LARGEST_HEAD + 1),
    # lines
    "a bare LF": OK + b"A: b\nContent-Length: 2\r\n\r\nhi",
    "only LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    "a status line that ends with LF": b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nhi",
    "a head that ends with LF": OK + b"Content-Length: 2\r\n\nhi\r\n\r\n",
    "a bare CR": with_headers(b"A: b\rContent-Length: 2", body=b"hi"),
    "a CR in a name": with_headers(b"A\r: b", b"Content-Length: 2", body=b"hi"),
    "a CR in a reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nhi",
    "two CR": OK + b"A: b\r\r\nContent-Length: 2\r\n\r\nhi",
    "CR and LF apart": OK + b"A: b\rc\nContent-Length: 2\r\n\r\nhi",
    "a folded header": with_headers(b"A: b", b" c", b"Content-Length: 2", body=b"hi"),
    "a folded length": with_headers(b"Content-Length:", b" 2", body=b"hi"),
    "a header folded with a tab": with_headers(b"A: b", b"\tContent-Length: 9", b"B: c", body=b"hi"),
    "a fold at once": with_headers(b" A: b", b"Content-Length: 2", body=b"hi"),
    "NUL in a value": with_headers(b"A: b\0c", b"Content-Length: 2", body=b"hi"),
    "NUL in a name": with_headers(b"A\0: b", b"Content-Length: 2", body=b"hi"),
    "NUL in a reason": b"HTTP/1.1 200 O\0K\r\nContent-Length: 2\r\n\r\nhi",
    "a control character": with_headers(b"A: b\x07c", b"Content-Length: 2", body=b"hi"),
    "DEL": with_headers(b"A: b\x7fc", b"Content-Length: 2", body=b"hi"),
    "a control character in a reason": b"HTTP/1.1 200 O\x1bK\r\nContent-Length: 2\r\n\r\nhi",
    "no colon": with_headers(b"A b", b"Content-Length: 2", body=b"hi"),
    "no name": with_headers(b": b", b"Content-Length: 2", body=b"hi"),
    "a blank before the colon": with_headers(b"Content-Length : 2", body=b"hi"),
    "a blank in a name": with_headers(b"A b: c", b"Content-Length: 2", body=b"hi"),
    "a name that is no token": with_headers(b"A(: c", b"Content-Length: 2", body=b"hi"),
    "a name in Latin-1": with_headers(b"\xe4: c", b"Content-Length: 2", body=b"hi"),
    # status lines
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "TLS": b"\x15\x03\x03\x00\x02\x02\x46",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "a page": b"<html>hello</html>",
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "in small letters": b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n\r\n",
    "0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "1.10": b"HTTP/1.10 200 OK\r\nContent-Length: 0\r\n\r\n",
    "01.1": b"HTTP/01.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n",
    "nothing after the version": b"HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "a negative status": b"HTTP/1.1 -20 OK\r\nContent-Length: 0\r\n\r\n",
    "two blanks": b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
    "a tab": b"HTTP/1.1\t200 OK\r\nContent-Length: 0\r\n\r\n",
    "a blank first": b" HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a line break first": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "two heads": CONTINUE + b"\r\n" + TWO + b"hi",
    # too much
    "a head too large": with_headers(b"a: " + b"b" * LARGEST_HEAD, b"Content-Length: 2", body=b"hi"),
    "a head one byte too large": with_headers(
        b"a: " + b"b" * (LARGEST_HEAD - 42), b"Content-Length: 2", body=b"hi"
    ),
    "an endless status line": b"HTTP/1.1 200 " + b"x" * LARGEST_HEAD,
    "an endless name": OK + b"x" * LARGEST_HEAD,
    "too many headers": with_headers(*[b"a: b"] * MOST_HEADERS, b"Content-Length: 2", body=b"hi"),
    "informed too often": CONTINUE * (MOST_INFORMED + 1) + TWO + b"hi",
    # switches
    "101 that nobody asked for": b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw",
    "101 of nothing": b"HTTP/1.1 101 S\r\n\r\n",
    "101 after 100": CONTINUE + b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_response(name: str) -> None:
    """It is told at once: nobody waits until the peer closes."""
    for pieces in cuts(BAD[name]):
        assert read(pieces).failed, pieces


ASKED: dict[str, tuple[str, bool, bytes, bytes, bool]] = {
    # name: method, upgrade asked for, bytes, the body, whether the connection may be used again
    "HEAD with a length": ("HEAD", False, TWO, b"", True),
    "HEAD with chunks": ("HEAD", False, CHUNKED, b"", True),
    "HEAD without a length": ("HEAD", False, OK + b"\r\n", b"", True),
    "HEAD and close": ("HEAD", False, with_headers(b"Connection: close"), b"", False),
    "HEAD with a body": ("HEAD", False, TWO + b"hi", b"", False),
    "HEAD, informed": ("HEAD", False, CONTINUE + TWO, b"", True),
    "CONNECT": ("CONNECT", False, OK + b"\r\n", b"", False),
    "CONNECT with a length": ("CONNECT", False, TWO + b"raw", b"", False),
    "CONNECT that was refused": ("CONNECT", False, TWO.replace(b"200", b"403") + b"hi", b"hi", True),
    "101": ("GET", True, b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw", b"", False),
    "101 of few words": ("GET", True, b"HTTP/1.1 101 S\r\n\r\n", b"", False),
    "101, informed": ("GET", True, CONTINUE + b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n", b"", False),
    "101 that was refused": ("GET", True, TWO + b"hi", b"hi", True),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_what_was_asked_decides_whether_there_is_a_body(name: str) -> None:
    method, upgrade, data, body, again = ASKED[name]
    for pieces in cuts(data):
        seen = read(pieces, method, upgrade)
        assert (seen.error, seen.body, seen.whole, seen.again) == ("", body, True, again), pieces


@pytest.mark.parametrize("data", [OK + b"\r\nto the end", b"HTTP/1.0 200 OK\r\n\r\nto the end"])
def test_a_body_that_ends_with_the_connection(data: bytes) -> None:
    for pieces in cuts(data):
        assert not read(pieces).whole
    for pieces in cuts(data, closed=True):
        seen = read(pieces)
        assert (seen.body, seen.whole, seen.again) == (b"to the end", True, False)


@pytest.mark.parametrize("name", ["a length", "close", "chunks and close", "trailers"])
def test_an_end_in_the_middle_is_no_end(name: str) -> None:
    data = GOOD[name][0]
    for at in range(len(data)):
        for pieces in cuts(data[:at], closed=True) if at else [[b""]]:
            assert read(pieces).failed, pieces
    assert read([data, b""]) == Seen(200, read([data]).headers, b"hi", whole=True, again=False)


def test_names_keep_their_case_and_values_their_bytes() -> None:
    data = with_headers(
        b"X-MiX: \t a\tb  \xff \t", b"x-mix:b", b"TRANSFER-Encoding: Chunked", body=b"0\r\n\r\n"
    )
    for pieces in cuts(data):
        assert read(pieces).headers == (
            (b"X-MiX", b"a\tb  \xff"),
            (b"x-mix", b"b"),
            (b"TRANSFER-Encoding", b"Chunked"),
        )


def test_one_response_after_the_other() -> None:
    reader = Reader()
    for data, body, again in GOOD.values():
        if not again:
            continue
        reader.expect("GET", False)
        assert not reader.clean
        reader.receive(data)
        assert isinstance(reader.next(), ResponseHead)
        assert b"".join(iter(reader.next, Need.NOTHING)) == body  # type: ignore[arg-type]
        assert reader.clean


def test_what_came_together_is_delivered_together() -> None:
    reader = Reader()
    reader.receive(CHUNKED + b"1\r\na\r\n" * 1000)
    assert isinstance(reader.next(), ResponseHead)
    assert (reader.next(), reader.next()) == (b"a" * 1000, Need.DATA)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (CHUNKED + b"0\r\n", b"X: t\r\n" * 10_000),
        (CHUNKED + b"0\r\n", b"x" * 60_000),
        (CHUNKED + b"1;", b"x" * 60_000),
        (OK, b"x" * 60_000),
        (b"", CONTINUE * 2000),
    ],
)
def test_nothing_grows_without_an_end(start: bytes, more: bytes) -> None:
    reader = Reader()
    reader.receive(start)
    with pytest.raises(Malformed):  # noqa: PT012 - whichever of them
        for _ in range(3):
            while not isinstance(reader.next(), Need):
                pass
            reader.receive(more)
        reader.next()


# Against h11, which is laxer: what both take means the same, and h11 takes all that is taken here.


def by_h11(data: bytes, method: str, closed: bool) -> Seen:
    """As `read`, of the whole."""
    h, seen = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * LARGEST_HEAD), Seen()
    h.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    h.send(h11.EndOfMessage())
    try:
        h.receive_data(data)
        if closed:
            h.receive_data(b"")
        while True:
            event = h.next_event()
            if isinstance(event, h11.Response):
                seen.status, seen.headers = event.status_code, tuple(event.headers.raw_items())
            elif isinstance(event, h11.Data):
                seen.body += event.data
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.ProtocolError as error:
        return Seen(failed=True, error=str(error))
    seen.whole = isinstance(event, h11.EndOfMessage)
    done = (h.our_state, h.their_state) == (h11.DONE, h11.DONE)
    seen.again = done and h.trailing_data == (b"", False)
    return seen


def lowered(seen: Seen) -> Seen:
    """h11 writes codings in lower case."""
    seen.headers = tuple((n, v.lower() if n.lower() == b"transfer-encoding" else v) for n, v in seen.headers)
    return seen


def agree(data: bytes, method: str, closed: bool) -> bool:
    """Whether the response is taken here."""
    ours, theirs = (
        lowered(s) for s in (read([data, *([b""] if closed else [])], method), by_h11(data, method, closed))
    )
    assert ours.failed or ours == theirs
    return not ours.failed


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("closed", [False, True])
def test_what_is_taken_is_what_h11_makes_of_it(name: str, closed: bool) -> None:
    assert agree(GOOD[name][0], "GET", closed)


TOKENS = st.text("!#$%&'*+-.^_`|~aZ09", min_size=1, max_size=8).map(str.encode)
NAMES = st.sampled_from([b"X-A", b"a", b"Connection", b"Set-Cookie", b"Upgrade", b"Trailer"]) | TOKENS
WORDS = st.text(st.characters(codec="latin-1", exclude_categories=["Cc", "Z"]), min_size=1, max_size=6)
VALUES = st.lists(WORDS, max_size=3).map(lambda words: " \t".join(words).encode("latin-1"))
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=5)
PADDING = st.sampled_from([b"", b" ", b"\t ", b"  "])
EXTENSIONS = st.sampled_from([b"", b"", b";a", b";a=b", b';a="b;c"', b";a=b;c=d"])
MEANT = (b"content-length", b"transfer-encoding")


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """One that is well formed, some of its own making."""
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    status = draw(st.sampled_from([200, 204, 304, 404, 503]) | st.integers(200, 999))
    reason = draw(st.sampled_from([b"", b" ", b" OK", b" As It \xe4s"]))
    headers = [b"%b:%b%b%b" % (n, draw(PADDING), v, draw(PADDING)) for n, v in draw(LINES)]
    chunks = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4))
    how = draw(st.sampled_from(["length", "chunked", "close"] if version == b"1.1" else ["length", "close"]))
    body = b"".join(chunks)
    if how == "length":
        headers.insert(draw(st.integers(0, len(headers))), b"Content-Length: %d" % len(body))
    elif how == "chunked":
        headers.append(b"transfer-encoding:" + draw(st.sampled_from([b"chunked", b" Chunked\t"])))
        body = b"".join(b"%x%b\r\n%b\r\n" % (len(c), draw(EXTENSIONS), c) for c in chunks)
        trailers = [b"%b: %b\r\n" % line for line in draw(LINES)]
        body += b"0%b\r\n%b\r\n" % (draw(EXTENSIONS), b"".join(trailers))
    informed = draw(st.sampled_from([b"", b"", CONTINUE, b"HTTP/1.1 103 \r\nA: b\r\n\r\n" * 2]))
    lines = [b"HTTP/%b %d%b" % (version, status, reason), *headers, b""]
    return informed + b"".join(line + b"\r\n" for line in lines) + body


@settings(max_examples=60)
@given(responses(), st.sampled_from(["GET", "HEAD"]), st.booleans())
def test_what_is_well_formed_is_taken_as_by_h11(data: bytes, method: str, closed: bool) -> None:
    assert agree(data, method, closed)


SPOILS = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"2", b"f", b"-", b"\xff", b"chunked"]
) | st.sampled_from([b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])


@settings(max_examples=100)
@example(CHUNKED, [(len(CHUNKED), 0, b"2\r\nhi\r\n0\r\n\r\n\n")], "GET", False)
@given(
    responses(),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), SPOILS), min_size=1, max_size=3),
    st.sampled_from(["GET", "HEAD"]),
    st.booleans(),
)
def test_what_is_spoilt_is_refused_or_taken_as_by_h11(
    data: bytes, spoils: list[tuple[int, int, bytes]], method: str, closed: bool
) -> None:
    for at, removed, added in spoils:
        data = data[:at] + added + data[at + removed :]
    agree(data, method, closed)
    seen = read([data], method)
    assert read([data[at : at + 1] for at in range(len(data))], method) == seen


# What connections are told


@pytest.mark.parametrize("name", ["101", "101, informed", "101 of few words"])
def test_what_follows_a_101_is_of_the_other_protocol(name: str) -> None:
    method, upgrade, data, *_ = ASKED[name]
    for pieces in cuts(data):
        reader, surplus, switched = Reader(), b"", False
        reader.expect(method, upgrade)
        for piece in pieces:
            reader.receive(piece)
            switched = switched or isinstance(reader.next(), ResponseHead)
            if switched:
                assert reader.next() is Need.NOTHING
                surplus += reader.surplus()
        assert surplus == data.partition(b"HTTP/1.1 101")[2].partition(b"\r\n\r\n")[2]
        assert not reader.clean


def test_silence_ends_with_the_first_byte() -> None:
    reader = Reader()
    assert reader.silent
    reader.receive(b"")
    assert reader.silent
    reader.receive(b"H")
    assert not reader.silent
    informed = Reader()
    informed.receive(CONTINUE)
    assert informed.next() is Need.DATA
    assert not informed.silent
    done = Reader()
    done.receive(TWO)
    done.next()
    assert not done.silent
    done.expect("GET", False)
    assert done.silent


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([], math.inf),
        ([b"Keep-Alive: timeout=5, max=3"], 4.0),
        ([b"keep-alive: timeout=9", b"KEEP-ALIVE: timeout=7"], 6.0),
        ([b"Keep-Alive: 300"], math.inf),
    ],
)
def test_how_long_the_peer_waits(lines: list[bytes], seconds: float) -> None:
    reader = Reader()
    reader.receive(with_headers(*lines, b"Content-Length: 0"))
    reader.next()
    assert reader.keeps == seconds
    reader.expect("GET", False)
    assert reader.keeps == math.inf


# Answers that come before their request was sent


@pytest.mark.parametrize(
    ("pieces", "answered"),
    [
        ([b"HTTP/1.1 4"], [False]),
        ([CONTINUE], [False]),
        ([CONTINUE + TWO], [False]),
        ([TWO, b"o", b"k"], [False, False, True]),
        ([TWO + b"ok and more"], [True]),
        ([CHUNKED, b"2\r\nok\r\n", b"0\r\n", b"\r\n"], [False, False, False, True]),
        ([CHUNKED + b"5\r\n\r\n0\r\n", b"\r\n", b"0\r\n\r\n"], [False, False, True]),
        ([OK + b"\r\nto the end", b"", b""], [False, True, True]),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], [True]),
        ([b"HTTP/1.1 302 Found\r\nContent-Length: 9\r\n\r\n"], [True]),
        ([b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n"], [True]),
    ],
)
def test_an_early_answer(pieces: list[bytes], answered: list[bool]) -> None:
    reader = Reader()
    reader.expect("POST", False)
    found = []
    for piece in pieces:
        reader.receive(piece)
        found.append(reader.answered())
    assert found == answered
    # It is read as any other, whether it was looked at or not.
    late = Reader()
    late.expect("POST", False)
    late.receive(b"".join(pieces))
    if not pieces[-1]:
        late.receive(b"")
    while True:
        part = late.next()
        assert reader.next() == part
        if isinstance(part, Need):
            break
    assert reader.clean == late.clean


@pytest.mark.parametrize("data", [b"HTTP/1.1 200\nOK", CHUNKED + b"nonsense\r\n", b"nonsense\r\n\r\n"])
def test_an_early_answer_that_is_not_http(data: bytes) -> None:
    reader = Reader()
    reader.expect("POST", False)
    reader.receive(data)
    with pytest.raises(Malformed):
        reader.answered()
