"""The thread that ends exchanges which nobody ended: whose response was dropped, not read, not closed.

Rules:

- That an exchange was dropped is noticed on any thread, at any point, under any lock. So no lock is taken
  there: what is to be done is put into a queue that is made for this (`SimpleQueue.put` may interrupt
  itself), and done here.
- The thread is started before there is anything to drop: with the first response that is handed out unread.
  It ends with the last client that has handed out any.
- What else an exchange has to do on a thread that is nobody's is done here, too: it may call what is the
  application's, for which a fork does not wait.
- It holds no client: one that is forgotten without being closed is not kept alive.
- In the child of a fork nothing of the parent's is to be ended.
"""

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from meshlib.dataplane import fork

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds for the thread to end."""


def _nothing() -> None:
    pass


_Noted = tuple[Callable[[], None], bool]
"""What is to be called, and whether a fork waits for it."""
_NOTHING: _Noted = (_nothing, True)


class Undertaker:
    """Thread-safe."""

    def __init__(self) -> None:
        """Starts nothing."""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._noted: SimpleQueue[_Noted] = SimpleQueue()
        self._clients: dict[int, weakref.ref[object]] = {}
        fork.watch(self)

    def __repr__(self) -> str:
        return f"<Undertaker of {len(self._clients)}, {'at work' if self._thread else 'not started'}>"

    def expect(self, client: object) -> None:
        """The client has an exchange that may be dropped."""
        if id(client) not in self._clients:
            self._start(client)

    def note(self, bury: Callable[[], None]) -> None:
        """`bury` is called soon, on a thread of its own. Takes no lock."""
        self._noted.put((bury, True))

    def leave(self, work: Callable[[], None]) -> None:
        """As `note`; no fork waits for it."""
        self._noted.put((work, False))

    def forget(self, client: object) -> None:
        """The client has none any more."""
        thread = self._thread
        if self._clients.pop(id(client), None) is None or thread is None:
            return
        self._noted.put(_NOTHING)
        if not self._clients and thread is not threading.current_thread():
            thread.join(PATIENCE)

    def _start(self, client: object) -> None:
        number, clients, noted = id(client), self._clients, self._noted

        def gone(_: object) -> None:
            clients.pop(number, None)
            noted.put(_NOTHING)

        with self._lock:
            clients[number] = weakref.ref(client, gone)
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._run, args=(noted,), name="meshlib-dropped", daemon=True)
            # The process ends, or has no thread to spare.
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def _run(self, noted: SimpleQueue[_Noted]) -> None:
        while True:
            bury, calmly = noted.get()
            try:
                with fork.calm if calmly else contextlib.nullcontext():
                    bury()
            except Exception:
                # The thread must live.
                log.exception("a dropped exchange could not be ended")
            del bury  # it holds a client
            if not self._clients:
                with self._lock:
                    if not self._clients and noted.empty():
                        self._thread = None
                        return

    def before_fork(self) -> None:
        """No thread starts or ends during a fork."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Goes on."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Starts at first use."""
        self._lock = threading.Lock()
        self._noted = SimpleQueue()
        self._thread = None
        self._clients = {}


undertaker = Undertaker()
