"""A document: one YAML object that passed validation, with where each of its fields stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

S = TypeVar("S", bound=BaseModel, covariant=True)

FieldPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Document(Generic[S]):
    """One object. Its identity is (kind, namespace, name); compare by `is` or by `fingerprint`."""

    kind: str
    namespace: str
    name: str
    spec: S
    api_version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    """metadata.creationTimestamp, ISO 8601 in UTC (sorts as text); empty in files."""
    file: str = ""
    """The path as the user would recognise it: relative to the folder that is served."""
    line: int = 0
    lines: Mapping[FieldPath, int] = field(default_factory=dict)
    """The line of every key and list item, by its path as written, e.g. ("spec", "http", 0, "match"); where
    the document stood when it was read, see `line_of`."""
    moved: int = 0
    """How many lines further down it stands by now."""
    fingerprint: str = ""
    """A hash of the content, so that an unchanged document is known without comparing it."""

    @property
    def key(self) -> tuple[str, str, str]:
        """(kind, namespace, name)."""
        return self.kind, self.namespace, self.name

    @property
    def title(self) -> str:
        """`VirtualService default/reviews`."""
        return f"{self.kind} {self.namespace}/{self.name}"

    @property
    def age(self) -> tuple[str, str, str]:
        """Sorts as Istio does: oldest first, then by name, then by namespace."""
        return self.created, self.name, self.namespace

    def line_of(self, path: FieldPath) -> int | None:
        """The line of what was written at a path; None: nothing was."""
        line = self.lines.get(path)
        return None if line is None else line + self.moved

    def source(self, *path: str | int) -> str:
        """`file:line` of a field, or of the nearest field around it that was written."""
        for end in range(len(path), -1, -1):
            if line := self.line_of(path[:end]):
                return f"{self.file}:{line}"
        return f"{self.file}:{self.line}"

    def __repr__(self) -> str:
        return f"<{self.title} {self.file}:{self.line}>"


AnyDocument = Document[Any]
