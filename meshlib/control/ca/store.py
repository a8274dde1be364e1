"""Secrets on disk: a folder that belongs to one user, files that are written whole, one writer at a time.

Rules:

- The folder is 0700 and every file 0600 from the moment it exists: a mode is never corrected later.
- A file is written beside, flushed to the disk and renamed, so that it is the old one or the new one.
- What others may read, or might have written, is refused with the command that mends it. An empty
  folder of ours is closed to others without asking.
- Writers take the lock; a process that dies gives it back. Readers need none.
"""

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from meshlib.bootstrap import state_home
from meshlib.errors import ConfigError

MAX_FILE = 1024 * 1024
LOCK = "lock"
LOCK_WAIT_S = 10.0
"""Longer than any writer holds it: a key and a certificate are made in milliseconds."""
_LOOK_S = 0.02

Stamp = tuple[tuple[int, int, int, int], ...]
"""Of each file: when it was changed, which one it is, its size and mode; zeros: there is none."""


def default_folder(environ: Mapping[str, str]) -> Path | None:
    """Where a control service keeps its state when nothing else is said. None: there is no home."""
    home = state_home(environ)
    return home and home / "meshlib-control"


def prepare(folder: Path) -> None:
    """Makes the folder, or finds it closed to others. ConfigError: it can't be used."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
        if _strange(about):
            raise ConfigError(f"the folder {folder} belongs to another user; secrets need one of their own")
        if not about.st_mode & 0o077:
            return
        if any(folder.iterdir()):
            raise ConfigError(f"the folder {folder} is open to other users; run: chmod 700 {folder}")
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"the folder {folder} can't be used for secrets: {error}") from None


def read_secret(path: Path, *, group: bool = False) -> bytes:
    """The content of a file that others can't read; `group`: its group may.

    FileNotFoundError: there is none. ConfigError: others may read it, or it is unusable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(f"{path} is no file")
        if _strange(about):
            raise ConfigError(f"{path} belongs to another user")
        if about.st_mode & (0o037 if group else 0o077):
            raise ConfigError(f"{path} is open to other users; run: chmod 600 {path}")
        if about.st_size > MAX_FILE:
            raise ConfigError(f"{path} is larger than {MAX_FILE} bytes")
        return file.read(MAX_FILE + 1)


def write_secret(path: Path, content: bytes) -> None:
    """Replaces a file whole. ConfigError: it can't be written, and the old one is still there."""
    try:
        _replace(path, content)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}") from None


def _replace(path: Path, content: bytes) -> None:
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=_unfinished(path))  # 0600, exclusive
    try:
        with os.fdopen(handle, "wb") as file:
            _give(handle, path.parent)
            file.write(content)
            file.flush()
            os.fsync(handle)
        Path(beside).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(beside).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep(path: Path) -> None:
    """Removes what a writer of this file left when it died. Only with the lock held."""
    for left in path.parent.glob(_unfinished(path) + "*"):
        with contextlib.suppress(OSError):
            left.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. ConfigError: another process keeps it."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"{folder / LOCK} can't be used: {error.strerror}") from None
    try:
        _give(handle, folder)
        _take(handle, folder)
        yield
    finally:
        os.close(handle)


def stamp(*paths: Path) -> Stamp:
    """What changes when one of the files does; links are followed."""
    return tuple(_stamp(path) for path in paths)


def _take(handle: int, folder: Path) -> None:
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ConfigError(f"another process holds {folder / LOCK}") from None
            time.sleep(_LOOK_S)
        else:
            return


def _stamp(path: Path) -> tuple[int, int, int, int]:
    try:
        about = path.stat()
    except OSError:
        return (0, 0, 0, 0)
    return (about.st_ctime_ns, about.st_ino, about.st_size, about.st_mode)


def _strange(about: os.stat_result) -> bool:
    """Whether it belongs to neither us nor the superuser, who may use what is anybody's."""
    return os.geteuid() != 0 and about.st_uid not in {os.geteuid(), 0}


def _give(handle: int, folder: Path) -> None:
    """What the superuser writes in a user's folder is that user's: the service must read it."""
    owner = folder.stat()
    if os.geteuid() == 0 and os.fstat(handle).st_uid != owner.st_uid:
        os.fchown(handle, owner.st_uid, owner.st_gid)


def _unfinished(path: Path) -> str:
    return f".{path.name}-"
