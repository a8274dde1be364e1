"""Big texts, read on a thread of their own, so that a small edit beside them need not wait.

Rules:
- One at a time, and it makes room often: whoever else wants to run does not wait for a switch.
- A reading that nobody wants any more ends within one document; what it read stays known.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from meshlib.control.sources.pieces import Known
from meshlib.control.sources.text import TextRead, documents_in

ROOM_EVERY_SECONDS = 0.002
ROOM_SECONDS = 0.0005


class _AbandonedError(Exception):
    """Nobody waits for this reading."""


@dataclass(frozen=True, slots=True)
class Text:
    """What is read: a text, its file's name, the namespace of documents that name none, and what is known of
    the file."""

    text: str
    file: str
    namespace: str
    known: Known


class Reading:
    """One text that is being read. `result` is set before `done` is called, on the reading thread."""

    def __init__(
        self, of: Text, turn: threading.Lock, wanted: Callable[[], bool], done: Callable[[], None]
    ) -> None:
        """Begins at once. `turn` is shared by those that go one after the other."""
        self.result: TextRead | None = None
        self.abandoned = False
        self._of = of
        self._turn = turn
        self._wanted = wanted
        self._done = done
        self._room = 0.0
        threading.Thread(target=self._run, name=f"meshlib reads {of.file}", daemon=True).start()

    def _run(self) -> None:
        try:
            with self._turn:
                of = self._of
                self.result = documents_in(of.text, of.file, of.namespace, self._make_room, of.known)
        except _AbandonedError:
            return
        self._done()

    def _make_room(self) -> None:
        if self.abandoned or not self._wanted():
            raise _AbandonedError
        now = time.monotonic()
        if now >= self._room:
            # A thread that computes keeps the others waiting for a whole switch interval each time.
            time.sleep(ROOM_SECONDS)
            self._room = time.monotonic() + ROOM_EVERY_SECONDS
