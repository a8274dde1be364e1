"""Folders for the time that an agent, or a demo, lives: for its sockets, and what its Envoy is told.

Rules:

- Each has a lock in it, which is held for that time: one whose agent was killed is known by its free lock.
  The next one removes it, with what its Envoy left in shared memory.
- Only this user's, of the names that are made here, are looked at.
- Where sockets have no room in them it is said what to do (`has_room`).
"""

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from meshlib.agent.process import remove_shared
from meshlib.errors import ConfigError

BASE_ID = "base-id"
"""The file in which an Envoy says where its shared memory is."""
LOCK = "lock"
MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes of a Unix socket's path."""
_LONGEST = "control.sock"
"""The longest name of a socket in a folder of ours."""


@contextlib.contextmanager
def own_folder(kind: str) -> Iterator[Path]:
    """A new one of mode 0700; those of the same kind that nobody has any more are removed first."""
    sweep(kind)
    with contextlib.ExitStack() as stack:
        folder = _locked(stack, kind)
        stack.callback(_remove, folder)
        yield folder


def has_room(folder: Path) -> None:
    """ConfigError: the path of a folder of ours is too long for a socket in it."""
    if not fits(folder / _LONGEST):
        raise ConfigError(
            f"the folder for temporary files is too long for a Unix socket: {folder}; set TMPDIR"
        )


def fits(path: Path) -> bool:
    """Whether a Unix socket can be there."""
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH


def keep(folder: Path) -> None:
    """Nobody removes it, at its end neither."""
    (folder / LOCK).unlink()


def _remove(folder: Path) -> None:
    if (folder / LOCK).exists():
        shutil.rmtree(folder, ignore_errors=True)


def sweep(kind: str) -> list[Path]:
    """Removes those that nobody has any more, and says which."""
    found = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_prefix(kind)}*")):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            of = folder.lstat()
            if stat.S_ISDIR(of.st_mode) and of.st_uid == os.geteuid() and _lock(stack, folder, os.O_RDWR):
                remove_shared(folder / BASE_ID)
                shutil.rmtree(folder, ignore_errors=True)
                found.append(folder)
    return found


def _locked(stack: contextlib.ExitStack, kind: str) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(kind)))
        with contextlib.suppress(FileNotFoundError):
            # Somebody who sweeps may have been quicker; then it is gone, or about to be.
            if _lock(stack, folder, os.O_RDWR | os.O_CREAT) and (folder / LOCK).exists():
                return folder


def _lock(stack: contextlib.ExitStack, folder: Path, flags: int) -> bool:
    lock = os.open(folder / LOCK, flags | os.O_NOFOLLOW, 0o600)
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prefix(kind: str) -> str:
    return f"meshlib-{kind}-"
