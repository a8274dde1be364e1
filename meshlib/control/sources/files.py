"""Documents from a folder of YAML files, or from one file, and the watch over them.

Rules:
- A file that did not change is not read again.
- A broken edit takes nothing away: while anything in a file is refused, all that it held before stays, until
  the file goes. A name may be what is broken, so that nobody knows whose last good state is meant.
- A big file that changes while it is watched is read aside, and of it only the documents that changed; its
  last good state stays meanwhile.
- A file that is still being written while it is watched counts as it was, until it is closed, or nothing was
  written for a while.
- Documents that are missing at the end of a file that is watched, or with it, are gone after a grace: some
  editors empty a file, or take it away, before they write it, and some write it in parts. What another file
  holds by then is taken from there.
- The same document in two files: the one that was in force stays, at the start the first by path; the other
  is an error, and of its file too all stays that it held before.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.parse import Key
from meshlib.control.istio.problem import BROKEN, Problem, Severity
from meshlib.control.sources.aside import Reading, Text
from meshlib.control.sources.folder import (
    Stamp,
    bytes_of,
    files_below,
    is_being_written,
    stamp,
    stamp_of,
)
from meshlib.control.sources.pieces import Known
from meshlib.control.sources.reader import UnreadableError, decode
from meshlib.control.sources.source import Loaded, keep_last_good
from meshlib.control.sources.text import TextRead, documents_in, refused

if TYPE_CHECKING:
    import watchfiles

DEBOUNCE_MS = 50
GRACE_SECONDS = 0.5
ASIDE_CHARACTERS = 256 * 1024
LONGEST_GRACE_SECONDS = 5.0
"""For a file that is written again and again, and for one that is open and not written."""
LOOK_AGAIN_SECONDS = 0.05
GONE: Stamp = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Grace:
    """What a file comes to once documents that it does not hold any more are given up."""

    then: Loaded
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class _File:
    stamp: Stamp | None
    loaded: Loaded
    grace: _Grace | None = None
    doubtful: tuple[AnyDocument, ...] = ()
    """What it held before, and may hold by another name, which is another file's."""

    @property
    def standing(self) -> tuple[AnyDocument, ...]:
        """All that is in force of it."""
        return self.loaded.documents + self.doubtful

    @property
    def firm(self) -> Loaded:
        """Without what is only there for its grace."""
        return self.loaded if self.grace is None else self.grace.then


@dataclass(slots=True)
class _Open:
    """A file that somebody writes: since when it stands like this."""

    stamp: Stamp
    since: float


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
        self._in_force: dict[Key, str] = {}
        """Which file each document was taken from."""
        self._bell: _Bell | None = None
        """While somebody watches."""
        self._aside: dict[str, tuple[Stamp, Reading]] = {}
        self._known: dict[str, Known] = {}
        self._open: dict[str, _Open] = {}
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
            if (file := self._settled(GONE, Loaded(), self._files[name], bell)).grace is not None:
                now[name] = file
        for name in self._aside.keys() - there:
            self._forget(name)
        for name in self._known.keys() - there:
            del self._known[name]
        files = dict(sorted(now.items()))
        in_force = _in_force(files, self._in_force)
        if self._doubt(files, in_force):
            in_force = _in_force(files, self._in_force)
        self._files, self._in_force = files, in_force
        return _joined(files, in_force)

    def _doubt(self, files: dict[str, _File], in_force: Mapping[Key, str]) -> bool:
        """Keeps what is missing from a file as long as one of its documents stands in another one, too: that
        may be the missing one, by a wrong name. True: anything is kept, or kept no more.
        """
        changed = False
        for name, file in list(files.items()):
            before = self._files.get(name)
            doubtful: tuple[AnyDocument, ...] = ()
            if before is not None and any(in_force[one.key] != name for one in file.firm.documents):
                here = {document.key for document in file.loaded.documents}
                doubtful = tuple(one for one in before.standing if one.key not in here)
            if doubtful != file.doubtful:
                changed = True
                files[name] = replace(file, doubtful=doubtful)
        return changed

    def look(self) -> tuple[tuple[str, Stamp | None], ...]:
        """The files and their stamps, unread: equal as long as `load` would read nothing anew."""
        return tuple((name, stamp_of(path)) for name, path in self._paths())

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
        import watchfiles  # which only those need who go on

        changes = watchfiles.awatch(
            folder, watch_filter=self._concerns, step=10, debounce=DEBOUNCE_MS, rust_timeout=5000
        )
        async for _ in changes:
            bell.rung.set()

    def _concerns(self, _: "watchfiles.Change", path: str) -> bool:
        # Every change below the folder counts: a folder that is moved in or out names no file of ours.
        changed = Path(path)
        return changed.name == self._root.name if self._single else not changed.name.startswith(".")

    def _paths(self) -> Iterator[tuple[str, Path]]:
        if self._single:
            yield self._root.name, self._root
            return
        yield from sorted((str(path.relative_to(self._root)), path) for path in files_below(self._root))

    def _read(self, name: str, path: Path, before: _File | None, bell: _Bell | None) -> _File | None:
        """The file now; None: it is new and still being written or read."""
        try:
            found = path.stat()
            now = stamp(found)
            if before is not None and before.stamp == now:
                self._forget(name)
                return self._after_grace(before, bell)
            if (ready := self._ready(name, now)) is not None:
                return self._taken(now, ready, before, bell)
            if name in self._aside or (bell is not None and self._is_open(name, path, now, bell)):
                return before
            text = decode(bytes_of(path, found))
        except (UnreadableError, OSError) as error:
            unreadable = (
                error
                if isinstance(error, UnreadableError)
                else UnreadableError(0, f"can't be read: {error.strerror}", "a readable file")
            )
            return self._taken(None, refused(unreadable, name), before, bell)
        if len(text) <= ASIDE_CHARACTERS:
            return self._taken(now, documents_in(text, name, self._namespace), before, bell)
        known = self._known.setdefault(name, Known())
        if bell is not None:
            of = Text(text, name, self._namespace, known)
            self._aside[name] = now, Reading(of, self._turn, lambda: self._bell is bell, bell.ring)
            return before
        with self._turn:  # a reading that nobody wants any more may know the same pieces
            read = documents_in(text, name, self._namespace, known=known)
        return self._taken(now, read, before, bell)

    def _is_open(self, name: str, path: Path, now: Stamp, bell: _Bell) -> bool:
        """Whether somebody still writes the file, as far as one waits for that."""
        if not is_being_written(path):
            self._open.pop(name, None)
            return False
        at = self._clock()
        last = self._open.get(name)
        if last is None or last.stamp != now:
            last = self._open[name] = _Open(now, at)
        if at - last.since >= LONGEST_GRACE_SECONDS:
            return False
        bell.ring(LOOK_AGAIN_SECONDS)
        return True

    def _ready(self, name: str, now: Stamp) -> TextRead | None:
        """What was read aside, if that is the file as it stands; another one's reading is ended."""
        if name not in self._aside:
            return None
        begun, reading = self._aside[name]
        if begun != now or self._bell is None:
            self._forget(name)
        elif reading.result is not None:
            del self._aside[name]
        return reading.result if begun == now else None

    def _forget(self, name: str) -> None:
        _, reading = self._aside.pop(name, (None, None))
        if reading is not None:
            reading.abandoned = True

    def _taken(self, now: Stamp | None, read: TextRead, before: _File | None, bell: _Bell | None) -> _File:
        good = before.standing if before else ()
        loaded = keep_last_good(good, read)
        return self._settled(now, loaded, before, bell)

    def _settled(self, now: Stamp | None, loaded: Loaded, before: _File | None, bell: _Bell | None) -> _File:
        """A file that holds this now. What it does not hold any more stays for a grace."""
        if before is None or bell is None:
            return _File(now, loaded)
        if now == GONE and before.stamp == GONE:
            return self._after_grace(before, bell)
        leaving = _tail(before.loaded, loaded)
        at = self._clock()
        since = at if before.grace is None else before.grace.since
        until = min(at + GRACE_SECONDS, since + LONGEST_GRACE_SECONDS)
        if not leaving or at >= until:
            return _File(now, loaded)
        bell.ring(until - at)
        kept = Loaded((*loaded.documents, *leaving), loaded.problems)
        return _File(now, kept, _Grace(loaded, since, until))

    def _after_grace(self, file: _File, bell: _Bell | None) -> _File:
        """A file that did not change, without what had a grace, if that is over."""
        if file.grace is None:
            return file
        left = file.grace.until - self._clock()
        if bell is None or left <= 0:
            return _File(file.stamp, file.grace.then)
        bell.ring(left)
        return file


def _tail(before: Loaded, now: Loaded) -> tuple[AnyDocument, ...]:
    """What is missing at the end of a file that is otherwise made of the same documents, in their order.

    Where anything else came or went, the file was edited, and is what it is.
    """
    count = len(now.documents)
    same = [d.key for d in now.documents] == [d.key for d in before.documents[:count]]
    return before.documents[count:] if same else ()


def _in_force(files: dict[str, _File], before: Mapping[Key, str]) -> dict[Key, str]:
    """Which file each document is taken from."""
    firm: dict[Key, list[str]] = {}
    passing: dict[Key, str] = {}
    for name, file in files.items():
        for document in file.firm.documents:
            firm.setdefault(document.key, []).append(name)
        for document in file.standing:
            passing.setdefault(document.key, name)
    chosen = {key: _first(names, before.get(key)) for key, names in firm.items()}
    return passing | chosen


def _first(names: list[str], before: str | None) -> str:
    return before if before in names else names[0]


def _joined(files: dict[str, _File], in_force: Mapping[Key, str]) -> Loaded:
    documents: dict[Key, AnyDocument] = {}
    refused: list[tuple[Key, AnyDocument]] = []
    problems: list[Problem] = []
    for name, file in files.items():
        problems.extend(file.loaded.problems)
        firm = {document.key for document in file.firm.documents}
        for document in file.standing:
            if in_force[document.key] == name:
                documents[document.key] = document
            elif document.key in firm:  # else it moved to another file
                refused.append((document.key, document))
    problems.extend(_in_two_files(document, documents[key]) for key, document in refused)
    return Loaded(tuple(documents.values()), tuple(problems))


def _in_two_files(document: AnyDocument, first: AnyDocument) -> Problem:
    return Problem(
        Severity.ERROR,
        BROKEN,
        "the document stands in two files",
        document.title,
        document.file,
        document.line,
        "metadata.name",
        allowed=f"one of them; {first.source()} is taken",
    )
