"""The last good configuration on disk, so that a process starts and serves while control is down.

Rules:

- One file a target, named by a hash of who asks and one of the target's name: processes that share a
  folder share what they know and never overwrite each other's other targets.
- A target is kept with what it names and control said does not exist, or it would wait for that for ever.
- A file is replaced whole (written beside, then renamed), carries its checksum, and belongs to its
  owner alone (folder 0700, file 0600). A file that is broken, too large or somebody else's is
  ignored with a warning; a folder that can't be written costs one warning and no request.
- The number and size of files are bounded; the one unwritten for longest goes first. Room is made once for
  all that is saved at once.
"""

import base64
import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from meshlib.values import dataclass
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource

log = logging.getLogger(__name__)

MAX_FILE = 32 * 1024 * 1024
MAX_FILES = 1000
_FORMAT = b"meshlib-state-"
_MAGIC = _FORMAT + b"3"
_SUFFIX = ".mesh"


@dataclass(frozen=True, slots=True)
class LastGood:
    """What was in force for a target: resources as they came, and what it names that does not exist."""

    version: str
    resources: tuple[Resource, ...]
    absent: frozenset[tuple[Kind, str]] = frozenset()
    decided: str = ""
    """The configuration that the target's own rules came with."""


class Cache:
    """The folder of one workload."""

    def __init__(self, folder: Path, identity: Iterable[str]) -> None:
        """`identity` is all that decides what control answers; what another identity wrote is not read."""
        self._folder = folder
        self._identity = "\0".join(identity)
        self._written: dict[str, bytes] = {}
        self._complained = False

    def __repr__(self) -> str:
        return f"Cache({str(self._folder)!r})"

    def load(self, target: str) -> LastGood | None:
        """What was kept of a target, or None."""
        try:
            return self._read(target)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            path = self._path(target)
            log.warning("ignoring the last good configuration of %s in %s: %s", target, path, error)
            return None

    def why_not(self, target: str) -> str:
        """Why `load` gives nothing, as half a sentence; empty: it gives something."""
        try:
            self._read(target)
        except FileNotFoundError:
            kept = [path.name for path in self._folder.glob("*" + _SUFFIX)]
            if any(name.startswith(_hash(self._identity)) for name in kept):
                return f"the last good configuration in {self._folder} is of other targets"
            if kept:
                return (
                    f"the last good configuration in {self._folder} is another client's: of another control "
                    "address, namespace, service account, labels or locality"
                )
            return f"there is no last good configuration in {self._folder}"
        except (OSError, ValueError) as error:
            return f"the last good configuration in {self._path(target)} can't be used: {error}"
        return ""

    def save(self, found: Mapping[str, LastGood]) -> None:
        """Keeps what is in force, by target; nothing is written that is what was written last."""
        new = [(target, kept, _content(kept)) for target, kept in found.items()]
        new = [one for one in new if self._written.get(one[0]) != one[2]]
        if not new:
            return
        try:
            self._prepare()
            for target, kept, content in new:
                if self._replace(target, kept):
                    self._written[target] = content
            self._make_room()
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("the last good configuration can't be kept in %s: %s", self._folder, error)

    def forget(self, targets: Iterable[str]) -> None:
        """These are saved no more for now; their files stay."""
        for target in targets:
            self._written.pop(target, None)

    def remove(self, targets: Iterable[str]) -> None:
        """Keeps nothing of these."""
        for target in targets:
            self._written.pop(target, None)
            with contextlib.suppress(OSError):
                self._path(target).unlink()

    def _path(self, target: str) -> Path:
        return self._folder / f"{_hash(self._identity)}-{_hash(target)}{_SUFFIX}"

    def _read(self, target: str) -> LastGood:
        """FileNotFoundError: nothing was kept. OSError, ValueError: it can't be used."""
        with self._path(target).open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.geteuid():
                raise ValueError("it belongs to another user")
            if about.st_size > MAX_FILE:
                raise ValueError(f"it is larger than {MAX_FILE} bytes")
            whole = file.read(MAX_FILE)
        try:
            return self._parse(target, whole)
        except (KeyError, TypeError):
            raise ValueError("it is broken") from None

    def _parse(self, target: str, whole: bytes) -> LastGood:
        head, _, payload = whole.partition(b"\n")
        magic = head.partition(b" ")[0]
        if magic.startswith(_FORMAT) and magic != _MAGIC:
            raise ValueError("it was written by another version of meshlib")
        if head != _MAGIC + b" " + _checksum(payload):
            raise ValueError("it is broken")
        found = json.loads(payload)
        if found["identity"] != self._identity or found["target"] != target:
            raise ValueError("it is of something else")
        resources = (
            Resource(Kind[kind], name, version, base64.b64decode(body, validate=True))
            for kind, name, version, body in found["resources"]
        )
        absent = frozenset((Kind[kind], name) for kind, name in found["absent"])
        return LastGood(str(found["version"]), tuple(resources), absent, str(found["decided"]))

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._folder.stat().st_uid == os.geteuid():
            self._folder.chmod(0o700)

    def _replace(self, target: str, kept: LastGood) -> bool:
        """Writes a target's file; False: it would be too large."""
        said = {
            "identity": self._identity,
            "target": target,
            "version": kept.version,
            "decided": kept.decided,
        }
        resources, absent = _listed(kept)
        payload = json.dumps({**said, "resources": resources, "absent": absent}).encode()
        whole = _MAGIC + b" " + _checksum(payload) + b"\n" + payload
        if len(whole) > MAX_FILE:
            return False
        handle, beside = tempfile.mkstemp(dir=self._folder, prefix=".new-")  # 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(whole)
            Path(beside).replace(self._path(target))
        except BaseException:
            with contextlib.suppress(OSError):
                Path(beside).unlink()
            raise
        return True

    def _make_room(self) -> None:
        with os.scandir(self._folder) as entries:
            files = [entry for entry in entries if entry.name.endswith(_SUFFIX)]
        if len(files) <= MAX_FILES:
            return
        ages: list[tuple[float, str]] = []
        for file in files:
            with contextlib.suppress(OSError):
                ages.append((file.stat().st_mtime, file.path))
        for _, path in sorted(ages)[: len(files) - MAX_FILES]:
            with contextlib.suppress(OSError):
                Path(path).unlink()


def _listed(kept: LastGood) -> tuple[list[list[str]], list[list[str]]]:
    listed = [[r.kind.name, r.name, r.version, base64.b64encode(r.body).decode()] for r in kept.resources]
    return listed, sorted([kind.name, name] for kind, name in kept.absent)


def _content(kept: LastGood) -> bytes:
    """Equal for what need not be written twice: whatever its version."""
    content = hashlib.blake2b(digest_size=16)
    for resource in kept.resources:
        head = (resource.kind.name, resource.name, resource.version, str(len(resource.body)), "")
        content.update("\0".join(head).encode() + resource.body)
    for kind, name in sorted((kind.name, name) for kind, name in kept.absent):
        content.update(f"{kind}\0{name}\0".encode())
    return content.digest()


def _checksum(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).hexdigest().encode()


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
