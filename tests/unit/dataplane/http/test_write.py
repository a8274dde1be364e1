"""Requests as bytes: as they came, or not at all."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.core.request import Header, RequestHead
from meshlib.dataplane.http.syntax import Unsendable
from meshlib.dataplane.http.write import Writer


def head(*headers: Header, method: str = "POST", path: str = "/", authority: str = "a") -> RequestHead:
    return RequestHead(method, "http", authority, path, headers)


def test_case_order_and_bytes_of_headers_stay() -> None:
    sent = head(
        (b"x-B", b"1"), (b"X-a", b""), (b"x-b", b"\xff \t2"), (b"CONTENT-length", b"0"), method="Foo!"
    )
    assert Writer().head(sent) == (
        b"Foo! / HTTP/1.1\r\nHost: a\r\nx-B: 1\r\nX-a: \r\nx-b: \xff \t2\r\nCONTENT-length: 0\r\n\r\n"
    )


def test_bodies() -> None:
    writer = Writer()
    writer.head(head())
    assert (writer.data(b""), writer.end(), writer.done) == (b"", b"", True)
    writer.head(head((b"content-length", b"3")))
    assert not writer.done
    assert (writer.data(b"a"), writer.data(b"bc"), writer.end(), writer.done) == (b"a", b"bc", b"", True)
    writer.head(head((b"transfer-encoding", b"Chunked")))
    assert not writer.done
    # An empty chunk would end the body.
    assert [writer.data(chunk) for chunk in (b"", b"a" * 26)] == [b"", b"1a\r\n%b\r\n" % (b"a" * 26)]
    assert (writer.end(), writer.done) == (b"0\r\n\r\n", True)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5"), (b"X", b"y"), (b"transfer-encoding", b"chunked")],
        [(b"X", b"y"), (b"transfer-encoding", b"chunked"), (b"Content-Length", b"5")],
    ],
)
def test_a_length_and_chunks_are_never_sent_together(headers: list[Header]) -> None:
    writer = Writer()
    written = writer.head(head(*headers))
    assert written == b"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\ntransfer-encoding: chunked\r\n\r\n"
    assert writer.data(b"hello") + writer.end() == b"5\r\nhello\r\n0\r\n\r\n"


def test_what_it_says_of_the_connection() -> None:
    writer = Writer()
    for value, close in [(b"close", True), (b"keep-alive, CLOSE ", True), (b"closed", False), (b"te", False)]:
        writer.head(head((b"Connection", value.strip())))
        assert writer.close is close
    writer.head(head((b"Upgrade", b"x")))
    assert writer.upgrade
    writer.head(head())
    assert (writer.upgrade, writer.close) == (False, False)


CONTROLS = [chr(number) for number in (*range(0x20), 0x7F) if chr(number) != "\t"]


@pytest.mark.parametrize("char", CONTROLS, ids=lambda char: f"{ord(char):02x}")
def test_no_control_character_leaves(char: str) -> None:
    byte = char.encode()
    for bad in (
        head(method=f"G{char}T"),
        head(path=f"/a{char}b"),
        head(authority=f"a{char}b"),
        head((b"a" + byte + b"b", b"c")),
        head((b"a", b"b" + byte + b"c")),
        head((b"a", b"b" + byte)),
        head((b"a", byte + b"b")),
        head((b"a", b"b"), (b"c", b"d" + byte * 2 + b"e: f")),
    ):
        with pytest.raises(Unsendable):
            Writer().head(bad)


@pytest.mark.parametrize(
    "bad",
    [
        head(method=""),
        head(method="G T"),
        head(method="GÄT"),
        head(method="GET\N{KELVIN SIGN}"),
        head(path=""),
        head(path="/a b"),
        head(path="/a\tb"),
        head(path="/ä"),
        head(path="/ HTTP/1.1\r\nX: y"),
        head(authority=" a"),
        head(authority="a\r\nx: y"),
        head(authority="\N{EURO SIGN}"),
        head((b"", b"a")),
        head((b"a b", b"c")),
        head((b"a:", b"c")),
        head((b"a: b\r\nc", b"d")),
        head((b"\xe4", b"c")),
        head((b"a", b" b")),
        head((b"a", b"b ")),
        head((b"a", b"b\t")),
        head((b"a", b"b\r\nc: d")),
        head((b"a", b"b\r\n c")),
        head((b"a", b"\r\n\r\nGET / HTTP/1.1")),
        head((b"host", b"b")),
        head((b"HOST", b"a")),
        head((b"content-length", b"")),
        head((b"content-length", b"+1")),
        head((b"content-length", b"-1")),
        head((b"content-length", b"0x1")),
        head((b"content-length", b"1, 1")),
        head((b"content-length", b"1" * 19)),
        head((b"content-length", b"1"), (b"Content-Length", b"1")),
        head((b"content-length", b"1"), (b"Content-Length", b"2")),
        head((b"transfer-encoding", b"gzip")),
        head((b"transfer-encoding", b"gzip, chunked")),
        head((b"transfer-encoding", b"chunked, chunked")),
        head((b"transfer-encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")),
        head((b"transfer-encoding", b"")),
        head((b"transfer-encoding", b"\x0bchunked")),
    ],
    ids=repr,
)
def test_what_is_no_request(bad: RequestHead) -> None:
    with pytest.raises(Unsendable):
        Writer().head(bad)


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"1")]])
def test_a_body_is_as_long_as_it_says(headers: list[Header]) -> None:
    writer = Writer()
    writer.head(head(*headers))
    with pytest.raises(Unsendable, match="longer than its declared"):
        writer.data(b"ab")
    writer = Writer()
    writer.head(head((b"content-length", b"3")))
    writer.data(b"ab")
    with pytest.raises(Unsendable, match="shorter than its declared"):
        writer.end()
    assert not writer.done


ANY = st.text(st.characters(codec="latin-1"), max_size=6) | st.text("aB-: \t\r\n\0", max_size=4)
NAMED = st.sampled_from([b"Content-Length", b"Transfer-Encoding", b"Connection", b"host", b"x"])
HEADERS = st.lists(
    st.tuples(ANY.map(lambda t: t.encode("latin-1")) | NAMED, ANY.map(lambda t: t.encode("latin-1")))
)


@given(ANY, ANY, HEADERS)
def test_what_is_sent_is_what_h11_would_send(method: str, path: str, headers: list[Header]) -> None:
    try:
        written = Writer().head(head(*headers, method=method, path=path))
    except Unsendable:
        return
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method=method, target=path, headers=[(b"Host", b"a"), *headers])
    assert connection.send(request) == written


VALUE = st.text(st.characters(codec="latin-1", exclude_categories=["Cc", "Z"]), max_size=6)


@given(
    st.text("!#aZ09-", min_size=1, max_size=6),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1),
    st.lists(st.tuples(st.text("!#aZ09-_", min_size=1, max_size=6), VALUE)),
)
def test_what_is_a_request_is_sent(method: str, path: str, pairs: list[tuple[str, str]]) -> None:
    """A server reads what was written."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in pairs]
    server = h11.Connection(h11.SERVER)
    server.receive_data(Writer().head(head(*headers, method=method, path=path)))
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (method.encode(), path.encode())
    assert request.headers.raw_items() == [(b"Host", b"a"), *headers]
