"""A request's body that somebody else is shown before the application reads it, over WSGI.

Rules:

- It is read as far as CONTENT_LENGTH says, or to its end where the server says that it finds it
  (`wsgi.input_terminated`); a chunked one of another server is refused with 411.
- A read can't be given up, so at the end of its time the connection is closed for reading, if the server
  shows it (gunicorn, werkzeug). Of other servers the time is looked at between two reads.
"""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from meshlib.core.authz.body import SECONDS, Beginning, BodyWanted, Found, Unread, announced
from meshlib_wsgi.peers import Environ, socket_of

CHUNK = 64 * 1024


class Body:
    """Reads the beginning of `wsgi.input`, and leaves another one there that gives all of it."""

    def __init__(self, environ: Environ, seconds: float = SECONDS) -> None:
        """`seconds` for all that is shown, from the first look on."""
        self._environ = environ
        self._seconds = seconds
        self._until = 0.0
        self._beginning: Beginning | None = None
        self._input: Any = None

    def read(self, wanted: BodyWanted) -> Found:
        """As much as is wanted."""
        environ = self._environ
        said, coded = str(environ.get("CONTENT_LENGTH") or ""), environ.get("HTTP_TRANSFER_ENCODING")
        length = None if coded else announced(said)
        if not coded and (not said or length == 0):
            return None
        if length is None and not (coded and environ.get("wsgi.input_terminated")):
            return Unread.NO_LENGTH
        if self._beginning is None:
            self._beginning = Beginning(length)
            self._input = environ["wsgi.input"]
            self._until = time.monotonic() + self._seconds
        found = self._beginning
        why = self._fill(found, wanted)
        return why or found.shown(wanted)

    def _fill(self, found: Beginning, wanted: BodyWanted) -> Unread | None:
        """None: there is enough."""
        with _closing(socket_of(self._environ), self._until - time.monotonic()):
            most = _needed(found.announced, wanted)
            while not found.ended and found.size < most:
                if time.monotonic() >= self._until:
                    return Unread.TOO_SLOW
                chunk = self._more(min(CHUNK, most - found.size))
                if not chunk and (chunk is None or found.announced is not None):
                    return Unread.TOO_SLOW if time.monotonic() >= self._until else Unread.GONE
                found.add(chunk, last=not chunk)
        return None

    def _more(self, size: int) -> bytes | None:
        """What comes next, nothing at the end; None: it broke off."""
        try:
            return bytes(self._input.read(size))
        except (OSError, ValueError):
            return None

    def restore(self) -> bool:
        """Gives the application its body back, from the beginning; False: nothing was read of it."""
        found = self._beginning
        if found is None:
            return False
        kept = io.BytesIO(found.taken())
        self._environ["wsgi.input"] = kept if found.ended else _Joined(kept, self._input)
        return True


def _needed(length: int | None, wanted: BodyWanted) -> int:
    """How many bytes must be read."""
    if length is None:
        return wanted.most + 1  # tells whether that was all
    if length > wanted.most:
        return wanted.most if wanted.partial else 0
    return length


class _Joined:
    """What was read, and then the rest."""

    def __init__(self, kept: io.BytesIO, rest: Any) -> None:
        self._kept = kept
        self._rest = rest

    def read(self, size: int | None = -1) -> bytes:
        """As a file does."""
        if size is None or size < 0:
            return self._kept.read() + bytes(self._rest.read())
        data = self._kept.read(size)
        return data if len(data) == size else data + bytes(self._rest.read(size - len(data)))

    def readline(self, size: int | None = -1) -> bytes:
        """As a file does."""
        size = -1 if size is None else size
        line = self._kept.readline(size)
        if line.endswith(b"\n") or len(line) == size:
            return line
        return line + bytes(self._rest.readline() if size < 0 else self._rest.readline(size - len(line)))

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """As a file does."""
        made, size = [], 0
        for line in self:
            made.append(line)
            size += len(line)
            if hint is not None and 0 < hint <= size:
                break
        return made

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


@contextlib.contextmanager
def _closing(connection: socket.socket | None, seconds: float) -> Iterator[None]:
    """After that time nothing more is read from the connection, wherever it waits."""
    if connection is None:
        yield
        return
    timer = threading.Timer(max(0.0, seconds), _close, (connection,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not what SSLSocket makes of it, which forgets TLS while a read is under way.
        socket.socket.shutdown(connection, socket.SHUT_RD)
