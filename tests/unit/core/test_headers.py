"""Header edits: order within a level and between levels, templates, bad templates."""

import pytest

from meshlib.core.headers import (
    EMPTY,
    Append,
    EditContext,
    EditLevel,
    HeaderEdit,
    HeaderEdits,
    parse_template,
)
from meshlib.core.request import RequestHead

HEAD = RequestHead("GET", "http", "reviews:9080", "/a?b=1", [(b"X-A", b"1"), (b"x-a", b"2"), (b"x-b", b"b")])
CONTEXT = EditContext(HEAD, cluster="outbound|9080|v1|reviews", route="r", status=503)


def edit(name: bytes, value: str, action: Append = Append.APPEND, keep_empty: bool = False) -> HeaderEdit:
    return HeaderEdit(name, parse_template(value), action, keep_empty)


def edits(*ops: HeaderEdit, remove: frozenset[bytes] = frozenset()) -> HeaderEdits:
    return HeaderEdits((EditLevel(ops, remove),))


@pytest.mark.parametrize(
    ("action", "name", "expected"),
    [
        (Append.APPEND, b"x-b", [b"b", b"new"]),
        (Append.APPEND, b"x-c", [b"new"]),
        (Append.ADD_IF_ABSENT, b"x-b", [b"b"]),
        (Append.ADD_IF_ABSENT, b"x-c", [b"new"]),
        (Append.OVERWRITE_OR_ADD, b"x-a", [b"new"]),
        (Append.OVERWRITE_OR_ADD, b"x-c", [b"new"]),
        (Append.OVERWRITE_IF_EXISTS, b"x-a", [b"new"]),
        (Append.OVERWRITE_IF_EXISTS, b"x-c", []),
    ],
)
def test_each_action_on_a_header_that_is_there_or_not(
    action: Append, name: bytes, expected: list[bytes]
) -> None:
    made = edits(edit(name, "new", action)).apply(HEAD.headers, CONTEXT)
    assert [value for key, value in made if key.lower() == name] == expected


def test_untouched_headers_keep_order_and_spelling_and_the_input_is_not_changed() -> None:
    before = list(HEAD.headers)
    made = edits(edit(b"x-n", "1"), remove=frozenset({b"x-b"})).apply(HEAD.headers, CONTEXT)
    assert made == [(b"X-A", b"1"), (b"x-a", b"2"), (b"x-n", b"1")]
    assert before == HEAD.headers


def test_a_level_removes_first_then_overwrites_then_appends() -> None:
    level = edits(
        edit(b"x-a", "appended"),
        edit(b"x-a", "set", Append.OVERWRITE_OR_ADD),
        edit(b"x-b", "absent now", Append.ADD_IF_ABSENT),
        remove=frozenset({b"x-b"}),
    )
    assert level.apply(HEAD.headers, CONTEXT) == [
        (b"x-a", b"set"),
        (b"x-a", b"appended"),
        (b"x-b", b"absent now"),
    ]


def test_a_later_level_sees_the_request_as_the_one_before_left_it() -> None:
    first = edits(edit(b"x-b", "changed", Append.OVERWRITE_OR_ADD), remove=frozenset({b"x-a"}))
    second = edits(edit(b"x-c", "%REQ(x-b)% %REQ(x-a?x-b)%"))
    assert first.then(second).apply_to_request(CONTEXT).headers == [
        (b"x-b", b"changed"),
        (b"x-c", b"changed changed"),
    ]


def test_an_empty_value_adds_nothing_unless_kept() -> None:
    assert edits(edit(b"x-n", "")).apply([], CONTEXT) == []
    assert edits(edit(b"x-n", "%REQ(x-absent)%")).apply([], CONTEXT) == []
    assert edits(edit(b"x-n", "", keep_empty=True)).apply([], CONTEXT) == [(b"x-n", b"")]


def test_then_with_nothing_is_the_same_object() -> None:
    some = edits(edit(b"x", "1"))
    assert some.then(EMPTY) is some
    assert EMPTY.then(some) is some
    assert not EMPTY


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("plain", b"plain"),
        ("100%%", b"100%"),
        ("%%REQ(x)%%", b"%REQ(x)%"),
        ("%REQ(x-a)%", b"1"),
        ("%REQ(X-B)%", b"b"),
        ("%REQ(x-none?x-b)%", b"b"),
        ("%REQ(:authority):7%", b"reviews"),
        ("<%REQ(:path)%>", b"</a?b=1>"),
        ("%UPSTREAM_CLUSTER%", b"outbound|9080|v1|reviews"),
        ("%ROUTE_NAME%/%RESPONSE_CODE%", b"r/503"),
        ("a%DOWNSTREAM_REMOTE_ADDRESS%b", b"ab"),
        ("%START_TIME(s)%", b""),
    ],
)
def test_templates(source: str, value: bytes) -> None:
    assert parse_template(source).render(CONTEXT) == value


@pytest.mark.parametrize(
    "source", ["50%", "%", "%REQ(x", "%REQ()%", "%REQ%", "%REQ(a?b?c)%", "%REQ(x):z%", "%foo%", "%%%"]
)
def test_bad_templates_are_refused(source: str) -> None:
    with pytest.raises(ValueError):
        parse_template(source)


def test_a_value_of_many_operators_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 100 parts"):
        parse_template("%REQ(x)%" * 101)


def test_edits_in_words() -> None:
    made = edits(edit(b"x-a", "%REQ(b)%", Append.OVERWRITE_OR_ADD), remove=frozenset({b"x-b"}))
    assert made.words() == ("remove x-b", "set x-a: %REQ(b)%")
