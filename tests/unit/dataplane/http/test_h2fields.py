"""Which fields a message of HTTP/2 may have, as tables."""

import pytest
from hpack.struct import NeverIndexedHeaderTuple

from meshlib.core.request import Header, RequestHead, ResponseHead
from meshlib.dataplane.http.h2fields import body_length, request_fields, response_head, trailers
from meshlib.dataplane.http.syntax import Malformed, Unsendable

OK = (b":status", b"200")


def request(*headers: Header, method: str = "GET", path: str = "/", authority: str = "a:1") -> RequestHead:
    return RequestHead(method, "http", authority, path, headers)


def sent(*headers: Header) -> list[Header]:
    return [tuple(field) for field in request_fields(request(*headers))[0][4:]]  # type: ignore[misc]


def test_a_request_begins_with_its_pseudo_headers() -> None:
    fields, length = request_fields(request(method="PUT", path="/x?y", authority="b\xe9:2"))
    assert [tuple(field) for field in fields] == [
        (b":method", b"PUT"),
        (b":scheme", b"http"),
        (b":authority", b"b\xe9:2"),
        (b":path", b"/x?y"),
    ]
    assert length is None


@pytest.mark.parametrize(
    ("given", "goes"),
    [
        ([(b"X-Mixed", b"As It Is")], [(b"x-mixed", b"As It Is")]),
        ([(b"b", b"1"), (b"a", b"2"), (b"b", b"3")], [(b"b", b"1"), (b"a", b"2"), (b"b", b"3")]),
        ([(b"x", b""), (b"y", b"\xff\t!")], [(b"x", b""), (b"y", b"\xff\t!")]),
        ([(b"Connection", b"keep-alive")], []),
        ([(b"Connection", b"X-Hop, te"), (b"x-hop", b"1"), (b"x", b"2"), (b"te", b"trailers")],
         [(b"x", b"2"), (b"te", b"trailers")]),
        ([(b"Keep-Alive", b"5"), (b"Proxy-Connection", b"x"), (b"Upgrade", b"h2c")], []),
        ([(b"HTTP2-Settings", b"AAMA")], []),
        ([(b"Transfer-Encoding", b"chunked"), (b"x", b"1")], [(b"x", b"1")]),
        ([(b"Content-Length", b"5"), (b"Transfer-Encoding", b"Chunked")], []),
        ([(b"TE", b"gzip, Trailers")], [(b"te", b"trailers")]),
        ([(b"TE", b"gzip")], []),
        ([(b"Content-Length", b"5"), (b"x", b"1")], [(b"content-length", b"5"), (b"x", b"1")]),
        ([(b"Authorization", b"Basic x")], [(b"authorization", b"Basic x")]),
    ],
)  # fmt: skip
def test_what_goes_out(given: list[Header], goes: list[Header]) -> None:
    assert sent(*given) == goes


def test_credentials_are_never_indexed() -> None:
    fields, _ = request_fields(request((b"Authorization", b"x"), (b"Proxy-Authorization", b"y")))
    assert all(isinstance(field, NeverIndexedHeaderTuple) for field in fields[4:])


def test_the_length_of_a_body() -> None:
    assert request_fields(request((b"Content-Length", b"017")))[1] == 17
    chunked = request((b"Content-Length", b"17"), (b"Transfer-Encoding", b"chunked"))
    assert request_fields(chunked)[1] is None


@pytest.mark.parametrize(
    "head",
    [
        request(method=""),
        request(method="G T"),
        request(method="G\xe9T"),
        request(method="CONNECT"),
        request(path=""),
        request(path="/ x"),
        request(path="/\r\nx: y"),
        request(path="/\xe9"),
        request(authority=" a"),
        request(authority="a\nb"),
        request(authority="a\u20ac"),
        request((b"", b"x")),
        request((b"a b", b"x")),
        request((b":path", b"/")),
        request((b"a:b", b"x")),
        request((b"a\xe9", b"x")),
        request((b"a", b" x")),
        request((b"a", b"x\t")),
        request((b"a", b"x\r\ny: z")),
        request((b"a", b"x\0")),
        request((b"a", b"\x7f")),
        request((b"Host", b"b")),
        request((b"Content-Length", b"1"), (b"Content-Length", b"1")),
        request((b"Content-Length", b"-1")),
        request((b"Content-Length", b"1" * 19)),
        request((b"Transfer-Encoding", b"gzip")),
        request((b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")),
    ],
)
def test_what_can_not_go_out(head: RequestHead) -> None:
    with pytest.raises(Unsendable):
        request_fields(head)


def test_a_response() -> None:
    found = response_head([OK, (b"a", b"1"), (b"a", b"2"), (b"x", b"")])
    assert found == ResponseHead(200, ((b"a", b"1"), (b"a", b"2"), (b"x", b"")))
    assert trailers([(b"grpc-status", b"0")]) == ((b"grpc-status", b"0"),)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"a", b"1")],
        [(b"a", b"1"), OK],
        [OK, OK],
        [OK, (b":path", b"/")],
        [OK, (b":x", b"")],
        [(b":status", b"20")],
        [(b":status", b"2000")],
        [(b":status", b"0200")],
        [(b":status", b"2x0")],
        [(b":status", b"+20")],
        [(b":status", b"099")],
        [OK, (b"", b"x")],
        [OK, (b"A", b"x")],
        [OK, (b"a b", b"x")],
        [OK, (b"a:", b"x")],
        [OK, (b"\xe9", b"x")],
        [OK, (b"a", b"x\r\ny: z")],
        [OK, (b"a", b"x\n")],
        [OK, (b"a", b"\0")],
        [OK, (b"a", b" x")],
        [OK, (b"a", b"x ")],
        [OK, (b"connection", b"close")],
        [OK, (b"keep-alive", b"5")],
        [OK, (b"proxy-connection", b"x")],
        [OK, (b"transfer-encoding", b"chunked")],
        [OK, (b"upgrade", b"h2c")],
        [OK, *[(b"a", b"")] * 1001],
    ],
)
def test_what_is_no_response(fields: list[Header]) -> None:
    with pytest.raises(Malformed):
        response_head(fields)


@pytest.mark.parametrize("fields", [[(b":status", b"200")], [(b"A", b"")], [(b"te", b"x\n")]])
def test_what_is_no_trailer_section(fields: list[Header]) -> None:
    with pytest.raises(Malformed):
        trailers(fields)


@pytest.mark.parametrize(
    ("status", "method", "said", "length"),
    [
        (200, "GET", [], None),
        (200, "GET", [b"7"], 7),
        (200, "HEAD", [b"7"], 0),
        (204, "GET", [], 0),
        (304, "GET", [b"7"], 0),
        (500, "POST", [b"0"], 0),
    ],
)
def test_how_long_a_body_is(status: int, method: str, said: list[bytes], length: int | None) -> None:
    head = ResponseHead(status, tuple((b"content-length", value) for value in said))
    assert body_length(head, method) == length


@pytest.mark.parametrize("said", [[b"1", b"1"], [b"1", b"2"], [b"-1"], [b""], [b"1" * 19], [b"1,1"]])
def test_a_length_that_is_none(said: list[bytes]) -> None:
    with pytest.raises(Malformed):
        body_length(ResponseHead(200, tuple((b"content-length", value) for value in said)), "GET")
