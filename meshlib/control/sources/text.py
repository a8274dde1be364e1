"""A YAML text to documents, with everything that is wrong in it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from meshlib.control.istio.document import AnyDocument, FieldPath
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.istio.parse import Key, Origin, items, parse, spell
from meshlib.control.istio.problem import BROKEN, Problem, Severity
from meshlib.control.sources.pieces import Found, Known, Piece, split
from meshlib.control.sources.reader import (
    MAX_BYTES,
    MAX_NODES_IN_FILE,
    Raw,
    UnreadableError,
    read,
    too_long,
)

MESH_FILES = ("mesh.yaml", "mesh.yml", "meshconfig.yaml", "meshconfig.yml")
"""A file of this name may hold the plain keys of MeshConfig."""

MESH_CONFIG_FORMS = (
    f"the file name {' or '.join(MESH_FILES)}; or apiVersion: mesh.istio.io/v1alpha1 and kind: MeshConfig "
    "beside the keys; or the key mesh of the ConfigMap istio"
)


@dataclass(frozen=True, slots=True)
class TextRead:
    """The documents of one text. `twice` are the identities that stand in it more than once."""

    documents: tuple[AnyDocument, ...]
    problems: tuple[Problem, ...]
    twice: frozenset[Key] = frozenset()


def documents_in(
    text: str,
    file: str,
    default_namespace: str = "default",
    between: Callable[[], None] = lambda: None,
    known: Known | None = None,
) -> TextRead:
    """Read a text. A text that is no YAML yields no documents at all. Never raises for its content.

    `between` is called between documents; what it raises ends the reading. `known` holds what stood in the
    same file before, and afterwards what stands there now: what did not change is not read again.
    """
    if len(text) > MAX_BYTES:
        return refused(too_long(text), file)
    known = Known() if known is None else known
    standing = list(split(text))
    known.keep_only({piece: None for _, piece in standing})
    pieces: list[Piece] = []
    values = 0
    try:
        for line, piece in standing:
            read_before = known.at(piece, line)
            if read_before is None:
                read_before = _Reading(file, default_namespace, line).read(piece, between)
                known.add(piece, read_before)
            else:
                between()
            values += read_before.nodes
            if values > MAX_NODES_IN_FILE:
                raise UnreadableError(line, "too many values in one file", f"at most {MAX_NODES_IN_FILE}")
            pieces.append(read_before)
    except UnreadableError as error:
        return refused(error, file)
    return _joined(found for piece in pieces for found in piece.found)


def refused(error: UnreadableError, file: str) -> TextRead:
    """What a text that can't be read comes to."""
    problem = Problem(
        Severity.ERROR, BROKEN, error.message, file=file, line=error.line, allowed=error.allowed
    )
    return TextRead((), (problem,))


def _joined(every: Iterable[Found]) -> TextRead:
    documents: dict[Key, AnyDocument] = {}
    problems: list[Problem] = []
    twice: set[Key] = set()
    for found in every:
        problems.extend(found.problems)
        document = found.document
        if document is not None and not found.broken:
            first = documents.setdefault(document.key, document)
            if first is not document:
                twice.add(document.key)
                problems.append(_twice(document, first))
    return TextRead(tuple(documents.values()), tuple(problems), frozenset(twice))


def _twice(document: AnyDocument, first: AnyDocument) -> Problem:
    message, allowed = "the document stands twice", f"once; first in {first.source()}"
    return Problem(
        Severity.ERROR,
        BROKEN,
        message,
        document.title,
        document.file,
        document.line,
        "metadata.name",
        allowed=allowed,
    )


class _Reading:
    """Reads one piece, which begins in that line of its file."""

    def __init__(self, file: str, default_namespace: str, line: int) -> None:
        self.file = file
        self.namespace = default_namespace
        self.line = line
        self.found: list[Found] = []

    def read(self, text: str, between: Callable[[], None]) -> Piece:
        """The objects of a piece. Raises UnreadableError."""
        nodes = 0
        try:
            for raw in read(text):
                nodes += raw.nodes
                self._take(raw.down(self.line - 1))
                between()
        except UnreadableError as error:
            raise UnreadableError(error.line + self.line - 1, error.message, error.allowed) from None
        return Piece(self.line, nodes, tuple(self.found))

    def _take(self, raw: Raw) -> None:
        value = raw.value
        if _is_plain_mesh_config(value, self.file):
            value = {"apiVersion": "mesh.istio.io/v1alpha1", "kind": "MeshConfig", **value}
        for item, line, lines in items(value, raw.line, raw.lines):
            twice = _twice_in(raw, line, lines)
            if (inner := _mesh_in_config_map(item)) is not None:
                self._config_map(inner, lines.get(("data", "mesh"), line), item)
            else:
                self._object(item, line, lines, twice)

    def _object(
        self, value: Any, line: int, lines: Mapping[FieldPath, int], twice: list[tuple[int, FieldPath, int]]
    ) -> None:
        if _is_mesh_config_elsewhere(value):
            self._error(line, "plain keys of MeshConfig, without a kind", "", "kind", MESH_CONFIG_FORMS)
            return
        parsed = parse(value, Origin(self.file, line, lines, self.namespace))
        if parsed.skipped:
            return
        title = f"{parsed.key[0]} {parsed.key[1]}/{parsed.key[2]}" if parsed.key else ""
        problems = [
            self._problem(
                at, f"the key stands twice, first in line {first}", title, spell(path), "each key once"
            )
            for at, path, first in twice
        ]
        problems.extend(parsed.problems)
        self.found.append(Found(None if twice else parsed.document, tuple(problems), parsed.key))

    def _config_map(self, text: str, line: int, config_map: Mapping[str, Any]) -> None:
        """MeshConfig as Istio keeps it: YAML in the key `mesh` of the ConfigMap `istio`."""
        try:
            raws = list(read(text))
        except UnreadableError as error:
            self._error(line + error.line, error.message, "ConfigMap istio", "data.mesh", error.allowed)
            return
        metadata = config_map.get("metadata")
        for raw in raws[:1]:
            body = raw.value if isinstance(raw.value, dict) else {"data.mesh": raw.value}
            value = {
                "apiVersion": "mesh.istio.io/v1alpha1",
                "kind": "MeshConfig",
                "metadata": metadata,
                **body,
            }
            inner = raw.down(line)
            self._object(value, line, inner.lines, inner.twice)

    def _error(self, line: int, message: str, title: str, field: str, allowed: str) -> None:
        """An object whose identity can't be read."""
        self.found.append(Found(None, (self._problem(line, message, title, field, allowed),), None))

    def _problem(self, line: int, message: str, title: str, field: str, allowed: str) -> Problem:
        return Problem(Severity.ERROR, BROKEN, message, title, self.file, line, field, allowed=allowed)


def _twice_in(raw: Raw, line: int, lines: Mapping[FieldPath, int]) -> list[tuple[int, FieldPath, int]]:
    """The keys that stand twice in one object of a document."""
    if lines is raw.lines:
        return raw.twice
    last = max(lines.values(), default=line)
    return [one for one in raw.twice if line <= one[0] <= last + 1]


def _is_plain_mesh_config(value: Any, file: str) -> bool:
    return isinstance(value, dict) and "kind" not in value and PurePath(file).name in MESH_FILES


def _is_mesh_config_elsewhere(value: Any) -> bool:
    """Only keys of MeshConfig, one at least, in a file whose name does not say so."""
    if not isinstance(value, dict) or not value:
        return False
    known = {name for key, one in MeshConfig.model_fields.items() for name in (key, one.alias)}
    return all(key in known for key in value)


def _mesh_in_config_map(value: Any) -> str | None:
    if not isinstance(value, dict) or value.get("kind") != "ConfigMap":
        return None
    metadata, data = value.get("metadata"), value.get("data")
    if not isinstance(metadata, dict) or metadata.get("name") != "istio" or not isinstance(data, dict):
        return None
    mesh = data.get("mesh")
    return mesh if isinstance(mesh, str) else None
