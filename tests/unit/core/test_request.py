"""A request's head: its Host, and what is looked up in it."""

import pytest

from meshlib.core.request import Header, RequestHead

A, B = (b"a", b"1"), (b"B", b"2")


@pytest.mark.parametrize(
    ("headers", "authority", "left"),
    [
        ([], "url:80", []),
        ([A, B], "url:80", [A, B]),
        ([(b"Host", b"own"), A, B], "own", [A, B]),
        ([A, (b"hOST", b"own:9080"), B], "own:9080", [A, B]),
        ([A, (b"host", b"")], "url:80", [A]),
        ([(b"Host", b"first"), A, (b"host", b"last")], "last", [A]),
        ([(b"Host", b"first"), A, (b"host", b"")], "first", [A]),
        ([(b"Host", b"caf\xe9")], "caf\xe9", []),
        ([(b"x-host", b"no"), (b"hos", b"no")], "url:80", [(b"x-host", b"no"), (b"hos", b"no")]),
    ],
)
def test_the_last_host_that_says_something_is_the_authority(
    headers: list[Header], authority: str, left: list[Header]
) -> None:
    head = RequestHead.sent("GET", "http", "url:80", "/", list(headers))
    assert (head.authority, head.headers) == (authority, left)
    assert head.index == {name.lower(): value for name, value in left}


@pytest.mark.parametrize("headers", [[A, (b"A", b"2")], [(b"Host", b"h"), A, (b"A", b"2")]])
def test_values_of_one_name_are_joined(headers: list[Header]) -> None:
    head = RequestHead.sent("GET", "http", "url:80", "/", headers)
    assert head.index == {b"a": b"1,2"}


def test_what_is_added_is_found() -> None:
    head = RequestHead.sent("GET", "http", "url:80", "/", [A])
    told = head.plus((B,))
    assert told.headers == [A, B]
    assert told.header(b"b") == b"2"
    assert head.header(b"b") is None
    head.extend(((b"c", b"3"),))
    assert head.headers == [A, (b"c", b"3")]
    assert head.header(b"c") == b"3"
    assert told.header(b"c") is None
