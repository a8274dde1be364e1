"""The file in which a workload's certificate is kept between two processes.

Rules:

- One file for an identity, a control service and a fingerprint; 0600, replaced whole.
- One that others can read, that somebody else wrote, or that is of another authority is not used.
- What can't be written is a warning.
- Files of those who are gone are removed when their certificates have ended (`sweep`).
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.tls import Held
from meshlib.identity.pem import load_bundle, split_pem, to_der
from meshlib.identity.renewal import Term

log = logging.getLogger(__name__)

_MOST_STATE = 1024 * 1024


class CertFile:
    """Where one workload's certificate is kept, if anywhere."""

    def __init__(self, settings: Bootstrap) -> None:
        """Reads and writes nothing."""
        self._authority = settings.ca_file
        self.path = _path_of(settings)
        """None: nothing is kept."""

    def read(self) -> tuple[str, bytes, str] | None:
        """Chain (PEM, no root), key and roots as they were kept, unchecked; None: there is nothing to use.

        FileNotFoundError: there is no file. OSError, ValueError, KeyError, TypeError: it is none of ours.
        """
        path = self.path
        if path is None:
            return None
        if why := _unfit(path.stat()):
            log.warning("%s %s: it is not used", path, why)
            return None
        said = json.loads(path.read_text(encoding="ascii"))
        key, roots = str(said["key"]).encode(), str(said["roots"])
        ours = self._authority
        if ours is not None and not set(split_pem(roots)) & set(split_pem(ours.read_text("ascii"))):
            log.info("the certificate in %s is not used: it is of another authority than %s", path, ours)
            return None
        return str(said["chain"]), key, roots

    def roots(self) -> str:
        """The roots that were kept, whatever became of the certificate; empty: there are none to use."""
        try:
            said = self.read()
            if said is not None and to_der(said[2]):
                return said[2]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # who reads the certificate says so
        return ""

    def forget(self) -> None:
        """Removes what was kept."""
        path = self.path
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def write(self, held: Held) -> None:
        """Replaces what was kept."""
        path = self.path
        if path is None:
            return
        said = {"chain": held.chain_pem, "key": held.key_pem.decode(), "roots": held.roots_pem}
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # 0600
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    json.dump(said, file)
                Path(name).replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            log.warning("the certificate can't be kept in %s: %s", path, error)


def sweep(state_dir: Path, now: float) -> None:
    """Removes the files below it whose certificates have ended."""
    for path in sorted(_folder(state_dir).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if not _unfit(path.stat()) and _ends(path) <= now:
                path.unlink()


def _ends(path: Path) -> float:
    chain = load_bundle(str(json.loads(path.read_text(encoding="ascii"))["chain"]))
    return Term.of(chain[0]).end if chain else 0.0


def _folder(state_dir: Path) -> Path:
    return state_dir / "identity"


def _path_of(settings: Bootstrap) -> Path | None:
    if settings.state_dir is None:
        return None
    anchor = settings.ca_fingerprint or (str(settings.ca_file) if settings.ca_file else "")
    who = json.dumps([settings.control, settings.namespace, settings.service_account, anchor])
    return _folder(settings.state_dir) / f"{hashlib.sha256(who.encode()).hexdigest()[:32]}.json"


def _unfit(about: os.stat_result) -> str:
    """Why a file can't hold our key; empty: it can."""
    if about.st_mode & 0o077:
        return "can be read by others"
    if os.geteuid() != 0 and about.st_uid not in (os.geteuid(), 0):
        return "belongs to somebody else"
    return "is too large" if about.st_size > _MOST_STATE else ""
