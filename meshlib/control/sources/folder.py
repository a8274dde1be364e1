"""The YAML files of a folder, and what tells that one changed or is still being written.

Rules:
- Every *.yaml and *.yml below the folder counts; hidden files and folders and links in a circle do not.
- A file that somebody has open for writing is known as such where the system tells: on Linux, for the files
  of this user.
"""

import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from meshlib.control.sources.reader import MAX_BYTES, UnreadableError

_SUFFIXES = (".yaml", ".yml")

Stamp = tuple[int, int, int]
"""Modification time, size and inode: an editor that renames a copy into place changes the last."""


def stamp(found: os.stat_result) -> Stamp:
    """What changes with every edit."""
    return found.st_mtime_ns, found.st_size, found.st_ino


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file; None: there is none."""
    try:
        return stamp(path.stat())
    except OSError:
        return None


def bytes_of(path: Path, found: os.stat_result) -> bytes:
    """What a file holds. Raises UnreadableError for what is no file or too big, and OSError."""
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableError(0, "no regular file", "a file of YAML")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        size = max(found.st_size, len(data))
        raise UnreadableError(1, f"a file of {size} bytes", f"at most {MAX_BYTES} bytes; split the file")
    return data


def files_below(root: Path) -> Iterator[Path]:
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


def is_being_written(path: Path) -> bool:
    """Whether somebody has the file open for writing. False where that can't be known."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Only a file that nobody has open for writing can be leased. Who opens it in this moment waits until
        # the lease is given back; the signal that asks for that is one that is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
