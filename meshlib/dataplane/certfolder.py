"""A workload's certificate, key and roots as files, for programs that read such: gRPC's, of any language.

    FOLDER/certs -> certs-4f0q       one link, replaced whole: who reads all three gets three that fit
           certs-4f0q/               cert.pem  key.pem  roots.pem

Rules:

- Files are 0600, folders of ours 0700, from the moment they exist. One that others can write to is refused.
- The certificate before stays until the next one: somebody may just read it.
- One process writes; a second one is refused.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from meshlib.dataplane.tls import Held
from meshlib.errors import ConfigError

LINK = "certs"
CHAIN, KEY, ROOTS = "cert.pem", "key.pem", "roots.pem"
_PREFIX = f"{LINK}-"


class CertFolder:
    """One folder. Use it in `with`, which makes it and keeps others from writing to it."""

    def __init__(self, path: Path) -> None:
        """Does nothing yet."""
        self.path = path.absolute()
        self._lock = -1

    def __enter__(self) -> "CertFolder":
        """ConfigError: it can't be used."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.path.stat().st_mode & 0o022:
                raise ConfigError(f"{self.path} can be written to by others; needed is: chmod go-w")
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.__exit__()
            raise ConfigError(f"another process keeps certificates in {self.path}") from None
        except OSError as error:
            self.__exit__()
            raise ConfigError(f"{self.path} can't be used: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def file(self, name: str) -> str:
        """The path of CHAIN, KEY or ROOTS, as programs are told it."""
        return str(self.path / LINK / name)

    def write(self, held: Held) -> None:
        """Replaces what was there. OSError: it can't be, and what was there stays."""
        made = Path(tempfile.mkdtemp(dir=self.path, prefix=_PREFIX))
        try:
            _write(made / CHAIN, held.chain_pem)
            _write(made / KEY, held.key_pem.decode("ascii"))
            _write(made / ROOTS, held.roots_pem)
            before = self._now()
            self._point(made.name)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        for old in self.path.glob(f"{_PREFIX}*"):
            if old.name not in (made.name, before):
                shutil.rmtree(old, ignore_errors=True)

    def put(self, name: str, text: str) -> Path:
        """A file of its own beside them, replaced whole. OSError."""
        new = self.path / f".new-{name}"
        new.unlink(missing_ok=True)
        _write(new, text)
        return new.replace(self.path / name)

    def _now(self) -> str:
        with contextlib.suppress(OSError):
            return str((self.path / LINK).readlink())
        return ""

    def _point(self, name: str) -> None:
        new = self.path / f".new-{LINK}"
        new.unlink(missing_ok=True)
        new.symlink_to(name)
        new.replace(self.path / LINK)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
