"""The thread that ends exchanges which nobody ended: whose response was dropped, not read, not closed.

Rules:

- That an exchange was dropped is noticed on any thread, at any point, under any lock. So no lock is taken
  there: what is to be done is put into a queue that is made for this (`SimpleQueue.put` may interrupt
  itself), and done here.
- The thread is started before there is anything to drop: with the first response that is handed out unread.
- In the child of a fork nothing of the parent's is to be ended.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from meshlib.dataplane import fork

log = logging.getLogger(__name__)


class Undertaker:
    """Thread-safe."""

    def __init__(self) -> None:
        """Starts nothing."""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._noted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        fork.watch(self)

    def __repr__(self) -> str:
        return f"<Undertaker, {'at work' if self._thread else 'not started'}>"

    def expect(self) -> None:
        """There is an exchange that may be dropped."""
        if self._thread is None:
            self._start()

    def note(self, bury: Callable[[], None]) -> None:
        """`bury` is called soon, on a thread of its own. Takes no lock."""
        self._noted.put(bury)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, args=(self._noted,), name="meshlib-dropped", daemon=True)
        # The process ends, or has no thread to spare.
        with self._lock, contextlib.suppress(RuntimeError):
            if self._thread is None:
                thread.start()
                self._thread = thread

    @staticmethod
    def _run(noted: SimpleQueue[Callable[[], None]]) -> None:
        while True:
            bury = noted.get()
            try:
                with fork.calm:
                    bury()
            except Exception:
                # The thread must live.
                log.exception("a dropped exchange could not be ended")
            del bury  # it holds a client

    def before_fork(self) -> None:
        """No thread is being started during a fork."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Starts at first use."""
        self._lock = threading.Lock()
        self._noted = SimpleQueue()
        self._thread = None


undertaker = Undertaker()
