"""Documents from a folder of YAML files, or from one file, and the watch over them.

Rules:
- Every *.yaml and *.yml below the folder counts; hidden files and folders and links in a circle do not.
- A file that did not change is not read again.
- A broken edit takes nothing away: the last good state of what it broke stays, until the file goes.
- A big file that changes while it is watched is read aside; its last good state stays meanwhile.
- A file that is emptied or goes while it is watched counts as such after a grace: some editors empty a
  file, or take it away, before they write it. What another file holds by then is taken from there.
- The same document in two files: the first, by path, is taken; the other is an error.
"""

import asyncio
import contextlib
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import watchfiles

from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.problem import BROKEN, Problem, Severity
from meshlib.control.sources.aside import Reading, Text
from meshlib.control.sources.reader import MAX_BYTES, UnreadableError, decode
from meshlib.control.sources.source import Loaded, keep_last_good
from meshlib.control.sources.text import documents_in, refused

DEBOUNCE_MS = 50
GRACE_SECONDS = 0.5
ASIDE_CHARACTERS = 256 * 1024
_SUFFIXES = (".yaml", ".yml")

Stamp = tuple[int, int, int]
"""Modification time, size and inode: an editor that renames a copy into place changes the last."""


@dataclass(frozen=True, slots=True)
class _File:
    stamp: Stamp | None
    loaded: Loaded
    until: float | None = None
    """Emptied or gone: until then it counts as it was."""


class _Bell:
    """Makes `watch` yield, from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.rung = asyncio.Event()

    def ring(self, seconds: float = 0.0) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self.rung.set)


class FileSource:
    """A folder, or one file. Use it from one thread at a time. Raises FileNotFoundError at the start only."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        default_namespace: str = "default",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = Path(folder)
        if not self._root.exists():
            raise FileNotFoundError(f"{self._root}: no such file or folder")
        self._single = self._root.is_file()
        self._namespace = default_namespace
        self._clock = clock
        self._files: dict[str, _File] = {}
        self._bell: _Bell | None = None
        """While somebody watches."""
        self._aside: dict[str, tuple[Stamp, Reading]] = {}
        self._turn = threading.Lock()

    def load(self) -> Loaded:
        """What the files hold now, or held when they were last good."""
        now: dict[str, _File] = {}
        bell = self._bell
        found = list(self._paths())
        for name, path in found:
            file = self._read(name, path, self._files.get(name), bell)
            if file is not None:
                now[name] = file
        there = {name for name, _ in found}
        for name in self._files.keys() - there:
            if bell is not None and (file := self._without(None, self._files[name], bell)).until is not None:
                now[name] = file
        for name in self._aside.keys() - there:
            self._forget(name)
        self._files = dict(sorted(now.items()))
        return _joined(self._files)

    def look(self) -> tuple[tuple[str, Stamp | None], ...]:
        """The files and their stamps, unread: equal as long as `load` would read nothing anew."""
        return tuple((name, _stamp_of(path)) for name, path in self._paths())

    async def watch(self) -> AsyncIterator[None]:
        """Yields after a file changed, came or went, or a big one is read; what comes within 50 ms is one."""
        self._bell = bell = _Bell()
        changes = asyncio.create_task(self._ring(bell))
        changes.add_done_callback(lambda _: bell.rung.set())
        try:
            while True:
                await bell.rung.wait()
                bell.rung.clear()
                if changes.done():
                    changes.result()
                    return
                yield
        finally:
            self._bell = None  # what is read aside ends
            changes.cancel()
            await asyncio.gather(changes, return_exceptions=True)

    async def _ring(self, bell: _Bell) -> None:
        folder = self._root.parent if self._single else self._root
        changes = watchfiles.awatch(
            folder, watch_filter=self._concerns, step=10, debounce=DEBOUNCE_MS, rust_timeout=5000
        )
        async for _ in changes:
            bell.rung.set()

    def _concerns(self, _: watchfiles.Change, path: str) -> bool:
        # Every change below the folder counts: a folder that is moved in or out names no file of ours.
        changed = Path(path)
        return changed.name == self._root.name if self._single else not changed.name.startswith(".")

    def _paths(self) -> Iterator[tuple[str, Path]]:
        if self._single:
            yield self._root.name, self._root
            return
        yield from sorted((str(path.relative_to(self._root)), path) for path in _below(self._root))

    def _read(self, name: str, path: Path, before: _File | None, bell: _Bell | None) -> _File | None:
        """The file now; None: it is new and still being read."""
        good = before.loaded.documents if before else ()
        try:
            found = path.stat()
            stamp = _stamp(found)
            if before is not None and before.stamp == stamp:
                self._forget(name)
                return before if before.until is None else self._without(stamp, before, bell)
            if (ready := self._ready(name, stamp, before)) is not None:
                return ready
            if name in self._aside:
                return before
            text = decode(_bytes(path, found))
        except (UnreadableError, OSError) as error:
            unreadable = (
                error
                if isinstance(error, UnreadableError)
                else UnreadableError(0, f"can't be read: {error.strerror}", "a readable file")
            )
            return _File(None, keep_last_good(good, (), None, refused(unreadable, name).problems))
        if bell is not None and len(text) > ASIDE_CHARACTERS:
            of = Text(text, name, self._namespace)
            self._aside[name] = stamp, Reading(of, self._turn, lambda: self._bell is bell, bell.ring)
            return before
        read = documents_in(text, name, self._namespace)
        if good and before is not None and not read.documents and not read.problems:
            return self._without(stamp, replace(before, until=None), bell)
        return _File(stamp, keep_last_good(good, read.documents, read.lost, read.problems))

    def _ready(self, name: str, stamp: Stamp, before: _File | None) -> _File | None:
        """What was read aside, if that is the file as it stands; another one's reading is ended."""
        if name not in self._aside:
            return None
        begun, reading = self._aside[name]
        if begun != stamp or self._bell is None:
            self._forget(name)
            return None
        if (read := reading.result) is None:
            return None
        del self._aside[name]
        good = before.loaded.documents if before else ()
        return _File(stamp, keep_last_good(good, read.documents, read.lost, read.problems))

    def _forget(self, name: str) -> None:
        _, reading = self._aside.pop(name, (None, None))
        if reading is not None:
            reading.abandoned = True

    def _without(self, stamp: Stamp | None, before: _File, bell: _Bell | None) -> _File:
        """A file that holds nothing, or is gone: as it was until its grace is over."""
        now = self._clock()
        until = now + GRACE_SECONDS if before.until is None else before.until
        if bell is None or now >= until or not before.loaded.documents:
            return _File(stamp, Loaded())
        bell.ring(until - now)
        return _File(stamp, before.loaded, until)


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
    there = {d.key for file in files.values() if file.until is None for d in file.loaded.documents}
    for file in files.values():
        problems.extend(file.loaded.problems)
        for document in file.loaded.documents:
            if file.until is not None and document.key in there:
                continue
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
