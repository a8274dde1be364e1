"""A YAML text in its pieces: one for each document, so that an edit costs what it touched.

Rules:
- A piece begins with the line `---` of its document; libyaml takes such a line for nothing else.
- A text with directives, `...` or line ends other than LF and CR LF is one piece: rare, and then safe.
- What a piece came to is kept with its text, as long as that stands in the file; it may move in it.
- A piece with an error is not kept: its messages name lines.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.parse import Key
from meshlib.control.istio.problem import Problem, Severity

_OTHER_LINE_ENDS = ("\x85", "\u2028", "\u2029")


@dataclass(frozen=True, slots=True)
class Found:
    """What one object of a text came to. `key` is None where even its identity can't be read."""

    document: AnyDocument | None
    problems: tuple[Problem, ...]
    key: Key | None

    @property
    def broken(self) -> bool:
        """Whether it is refused."""
        return any(problem.severity is Severity.ERROR for problem in self.problems)

    def down(self, lines: int) -> "Found":
        """The same, that many lines further down."""
        document = self.document
        if document is not None:
            document = replace(document, line=document.line + lines, moved=document.moved + lines)
        return Found(document, tuple(replace(p, line=p.line + lines) for p in self.problems), self.key)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece that is read: the objects in it, and how many values it holds. `line` is its first."""

    line: int
    nodes: int
    found: tuple[Found, ...]


@dataclass(slots=True)
class Known:
    """The pieces of one file as they were read last. For one reader at a time."""

    pieces: dict[str, Piece] = field(default_factory=dict)

    def keep_only(self, texts: Mapping[str, object]) -> None:
        """Forgets the pieces that do not stand there any more."""
        self.pieces = {text: piece for text, piece in self.pieces.items() if text in texts}

    def at(self, text: str, line: int) -> Piece | None:
        """What that piece came to, as it stands from that line on."""
        piece = self.pieces.get(text)
        if piece is not None and piece.line != line:
            moved = tuple(one.down(line - piece.line) for one in piece.found)
            piece = self.pieces[text] = Piece(line, piece.nodes, moved)
        return piece

    def add(self, text: str, piece: Piece) -> None:
        """Keeps a piece, if nothing in it is wrong."""
        if not any(one.broken for one in piece.found):
            self.pieces[text] = piece


def split(text: str) -> Iterator[tuple[int, str]]:
    """The pieces of a text, each with its first line, counted from 1."""
    if _is_odd(text):
        yield 1, text
        return
    line, begin = 1, 0
    while begin < len(text):
        end = _next_document(text, begin)
        yield line, text[begin:end]
        line += text.count("\n", begin, end)
        begin = end


def _is_odd(text: str) -> bool:
    return (
        text.startswith(("%", "..."))
        or "\n%" in text
        or "\n..." in text
        or text.count("\r") != text.count("\r\n")
        or any(end in text for end in _OTHER_LINE_ENDS)
    )


def _next_document(text: str, begin: int) -> int:
    """Where the first line `---` after the place begins; the end of the text if there is none."""
    at = begin
    while (at := text.find("\n---", at)) >= 0:
        at += 1
        if text[at + 3 : at + 4] in ("", " ", "\t", "\r", "\n"):
            return at
    return len(text)
