"""Folders for Unix sockets of whose paths gRPC reads and says: the one place where they are made.

Rules:

- The path of a socket is short (107 bytes on Linux, 103 on macOS): the longest name there is is tried.
- gRPC spells other letters than these in its own way, so that nobody would know its peers by their names.
- The folder for temporary files, if it will do; else one that does everywhere.
"""

import re
import secrets
import socket
import tempfile
from pathlib import Path

ELSEWHERE = "/tmp"  # noqa: S108 - a folder of our own is made there
_PLAIN = re.compile(r"[A-Za-z0-9/._~-]*")


def socket_folder(prefix: str = "meshlib-") -> Path:
    """A new one of mode 0700, whose name begins with `prefix`. OSError: there is no place for it."""
    failed = OSError("gRPC spells its path otherwise")
    for place in (tempfile.gettempdir(), ELSEWHERE):
        if _PLAIN.fullmatch(place):
            try:
                return _made_in(place, prefix)
            except OSError as error:
                failed = error
    raise failed


def guessed_by_nobody() -> str:
    """A name for a socket in it; no longer one fits."""
    return secrets.token_hex(16)


def _made_in(place: str, prefix: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    path = folder / guessed_by_nobody()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            made.bind(str(path))
            path.unlink()
    except OSError:
        folder.rmdir()
        raise
    return folder
