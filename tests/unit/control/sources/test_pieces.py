"""A text in pieces comes to what the whole text comes to, and what stands still is not read again."""

import random

import pytest

from meshlib.control.sources.pieces import Known, split
from meshlib.control.sources.reader import UnreadableError, read
from meshlib.control.sources.text import TextRead, documents_in

LINES = (
    "---", "--- # a comment", "---\t", "--- {a: 1}", "----", "--- |", "--- >-", "...", "%YAML 1.1", "# ---",
    "", "a: 1", "b:", "  - 1", "  ---", "c: |", "  text", "d: 'x", "  y'", 'e: "', '  ---"', "[1,", "2]",
    "- &x 1", "- *x", "{a: b}", "f: \u2028g", "\ttab",
)  # fmt: skip


def outcome(text: str) -> list[object] | str:
    try:
        return [(raw.value, raw.line, raw.lines, raw.twice) for raw in read(text)]
    except UnreadableError:
        return "unreadable"


def in_pieces(text: str) -> list[object] | str:
    found: list[object] = []
    try:
        for line, piece in split(text):
            for raw in read(piece):
                moved = raw.down(line - 1)
                found.append((moved.value, moved.line, moved.lines, moved.twice))
    except UnreadableError:
        return "unreadable"
    return found


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_pieces_come_to_what_the_whole_comes_to(end: str) -> None:
    dice = random.Random(11)
    readable = 0
    for _ in range(4000):
        text = end.join(dice.choices(LINES, k=dice.randrange(1, 9))) + dice.choice(["", end])
        whole = outcome(text)
        assert in_pieces(text) == whole, text
        assert "".join(piece for _, piece in split(text)) == text
        readable += whole != "unreadable"
    assert readable > 800


def test_where_pieces_begin() -> None:
    assert list(split("a: 1\n---\nb: 2\n----\n--- c\n---")) == [
        (1, "a: 1\n"), (2, "---\nb: 2\n----\n"), (5, "--- c\n"), (6, "---"),
    ]  # fmt: skip
    for odd in ("%YAML 1.1\n---\na: 1\n---\nb: 2", "a: 1\n...\n---\nb: 2", "a: 1\r---\rb: 2"):
        assert list(split(odd)) == [(1, odd)]
    assert list(split("")) == []


def entry(name: str, address: str = "10.0.0.1") -> str:
    return (
        f"---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
        f"metadata: {{name: {name}}}\nspec: {{address: {address}}}\n"
    )


def facts(read: TextRead) -> tuple[object, ...]:
    documents = [
        (d.key, d.fingerprint, d.file, d.line, [(path, d.line_of(path)) for path in d.lines])
        for d in read.documents
    ]
    return documents, [str(problem) for problem in read.problems], read.twice


EDITS = [
    entry("a") + entry("b") + entry("c"),
    entry("a") + "# a comment\n\n" + entry("b") + entry("c"),  # it stands lower
    entry("c") + entry("a"),  # moved, and one gone
    entry("c") + entry("a", "'!'") + entry("b"),  # broken
    entry("c") + "\n" + entry("a", "'!'") + entry("b"),  # broken, and lower
    entry("c") + entry("c") + entry("b"),  # twice
    entry("c") + entry("c").replace("kind:", "kind: x\nkind:"),  # a key twice
    "\n" + entry("c") + entry("c").replace("kind:", "kind: x\nkind:"),
    entry("c") + "---\n[",
    entry("a") + entry("b") + entry("c"),
]


def test_what_is_known_never_shows() -> None:
    known = Known()
    for text in EDITS:
        assert facts(documents_in(text, "a.yaml", known=known)) == facts(documents_in(text, "a.yaml")), text


def test_what_did_not_change_is_the_same_and_what_went_is_forgotten() -> None:
    known = Known()
    before = documents_in(EDITS[0], "a.yaml", known=known).documents
    after = documents_in(entry("a") + entry("x") + entry("c"), "a.yaml", known=known).documents
    assert [document is before[at] for at, document in enumerate(after)] == [True, False, True]
    assert sorted(known.pieces) == sorted([entry("a"), entry("x"), entry("c")])
    documents_in(entry("a", "'!'"), "a.yaml", known=known)
    assert known.pieces == {}
