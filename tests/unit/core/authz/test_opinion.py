"""What an external authority may say, what of it is sent on, and what it changes."""

import pytest

from meshlib.core.authz.opinion import Blocked, NoAnswer, Passed, Told, answered, changed, checked
from meshlib.core.headers import Append
from meshlib.core.request import Header, RequestHead

HOP_BY_HOP = tuple(
    (name, b"1")
    for name in (
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding"),
        *(b"upgrade", b"content-length", b"host", b":status", b":path"),
    )
)
GOOD = (b"x-user", b"jason")
TEXT = (b"content-type", b"text/plain")
MALFORMED: list[Header] = [
    (b"x", b"a\r\nset-cookie: b"),
    (b"x", b"a\nb"),
    (b"x", b"a\0"),
    (b"x\r\ny", b"a"),
    (b"x y", b"a"),
    (b"x:", b"a"),
    (b"", b"a"),
    ("x-é".encode(), b"a"),
]


@pytest.mark.parametrize("bad", MALFORMED)
def test_a_refusal_stands_without_what_can_not_be_sent(bad: Header) -> None:
    assert checked(Blocked(403, (bad, GOOD), b"no")) == Blocked(403, (GOOD, TEXT), b"no")


@pytest.mark.parametrize("bad", MALFORMED)
@pytest.mark.parametrize("where", ["set", "append", "to_client"])
def test_who_lets_pass_with_what_can_not_be_sent_says_nothing(bad: Header, where: str) -> None:
    said = tuple(Told(*one) for one in (GOOD, bad)) if where == "to_client" else (GOOD, bad)
    found = checked(Passed(**{where: said}))
    assert found == NoAnswer(f"the authority gave the header {bad[0]!r}, which can't be sent")


def test_headers_of_one_connection_are_nobodys_to_say() -> None:
    assert checked(Blocked(401, (*HOP_BY_HOP, GOOD))) == Blocked(401, (GOOD,))
    given = (*HOP_BY_HOP, GOOD)
    removed = (b"host", b"content-length", b"cookie")
    told = tuple(Told(*one) for one in given)
    found = checked(Passed(given, given, removed, told))
    assert found == Passed((GOOD,), (GOOD,), (b"cookie",), (Told(*GOOD),))


def test_a_value_is_sent_without_the_space_around_it() -> None:
    assert checked(Blocked(403, ((b"x", b" a\tb\xe9 "),))) == Blocked(403, ((b"x", b"a\tb\xe9"),))


@pytest.mark.parametrize("status", [204, 304])
def test_a_refusal_that_has_no_body_has_none(status: int) -> None:
    assert checked(Blocked(status, (), b"x")) == Blocked(status)


def test_a_refusal_with_a_body_says_what_it_is() -> None:
    text, page = (b"content-type", b"text/plain"), (b"content-type", b"text/html")
    assert checked(Blocked(403, (), b"no")) == Blocked(403, (text,), b"no")
    assert checked(Blocked(403, (page,), b"no")) == Blocked(403, (page,), b"no")


HEAD = RequestHead("GET", "http", "h", "/p?a=1&b=2&a=3&c", [(b"X-User", b"forged"), (b"x-a", b"1")])


@pytest.mark.parametrize(
    ("said", "headers"),
    [
        (Passed(), HEAD.headers),
        (Passed(set=((b"x-user", b"a"), (b"x-user", b"b"))), [(b"x-a", b"1"), (b"x-user", b"b")]),
        (Passed(append=((b"x-a", b"2"), (b"x-b", b"1"))), [*HEAD.headers, (b"x-a", b"2")]),
        (
            Passed(set=((b"x-b", b"1"),), append=((b"x-b", b"2"),)),
            [*HEAD.headers, (b"x-b", b"1"), (b"x-b", b"2")],
        ),
        (Passed(set=((b"x-user", b"a"),), remove=(b"x-user",)), [(b"x-a", b"1")]),
        (Passed(set=((b"x_user", b"a"),)), [(b"x-a", b"1"), (b"x_user", b"a")]),
        (Passed(remove=(b"x_user",)), [(b"x-a", b"1")]),
    ],
)
def test_what_an_authority_changes_of_a_request(said: Passed, headers: list[Header]) -> None:
    found = changed(HEAD, said)
    assert (found.headers, found.path) == (headers, HEAD.path)


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ((("a", None),), "/p?b=2&c"),
        ((("a", "9"), ("c", None)), "/p?b=2&a=9"),
        ((("new", "x y&z=#/"),), "/p?a=1&b=2&a=3&c&new=x%20y%26z%3D%23%2F"),
        ((("a", None), ("b", None), ("c", None), ("d", None)), "/p"),
    ],
)
def test_what_an_authority_changes_of_the_query(query: tuple[tuple[str, str | None], ...], path: str) -> None:
    assert changed(HEAD, Passed(query=query)).path == path


@pytest.mark.parametrize(
    ("how", "there", "absent"),
    [
        (Append.APPEND, [b"own", b"1"], [b"1"]),
        (Append.ADD_IF_ABSENT, [b"own"], [b"1"]),
        (Append.OVERWRITE_OR_ADD, [b"1"], [b"1"]),
        (Append.OVERWRITE_IF_EXISTS, [b"1"], []),
    ],
)
def test_what_an_authority_adds_to_a_response(how: Append, there: list[bytes], absent: list[bytes]) -> None:
    said = [Told(b"x-there", b"1", how), Told(b"x-absent", b"1", how)]
    found = answered([(b"X-There", b"own"), (b"x-other", b"0")], said)
    assert [value for name, value in found if name.lower() == b"x-there"] == there
    assert [value for name, value in found if name == b"x-absent"] == absent
    assert (b"x-other", b"0") in found
