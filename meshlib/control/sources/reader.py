"""YAML text to plain values, with the line of every key and item.

Rules:
- Values are what JSON knows: mappings by text, lists, text, numbers, booleans, null.
- Everything is bounded: bytes, depth, and nodes, counted as if every alias were written out.
- Nothing recurses: nesting is a list, so that no input can exhaust the stack.
- A key that stands twice in a mapping makes its document unusable, not the file.
- Text that is no YAML makes the whole file unusable: where the next document begins is unknown.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import yaml
from yaml import events

MAX_BYTES = 10 * 1024 * 1024
MAX_DEPTH = 64
MAX_NODES = 500_000
"""In one document, aliases written out."""
MAX_NODES_IN_FILE = 2_000_000

Path = tuple[str | int, ...]


class UnreadableError(ValueError):
    """Text that is not YAML, or more of it than is taken."""

    def __init__(self, line: int, message: str, allowed: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.allowed = allowed


@dataclass(slots=True)
class Raw:
    """One YAML document. `twice` are the keys that stand twice, which makes it unusable: the line of the
    second, its path, the line of the first."""

    value: Any = None
    line: int = 1
    lines: dict[Path, int] = field(default_factory=dict)
    twice: list[tuple[int, Path, int]] = field(default_factory=list)
    nodes: int = 0
    """How many values it holds, aliases written out."""

    def down(self, lines: int) -> "Raw":
        """The same, that many lines further down."""
        if lines == 0:
            return self
        moved = {path: line + lines for path, line in self.lines.items()}
        twice = [(line + lines, path, first + lines) for line, path, first in self.twice]
        return Raw(self.value, self.line + lines, moved, twice, self.nodes)


@dataclass(slots=True)
class _Open:
    """A mapping or list that is not closed yet."""

    value: Any
    path: Path
    anchor: str | None
    line: int
    key: str | None = None
    merged: list[Mapping[str, Any]] = field(default_factory=list)
    nodes: int = 1


def decode(data: bytes) -> str:
    """The text of a file. Raises UnreadableError for what is too big or no UTF-8."""
    if len(data) > MAX_BYTES:
        raise UnreadableError(1, f"a file of {len(data)} bytes", f"at most {MAX_BYTES} bytes; split the file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError(line, f"byte 0x{data[error.start]:02x} is not UTF-8", "text in UTF-8") from None


def read(text: str) -> Iterator[Raw]:
    """The documents of a YAML text, empty ones left out. Raises UnreadableError, also half-way."""
    if len(text) > MAX_BYTES:
        raise too_long(text)
    try:
        loader = yaml.CSafeLoader(text)
    except (yaml.YAMLError, ValueError) as error:
        raise _unreadable(error) from None
    try:
        while True:
            event = _next(loader)
            if isinstance(event, events.StreamEndEvent):
                return
            if not isinstance(event, events.DocumentStartEvent):
                continue
            raw = _Builder(loader).build()
            if raw.value is not None:
                yield raw
    except UnreadableError as error:
        raise _tab(text, error) from None
    finally:
        loader.dispose()


def too_long(text: str) -> UnreadableError:
    """The error for a text that is longer than what is taken."""
    return UnreadableError(1, f"a text of {len(text)} characters", f"at most {MAX_BYTES}; split the file")


def _tab(text: str, error: UnreadableError) -> UnreadableError:
    """Says so where a tab is to blame, which libyaml puts in other words."""
    line = next(islice(io.StringIO(text), error.line - 1, None), "")
    if "\t" in line[: len(line) - len(line.lstrip())] and error.message.startswith("not YAML"):
        return UnreadableError(
            error.line, "a tab is used to indent", "spaces; YAML is indented by spaces only"
        )
    return error


def _next(loader: yaml.CSafeLoader) -> events.Event:
    try:
        event = loader.get_event()
    except (yaml.YAMLError, ValueError) as error:
        raise _unreadable(error) from None
    if event is None:
        raise UnreadableError(1, "not YAML: it ends too early", "valid YAML")
    return event


def _unreadable(error: Exception) -> UnreadableError:
    mark = getattr(error, "problem_mark", None)
    message = getattr(error, "problem", None) or getattr(error, "reason", None) or "this can't be read"
    line = mark.line + 1 if mark is not None else 1
    if "maximum nesting depth" in message:  # newer versions of libyaml have a limit of their own, further on
        return _too_deep(line)
    context = getattr(error, "context", None)
    return UnreadableError(line, f"not YAML: {message}" + (f" {context}" if context else ""), "valid YAML")


def _too_deep(line: int) -> UnreadableError:
    return UnreadableError(line, "nested too deeply", f"at most {MAX_DEPTH} levels")


class _Builder:
    """Puts the events of one document together."""

    def __init__(self, loader: yaml.CSafeLoader) -> None:
        self.loader = loader
        self.raw = Raw()
        self.nodes = 0
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.begun = False

    def build(self) -> Raw:
        while True:
            event = _next(self.loader)
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, events.DocumentEndEvent):
                self.raw.nodes = self.nodes
                return self.raw
            if not self.begun:
                self.begun = True
                self.raw.line = line
            if isinstance(event, events.ScalarEvent):
                self._scalar(event, line)
            elif isinstance(event, events.MappingStartEvent):
                self._begin({}, event.anchor, line)
            elif isinstance(event, events.SequenceStartEvent):
                self._begin([], event.anchor, line)
            elif isinstance(event, events.AliasEvent):
                self._alias(event.anchor or "", line)
            else:
                self._end()

    def _count(self, nodes: int, line: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise UnreadableError(
                line, "too many values in one document", f"at most {MAX_NODES}, aliases expanded"
            )

    def _begin(self, value: Any, anchor: str | None, line: int) -> None:
        self._count(1, line)
        if len(self.open) >= MAX_DEPTH:
            raise _too_deep(line)
        if self.open and isinstance(self.open[-1].value, dict) and self.open[-1].key is None:
            raise UnreadableError(line, "a key that is a mapping or a list", "keys are text")
        self.open.append(_Open(value, self._path(line), anchor, line))

    def _path(self, line: int) -> Path:
        """The path of the value that comes next; a list's item is noted with its line."""
        if not self.open:
            return ()
        parent = self.open[-1]
        if parent.key is not None:
            return (*parent.path, parent.key)
        path = (*parent.path, len(parent.value))
        self.raw.lines[path] = line
        return path

    def _end(self) -> None:
        done = self.open.pop()
        for base in done.merged:
            for key, value in base.items():
                done.value.setdefault(key, value)
        if done.anchor:
            self.anchors[done.anchor] = (done.value, done.nodes)
        self._put(done.value, done.nodes, done.line)

    def _alias(self, anchor: str, line: int) -> None:
        if anchor not in self.anchors:
            raise UnreadableError(line, f"*{anchor} stands before or inside its anchor", f"&{anchor} first")
        value, nodes = self.anchors[anchor]
        self._count(nodes, line)
        self._path(line)
        if self.open and isinstance(self.open[-1].value, dict) and self.open[-1].key is None:
            raise UnreadableError(line, "an alias as a key", "keys are text")
        self._put(value, nodes, line)

    def _scalar(self, event: events.ScalarEvent, line: int) -> None:
        self._count(1, line)
        parent = self.open[-1] if self.open else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            self._key(parent, event, line)
            return
        self._path(line)
        value = _value(self.loader, event)
        if event.anchor:
            self.anchors[event.anchor] = (value, 1)
        self._put(value, 1, line)

    def _key(self, parent: _Open, event: events.ScalarEvent, line: int) -> None:
        parent.key = key = event.value
        path = (*parent.path, key)
        if key in parent.value:
            first = self.raw.lines.get(path, parent.line)
            self.raw.twice.append((line, path, first))
        else:
            self.raw.lines[path] = line

    def _put(self, value: Any, nodes: int, line: int) -> None:
        if not self.open:
            self.raw.value = value
            return
        parent = self.open[-1]
        parent.nodes += nodes
        if isinstance(parent.value, list):
            parent.value.append(value)
            return
        key, parent.key = parent.key or "", None
        if key == "<<":
            bases = value if isinstance(value, list) else [value]
            if not all(isinstance(base, dict) for base in bases):
                raise UnreadableError(line, "<< merges mappings only", "a mapping or a list of mappings")
            parent.merged.extend(bases)
        else:
            parent.value.setdefault(key, value)


_TRUE = frozenset(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"))
_NULL = frozenset(("", "~", "null", "Null", "NULL"))


def _value(loader: yaml.CSafeLoader, event: events.ScalarEvent) -> Any:
    text = event.value
    if event.tag is not None:
        tag = event.tag
    elif event.implicit[0]:
        tag = loader.resolve(yaml.ScalarNode, text, event.implicit)  # type: ignore[no-untyped-call]
    else:
        return text
    kind = tag.rpartition(":")[2]
    if kind == "null":
        return None if text in _NULL else text
    if kind == "bool":
        return text in _TRUE
    # 1:30 is a number to base 60 in YAML 1.1 only; nobody who writes it in a mesh means 90.
    if ":" in text or len(text) > 64:
        return text
    try:
        if kind == "int":
            return _whole(text)
        if kind == "float":
            return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())
    except ValueError:
        return text
    return text


def _whole(text: str) -> int:
    digits = text.replace("_", "")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    if digits.lower().startswith("0x"):
        return sign * int(digits, 16)
    if digits.lower().startswith("0b"):
        return sign * int(digits, 2)
    if digits.startswith("0") and len(digits) > 1:
        return sign * int(digits.removeprefix("0o"), 8)
    return sign * int(digits)
