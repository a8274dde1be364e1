"""A YAML text to documents, with everything that is wrong in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from meshlib.control.istio.document import AnyDocument, FieldPath
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.istio.parse import Key, Origin, items, parse, spell
from meshlib.control.istio.problem import BROKEN, Problem, Severity
from meshlib.control.sources.reader import Raw, UnreadableError, read

MESH_FILES = ("mesh.yaml", "mesh.yml", "meshconfig.yaml", "meshconfig.yml")
"""A file of this name may hold the plain keys of MeshConfig."""

MESH_CONFIG_FORMS = (
    f"the file name {' or '.join(MESH_FILES)}; or apiVersion: mesh.istio.io/v1alpha1 and kind: MeshConfig "
    "beside the keys; or the key mesh of the ConfigMap istio"
)


@dataclass(frozen=True, slots=True)
class TextRead:
    """The documents of one text. `lost` are the identities that are refused; None: not all are known."""

    documents: tuple[AnyDocument, ...]
    problems: tuple[Problem, ...]
    lost: frozenset[Key] | None


def documents_in(
    text: str, file: str, default_namespace: str = "default", between: Callable[[], None] = lambda: None
) -> TextRead:
    """Read a text. A text that is no YAML yields no documents at all. Never raises for its content.

    `between` is called between documents; what it raises ends the reading.
    """
    raws = []
    try:
        for raw in read(text):
            raws.append(raw)
            between()
    except UnreadableError as error:
        return refused(error, file)
    reading = _Reading(file, default_namespace)
    for raw in raws:
        reading.take(raw)
        between()
    return TextRead(tuple(reading.documents.values()), tuple(reading.problems), reading.lost())


def refused(error: UnreadableError, file: str) -> TextRead:
    """What a text that can't be read comes to."""
    problem = Problem(
        Severity.ERROR, BROKEN, error.message, file=file, line=error.line, allowed=error.allowed
    )
    return TextRead((), (problem,), None)


class _Reading:
    def __init__(self, file: str, default_namespace: str) -> None:
        self.file = file
        self.namespace = default_namespace
        self.documents: dict[Key, AnyDocument] = {}
        self.problems: list[Problem] = []
        self._lost: set[Key] = set()
        self._nameless = False

    def lost(self) -> frozenset[Key] | None:
        return None if self._nameless else frozenset(self._lost)

    def take(self, raw: Raw) -> None:
        value = raw.value
        if _is_plain_mesh_config(value, self.file):
            value = {"apiVersion": "mesh.istio.io/v1alpha1", "kind": "MeshConfig", **value}
        for item, line, lines in items(value, raw.line, raw.lines):
            faults = _faults_of(raw, line, lines)
            if (inner := _mesh_in_config_map(item)) is not None:
                self._config_map(inner, lines.get(("data", "mesh"), line), item)
            else:
                self._object(item, line, lines, faults)

    def _object(
        self, value: Any, line: int, lines: Mapping[FieldPath, int], faults: list[tuple[int, FieldPath, str]]
    ) -> None:
        if _is_mesh_config_elsewhere(value):
            self._nameless = True
            self._error(line, "plain keys of MeshConfig, without a kind", "", "kind", MESH_CONFIG_FORMS)
            return
        parsed = parse(value, Origin(self.file, line, lines, self.namespace))
        if parsed.skipped:
            return
        title = f"{parsed.key[0]} {parsed.key[1]}/{parsed.key[2]}" if parsed.key else ""
        for at, path, message in faults:
            self._error(at, message, title, spell(path), "each key once")
        self.problems.extend(parsed.problems)
        broken = faults or any(problem.severity is Severity.ERROR for problem in parsed.problems)
        if parsed.document is None or broken:
            if broken and parsed.key is None:
                self._nameless = True
            elif parsed.key and broken:
                self._lost.add(parsed.key)
            return
        document = parsed.document
        if first := self.documents.get(document.key):
            message = "the document stands twice"
            self._error(line, message, document.title, "metadata.name", f"once; first in {first.source()}")
            return
        self.documents[document.key] = document

    def _config_map(self, text: str, line: int, config_map: Mapping[str, Any]) -> None:
        """MeshConfig as Istio keeps it: YAML in the key `mesh` of the ConfigMap `istio`."""
        try:
            raws = list(read(text))
        except UnreadableError as error:
            self._nameless = True
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
            lines = {path: line + at for path, at in raw.lines.items()}
            self._object(value, line, lines, [(line + at, path, text) for at, path, text in raw.faults])

    def _error(self, line: int, message: str, title: str, field: str, allowed: str) -> None:
        self.problems.append(
            Problem(Severity.ERROR, BROKEN, message, title, self.file, line, field, allowed=allowed)
        )


def _faults_of(raw: Raw, line: int, lines: Mapping[FieldPath, int]) -> list[tuple[int, FieldPath, str]]:
    """The faults that stand in one object of a document."""
    if lines is raw.lines:
        return raw.faults
    last = max(lines.values(), default=line)
    return [fault for fault in raw.faults if line <= fault[0] <= last + 1]


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
