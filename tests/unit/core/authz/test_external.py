"""What an external authority may say, and what of it is sent on."""

import pytest

from meshlib.core.authz.external import Blocked, HttpAuthority, NoAnswer, Passed, checked, http_opinion
from meshlib.core.request import Header, ResponseHead

HOP_BY_HOP = tuple(
    (name, b"1")
    for name in (
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding"),
        *(b"upgrade", b"content-length", b"host", b":status", b":path"),
    )
)
GOOD = (b"x-user", b"jason")
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
    assert checked(Blocked(403, (bad, GOOD), b"no")) == Blocked(403, (GOOD,), b"no")


@pytest.mark.parametrize("bad", MALFORMED)
@pytest.mark.parametrize("where", ["set", "append", "to_client"])
def test_who_lets_pass_with_what_can_not_be_sent_says_nothing(bad: Header, where: str) -> None:
    found = checked(Passed(**{where: (GOOD, bad)}))
    assert found == NoAnswer(f"the authority gave the header {bad[0]!r}, which can't be sent")


def test_headers_of_one_connection_are_nobodys_to_say() -> None:
    assert checked(Blocked(401, (*HOP_BY_HOP, GOOD))) == Blocked(401, (GOOD,))
    given = (*HOP_BY_HOP, GOOD)
    removed = (b"host", b"content-length", b"cookie")
    assert checked(Passed(given, given, removed, given)) == Passed((GOOD,), (GOOD,), (b"cookie",), (GOOD,))


def test_a_value_is_sent_without_the_space_around_it() -> None:
    assert checked(Blocked(403, ((b"x", b" a\tb\xe9 "),))) == Blocked(403, ((b"x", b"a\tb\xe9"),))


@pytest.mark.parametrize("status", [204, 304])
def test_a_refusal_that_has_no_body_has_none(status: int) -> None:
    assert checked(Blocked(status, (), b"x")) == Blocked(status)


@pytest.mark.parametrize("status", [100, 101, 199, 500, 503, 600, 999])
def test_a_status_that_is_no_answer(status: int) -> None:
    found = http_opinion(HttpAuthority("c"), ResponseHead(status, []), b"")
    assert found == NoAnswer(f"the authority answered {status}")
