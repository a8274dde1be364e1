"""HTTP/1.1 of one connection, bytes in and events out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.core.request import RequestHead, ResponseHead
from meshlib.dataplane.http.codec import Codec
from meshlib.dataplane.http.read import LARGEST_HEAD, Need
from meshlib.dataplane.http.syntax import Malformed, Unsendable

INFORMED = b"HTTP/1.1 103 H\r\nL: a\r\n\r\nHTTP/1.1 100 C\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def asked(method: str = "GET", headers: list[tuple[bytes, bytes]] | None = None) -> Codec:
    codec = Codec()
    codec.whole(RequestHead(method, "http", "a:80", "/", headers or []), b"")
    return codec


def parts(codec: Codec) -> list[ResponseHead | bytes | Need]:
    found: list[ResponseHead | bytes | Need] = []
    while True:
        found.append(codec.next())
        if isinstance(found[-1], Need):
            return found


def fed(codec: Codec, data: bytes) -> list[ResponseHead | bytes | Need]:
    codec.receive(data)
    return parts(codec)


def test_a_request_goes_out_as_it_came_host_first() -> None:
    head = RequestHead("POST", "http", "reviews:9080", "/a?b", [(b"X-MiX", b"v"), (b"content-length", b"2")])
    assert Codec().whole(head, b"hi") == (
        b"POST /a?b HTTP/1.1\r\nHost: reviews:9080\r\nX-MiX: v\r\ncontent-length: 2\r\n\r\nhi"
    )
    codec = Codec()
    codec.request(RequestHead("POST", "http", "a", "/", [(b"transfer-encoding", b"chunked")]))
    assert (codec.data(b"abc"), codec.end()) == (b"3\r\nabc\r\n", b"0\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        RequestHead("GET", "http", "a", "/", [(b"x", b"a\nb")]),
        RequestHead("GET", "http", "a", "/ b"),
        RequestHead("G T", "http", "a", "/"),
        RequestHead("GET", "http", "a", "/\u20ac"),
        RequestHead("GET", "http", "a\r\nx: y", "/"),
    ],
)
def test_a_request_that_is_not_http_is_the_applications_mistake(head: RequestHead) -> None:
    with pytest.raises(Unsendable):
        Codec().request(head)


@pytest.mark.parametrize("length", [b"1", b"3"])
def test_a_body_must_be_as_long_as_it_says(length: bytes) -> None:
    with pytest.raises(Unsendable, match="declared Content-Length"):
        Codec().whole(RequestHead("POST", "http", "a", "/", [(b"content-length", length)]), b"ab")


@pytest.mark.parametrize(
    ("method", "sent", "found", "again"),
    [
        ("GET", OK + b"Content-Length: 2\r\n\r\nhi", [b"hi"], True),
        ("GET", OK + b"Content-Length: 0\r\n\r\n", [], True),
        ("HEAD", OK + b"Content-Length: 2\r\n\r\n", [], True),
        ("GET", b"HTTP/1.1 204 No\r\n\r\n", [], True),
        ("GET", b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", [], True),
        ("GET", OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: t\r\n\r\n", [b"hi"], True),
        ("GET", OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi", [b"hi"], False),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", [b"hi"], False),
        ("GET", OK + b"Content-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n", [b"hi"], False),
        ("GET", INFORMED + OK + b"Content-Length: 1\r\n\r\n.", [b"."], True),
    ],
)  # fmt: skip
def test_responses(method: str, sent: bytes, found: list[bytes], again: bool) -> None:
    codec = asked(method)
    codec.receive(sent)
    head, *body, end = parts(codec)
    assert isinstance(head, ResponseHead)
    assert (body, end) == (found, Need.NOTHING)
    assert codec.reuse() is again


@pytest.mark.parametrize(
    ("method", "sent", "rest"),
    [
        ("GET", OK + b"Content-Length: 2\r\n\r\nhi", b"hi"),
        ("GET", OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
        ("HEAD", OK + b"Content-Length: 2\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 204 No\r\n\r\n", b""),
        ("GET", OK + b"Content-Length: 2\r\n\r\nh", None),
        ("GET", OK + b"Content-Length: 2\r\n\r\n", None),
        ("GET", OK + b"Content-Length: 2\r\n\r\nhi!", None),
        ("GET", OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None),
        ("GET", OK + b"\r\nsome", None),
    ],
)
def test_a_body_that_came_with_its_head_is_had_at_once(method: str, sent: bytes, rest: bytes | None) -> None:
    codec = asked(method)
    codec.receive(sent)
    assert isinstance(codec.next(), ResponseHead)
    assert codec.rest() == rest
    if rest is not None:
        assert codec.next() is Need.NOTHING
        assert codec.reuse() is (b"close" not in sent)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    codec = asked()
    codec.receive(OK + b"\r\nsome")
    assert parts(codec)[1:] == [b"some", Need.DATA]
    codec.receive(b"")
    assert (parts(codec), codec.reuse()) == ([Need.NOTHING], False)


def test_status_reason_version_and_header_case_are_kept() -> None:
    codec = asked()
    codec.receive(b"HTTP/1.0 299 As It Is\r\nX-MiX: a\r\nX-MiX: b\r\n\r\n")
    assert codec.next() == ResponseHead(299, ((b"X-MiX", b"a"), (b"X-MiX", b"b")))
    assert (codec.version, codec.reason) == (b"HTTP/1.0", b"As It Is")


def test_an_upgrade_is_delivered_and_the_connection_not_used_again() -> None:
    codec = asked(headers=[(b"connection", b"upgrade"), (b"upgrade", b"x")])
    codec.receive(b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\nraw")
    head, end = parts(codec)
    assert isinstance(head, ResponseHead)
    assert (head.status, end, codec.reuse()) == (101, Need.NOTHING, False)


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"Content-Length: x\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        OK + b"Bad Header\r\n\r\n",
        OK + b"X: " + b"x" * (LARGEST_HEAD + 1),
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 S\r\n\r\n",
    ],
)
def test_what_is_not_http(sent: bytes) -> None:
    codec = asked()
    with pytest.raises(Malformed):
        fed(codec, sent)


@pytest.mark.parametrize("sent", [OK + b"Content-Len", OK + b"Content-Length: 3\r\n\r\nhi", b"H"])
def test_an_end_in_the_middle(sent: bytes) -> None:
    codec = asked()
    codec.receive(sent)
    parts(codec)
    with pytest.raises(Malformed):
        fed(codec, b"")
    assert codec.ended


def test_an_end_before_anything() -> None:
    codec = asked()
    codec.receive(b"")
    with pytest.raises(Malformed):
        codec.next()
    assert (codec.reuse(), codec.ended) == (False, True)


def test_an_answer_before_the_request_was_whole_costs_the_connection() -> None:
    codec = Codec()
    codec.request(RequestHead("POST", "http", "a", "/", [(b"content-length", b"9")]))
    codec.receive(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
    assert (len(parts(codec)), codec.reuse()) == (2, False)


@given(st.lists(st.binary(min_size=1), max_size=5), st.data())
def test_how_the_bytes_are_cut_does_not_matter(chunks: list[bytes], data: st.DataObject) -> None:
    whole = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    whole += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    codec, found, at = asked(), [], 0
    while at < len(whole):
        size = data.draw(st.integers(1, len(whole) - at))
        codec.receive(whole[at : at + size])
        found += parts(codec)
        at += size
    assert b"".join(part for part in found if isinstance(part, bytes)) == b"".join(chunks)
    assert found[-1] is Need.NOTHING
    assert codec.reuse()
