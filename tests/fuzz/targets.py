"""What is fuzzed. A target takes bytes; any exception is a finding."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fuzz import messages, texts, wire

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "response": wire.response,
    "frames": wire.frames,
    "bytes-of-h2": wire.bytes_of_h2,
    "conditions": texts.conditions,
    "formats": texts.formats,
    "files": texts.files,
    "documents": texts.documents,
    "resource": messages.resource,
    "bytes-of-resource": messages.bytes_of_resource,
}
CORPUS = Path(__file__).parent / "corpus"
"""A file a target; an input a line, in hexadecimal."""


def kept(name: str) -> list[bytes]:
    """The corpus of a target."""
    path = CORPUS / f"{name}.txt"
    return [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(name: str, corpus: Iterable[bytes]) -> None:
    """Another corpus."""
    (CORPUS / f"{name}.txt").write_text("".join(f"{data.hex()}\n" for data in corpus))


def chosen(corpus: Iterable[bytes], found: Iterable[bytes], most: int) -> list[bytes]:
    """All of the corpus, and of what was found so many, of all sizes, that it comes to `most`."""
    old = set(corpus)
    new = sorted(set(found) - old, key=_size)
    room = max(0, most - len(old))
    return sorted((*old, *(new[:: -(-len(new) // room)] if room and new else ())), key=_size)


def _size(data: bytes) -> tuple[int, bytes]:
    return len(data), data
