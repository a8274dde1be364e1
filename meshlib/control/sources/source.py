"""What a source of documents is, and the one that keeps them in memory."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.problem import Problem, Severity
from meshlib.control.sources.text import TextRead, documents_in


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source holds now. An error never takes away the last good state of its document."""

    documents: tuple[AnyDocument, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that refuse something."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)


class Source(Protocol):
    """Where documents come from."""

    def load(self) -> Loaded:
        """The documents now, and everything that is wrong with them."""
        ...

    def watch(self) -> AsyncIterator[None]:
        """Yields after something may have changed; the next `load()` shows it."""
        ...


class MemorySource:
    """Documents from a text that can be replaced; for tests and for meshes inside a process."""

    def __init__(self, text: str = "", default_namespace: str = "default", file: str = "memory.yaml") -> None:
        self._namespace = default_namespace
        self._file = file
        self._changed = asyncio.Event()
        self._loaded = Loaded()
        self.put(text)

    def put(self, text: str) -> Loaded:
        """Replace the text. What is broken in it keeps its last good state."""
        read = documents_in(text, self._file, self._namespace)
        self._loaded = keep_last_good(self._loaded.documents, read)
        self._changed.set()
        return self._loaded

    def load(self) -> Loaded:
        """The documents now."""
        return self._loaded

    async def watch(self) -> AsyncIterator[None]:
        """Yields after every `put`, at least once."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield


def keep_last_good(before: Iterable[AnyDocument], read: TextRead) -> Loaded:
    """The documents of one text: those that are good now, and the last good state of the others.

    While anything in the text is refused, all that it held before stays: a document that is missing may be
    the broken one, by another name. Of one that stands twice the last good state counts, if there is any:
    nobody can tell which of the two it is.
    """
    loaded = Loaded(read.documents, read.problems)
    if not loaded.errors:
        return loaded
    kept = {document.key: document for document in read.documents}
    for document in before:
        if document.key not in kept or document.key in read.twice:
            kept[document.key] = document
    return Loaded(tuple(kept.values()), read.problems)
