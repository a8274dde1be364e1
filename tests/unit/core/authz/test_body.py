"""How much of a body is read before an authority is asked, and what it is then shown."""

import pytest

from meshlib.core.authz.body import Beginning, BodyWanted, Shown, Unread, announced

WHOLE, PART = BodyWanted(10), BodyWanted(10, partial=True)


def read(length: int | None, *pieces: bytes, last: bool = False) -> Beginning:
    """What has been read after these pieces; `last`: they were all."""
    made = Beginning(length)
    for number, piece in enumerate(pieces):
        made.add(piece, last=last and number == len(pieces) - 1)
    return made


@pytest.mark.parametrize(
    ("begun", "whole", "part"),
    [
        (read(3), False, False),
        (read(3, b"ab"), False, False),
        (read(3, b"ab", b"c"), True, True),
        (read(10, b"0123456789"), True, True),
        (read(11), True, False),
        (read(11, b"0123456789"), True, True),
        (read(None), False, False),
        (read(None, b"0123456789"), False, True),
        (read(None, b"0123456789a"), True, True),
        (read(None, b"abc", b"", last=True), True, True),
    ],
)
def test_how_much_is_enough(begun: Beginning, whole: bool, part: bool) -> None:
    assert (begun.enough(WHOLE), begun.enough(PART)) == (whole, part)


@pytest.mark.parametrize(
    ("begun", "whole", "part"),
    [
        (read(0), Shown(b""), Shown(b"")),
        (read(3, b"abc"), Shown(b"abc", True, 3), Shown(b"abc", True, 3)),
        (read(10, b"0123456789"), Shown(b"0123456789", True, 10), Shown(b"0123456789", True, 10)),
        (read(11, b"0123456789a"), Unread.TOO_LARGE, Shown(b"0123456789", False, 11)),
        (read(None, b"0123", b"4567", b"89a"), Unread.TOO_LARGE, Shown(b"0123456789", False, 11)),
        # It may go on: what is told of as whole is known to be.
        (read(None, b"0123456789"), Unread.TOO_LARGE, Shown(b"0123456789", False, 10)),
        (read(None, b"0123456789", b"", last=True), *[Shown(b"0123456789", True, 10)] * 2),
    ],
)
def test_what_is_shown(begun: Beginning, whole: Shown | Unread, part: Shown | Unread) -> None:
    assert (begun.shown(WHOLE), begun.shown(PART)) == (whole, part)


def test_the_application_gets_all_that_was_read_once() -> None:
    begun = read(None, b"0123", b"456789a")
    assert begun.taken() == b"0123456789a"
    assert begun.taken() == b""


@pytest.mark.parametrize(
    ("length", "found"),
    [
        (None, None),
        ("", None),
        (b"12", 12),
        ("0", 0),
        ("-1", None),
        ("1e3", None),
        ("\u0661", None),
        ("9" * 20, None),
    ],
)
def test_a_length_is_one_or_none(length: str | bytes | None, found: int | None) -> None:
    assert announced(length) == found


@pytest.mark.parametrize(
    ("why", "status", "flag"),
    [
        (Unread.TOO_LARGE, 413, "-"),
        (Unread.TOO_SLOW, 408, "-"),
        (Unread.NO_LENGTH, 411, "-"),
        (Unread.GONE, 400, "DC"),
        (Unread.NOBODY_READS, 500, "-"),
    ],
)
def test_the_answer_to_what_can_not_be_shown(why: Unread, status: int, flag: str) -> None:
    reply = why.reply("5")
    assert (reply.status, reply.facts.flag, reply.facts.config_version) == (status, flag, "5")
    assert (b"connection", b"close") in reply.headers
