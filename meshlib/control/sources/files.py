"""Documents from a folder of YAML files, or from one file, and the watch over them.

Rules:
- Every *.yaml and *.yml below the folder counts; hidden files and folders and links in a circle do not.
- A file that did not change is not read again.
- A broken edit takes nothing away: the last good state of what it broke stays, until the file goes.
- The same document in two files: the first, by path, is taken; the other is an error.
"""

import os
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import watchfiles

from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.problem import BROKEN, Problem, Severity
from meshlib.control.sources.reader import MAX_BYTES, UnreadableError, decode
from meshlib.control.sources.source import Loaded, keep_last_good
from meshlib.control.sources.text import documents_in, refused

DEBOUNCE_MS = 50
_SUFFIXES = (".yaml", ".yml")

Stamp = tuple[int, int, int]
"""Modification time, size and inode: an editor that renames a copy into place changes the last."""


@dataclass(frozen=True, slots=True)
class _File:
    stamp: Stamp | None
    loaded: Loaded


class FileSource:
    """A folder, or one file. Use it from one thread at a time. Raises FileNotFoundError at the start only."""

    def __init__(self, folder: str | os.PathLike[str], default_namespace: str = "default") -> None:
        self._root = Path(folder)
        if not self._root.exists():
            raise FileNotFoundError(f"{self._root}: no such file or folder")
        self._single = self._root.is_file()
        self._namespace = default_namespace
        self._files: dict[str, _File] = {}

    def load(self) -> Loaded:
        """What the files hold now, or held when they were last good."""
        now: dict[str, _File] = {}
        for name, path in self._paths():
            now[name] = self._read(name, path, self._files.get(name))
        self._files = now
        return _joined(now)

    def look(self) -> tuple[tuple[str, Stamp | None], ...]:
        """The files and their stamps, unread: equal as long as `load` would read nothing anew."""
        return tuple((name, _stamp_of(path)) for name, path in self._paths())

    async def watch(self) -> AsyncIterator[None]:
        """Yields after a file changed, came or went; several changes within 50 ms are one."""
        folder = self._root.parent if self._single else self._root
        changes = watchfiles.awatch(
            folder, watch_filter=self._concerns, step=10, debounce=DEBOUNCE_MS, rust_timeout=5000
        )
        async for _ in changes:
            yield

    def _concerns(self, _: watchfiles.Change, path: str) -> bool:
        # Every change below the folder counts: a folder that is moved in or out names no file of ours.
        changed = Path(path)
        return changed.name == self._root.name if self._single else not changed.name.startswith(".")

    def _paths(self) -> Iterator[tuple[str, Path]]:
        if self._single:
            yield self._root.name, self._root
            return
        yield from sorted((str(path.relative_to(self._root)), path) for path in _below(self._root))

    def _read(self, name: str, path: Path, before: _File | None) -> _File:
        good = before.loaded.documents if before else ()
        try:
            found = path.stat()
            stamp = _stamp(found)
            if before is not None and before.stamp == stamp:
                return before
            text = decode(_bytes(path, found))
        except (UnreadableError, OSError) as error:
            unreadable = (
                error
                if isinstance(error, UnreadableError)
                else UnreadableError(0, f"can't be read: {error.strerror}", "a readable file")
            )
            return _File(None, keep_last_good(good, (), None, refused(unreadable, name).problems))
        read = documents_in(text, name, self._namespace)
        return _File(stamp, keep_last_good(good, read.documents, read.lost, read.problems))


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_mtime_ns, found.st_size, found.st_ino


def _stamp_of(path: Path) -> Stamp | None:
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _bytes(path: Path, found: os.stat_result) -> bytes:
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableError(0, "no regular file", "a file of YAML")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        size = max(found.st_size, len(data))
        raise UnreadableError(1, f"a file of {size} bytes", f"at most {MAX_BYTES} bytes; split the file")
    return data


def _below(root: Path) -> Iterator[Path]:
    """The YAML files below a folder. A folder that is reached twice, by a link, is walked once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield Path(folder, name)


def _joined(files: dict[str, _File]) -> Loaded:
    documents: dict[tuple[str, str, str], AnyDocument] = {}
    problems: list[Problem] = []
    for file in files.values():
        problems.extend(file.loaded.problems)
        for document in file.loaded.documents:
            first = documents.setdefault(document.key, document)
            if first is not document:
                problem = Problem(Severity.ERROR, BROKEN, "the document stands in two files", document.title)
                allowed = f"one of them; {first.source()} is taken"
                problems.append(
                    replace(
                        problem,
                        file=document.file,
                        line=document.line,
                        field="metadata.name",
                        allowed=allowed,
                    )
                )
    return Loaded(tuple(documents.values()), tuple(problems))
