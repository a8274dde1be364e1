"""Which secrets an Envoy may ask the agent for, and what they are now.

- `default` and `ROOTCA`: the workload's own certificate and the mesh's roots.
- a SPIFFE id: the certificate of a workload of this node, for as long as the workload is there. Whose trust
  domain the name has does not count: the mesh may be about to get another one.
- `file-cert:<certificate>~<key>`, `file-root:<ca>` and `file-crl:<ca>~<revoked>`: files of this machine that
  a Gateway names.

Rules:

- Files are looked at again and again; changed ones are a new secret. A pair that does not fit, or can't be
  read, is told once, and the last good one stays: half of a replacement is never shown, nor told, unless the
  other half does not come soon.
- A certificate that has ended is shown, as Envoy does, and told once.
- What was never good is no secret: Envoy then closes the connections that would need it.
- What was not asked for in ten minutes is forgotten.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509

from meshlib.identity.keys import load_key, same_key
from meshlib.identity.pem import load_bundle
from meshlib.identity.renewal import out_of_force
from meshlib.identity.spiffe import SCHEME, SpiffeId
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.names import FILE_CERT, FILE_CRL, FILE_ROOT, OWN_SECRET, ROOTS_SECRET
from meshlib.xds.snapshot import Resource

log = logging.getLogger(__name__)

MAX_BYTES = 1024 * 1024
"""Of a file with a certificate, a key, roots or what is revoked."""
KEEP_SECONDS = 600.0
PATIENCE_SECONDS = 5.0
"""For the other files of a replacement."""


class Svid(Protocol):
    """A workload's certificate, and the roots that it trusts."""

    @property
    def chain_pem(self) -> str:
        """The leaf first."""

    @property
    def principal(self) -> str:
        """Whose it is: a SPIFFE id."""

    @property
    def key_pem(self) -> bytes:
        """Its private key."""

    @property
    def roots_pem(self) -> str:
        """All roots that are trusted now."""


@dataclass(slots=True)
class _Wrong:
    """Files that can't be used: why, since when, and whether it is told."""

    why: str
    since: float
    told: bool = False


class Secrets:
    """The secrets of one Envoy. Not thread-safe."""

    def __init__(
        self,
        own: Callable[[], Svid | None],
        workloads: Callable[[SpiffeId], Svid | None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`own` is the workload's certificate in force, `workloads` those of others; None: it has none."""
        self._own, self._workloads = own, workloads
        self._clock, self._wall = clock, wall
        self._asked: dict[str, float] = {}
        self._svid: Svid | None = None
        self._svids: dict[str, Svid] = {}
        """Of the workloads', by name: what is in `_good`."""
        self._stamps: dict[str, object] = {}
        self._good: dict[str, Resource] = {}
        self._wrong: dict[str, _Wrong] = {}
        self._chains: dict[str, tuple[x509.Certificate, ...]] = {}
        """Of files whose certificates have not been told to have ended."""

    def of(self, names: Iterable[str]) -> list[Resource]:
        """Those of these secrets that there are now; those of files are read again if they changed."""
        svid = self._own()
        if svid is not None and svid is not self._svid:
            self._svid = svid
            self._put(OWN_SECRET, certificate(OWN_SECRET, svid.chain_pem.encode(), svid.key_pem))
            self._put(ROOTS_SECRET, roots(ROOTS_SECRET, svid.roots_pem.encode()))
        wanted = sorted(set(names))
        for name in wanted:
            if name.startswith((FILE_CERT, FILE_ROOT, FILE_CRL)):
                self._look(name)
            elif name.startswith(SCHEME):
                self._look_at_workload(name)
        self._forget(wanted)
        return [self._good[name] for name in wanted if name in self._good]

    def _look_at_workload(self, name: str) -> None:
        try:
            found = self._workloads(SpiffeId.parse(name))
        except ValueError:
            return
        if found is None:
            self._svids.pop(name, None)
            self._good.pop(name, None)
        elif found is not self._svids.get(name):
            self._svids[name] = found
            self._put(name, certificate(name, found.chain_pem.encode(), found.key_pem))

    def _forget(self, wanted: Iterable[str]) -> None:
        """What nobody asked for in a while."""
        now = self._clock()
        self._asked.update(dict.fromkeys(wanted, now))
        for name in [name for name, asked in self._asked.items() if now - asked > KEEP_SECONDS]:
            del self._asked[name]
            self._stamps.pop(name, None)
            self._svids.pop(name, None)
            self._wrong.pop(name, None)
            self._chains.pop(name, None)
            if name not in (OWN_SECRET, ROOTS_SECRET):
                self._good.pop(name, None)

    def _put(self, name: str, message: Any) -> None:
        self._good[name] = Resource.of(Kind.SECRET, name, message)

    def _look(self, name: str) -> None:
        files = _files(name)
        stamps = tuple(_stamp(path) for path in files)
        if stamps != self._stamps.get(name):
            self._stamps[name] = stamps
            self._read(name, files)
        shown = ", ".join(map(str, files))
        wrong, known = self._wrong.get(name), name in self._good
        if wrong and not wrong.told and (not known or self._clock() - wrong.since >= PATIENCE_SECONDS):
            wrong.told = True
            stays = "; the last good one stays" if known else "; nothing is served with it"
            log.error("the secret of %s can't be used: %s%s", shown, wrong.why, stays)
        chain = self._chains.get(name)
        if chain and (why := out_of_force(chain, self._wall())):
            del self._chains[name]
            log.warning("the certificate of %s %s; it is served all the same", shown, why)

    def _read(self, name: str, files: list[Path]) -> None:
        try:
            read = [_read(path) for path in files]
            made = _made(name, *read)
        except (OSError, ValueError) as error:
            before = self._wrong.get(name)
            self._wrong[name] = _Wrong(str(error), self._clock() if before is None else before.since)
        else:
            self._wrong.pop(name, None)
            self._put(name, made)
            self._chains[name] = load_bundle(read[0].decode("ascii", "replace"))


def certificate(name: str, chain: bytes, key: bytes) -> Any:
    """An envoy.extensions.transport_sockets.tls.v3.Secret of a certificate with its key."""
    made = pb.Secret(name=name)
    made.tls_certificate.certificate_chain.inline_bytes = chain
    made.tls_certificate.private_key.inline_bytes = key
    return made


def roots(name: str, pem: bytes) -> Any:
    """An envoy.extensions.transport_sockets.tls.v3.Secret of what is trusted."""
    made = pb.Secret(name=name)
    made.validation_context.trusted_ca.inline_bytes = pem
    return made


def _files(name: str) -> list[Path]:
    if name.startswith(FILE_ROOT):
        return [Path(name.removeprefix(FILE_ROOT))]
    first, _, second = name.partition(":")[2].partition("~")
    return [Path(first), Path(second)]


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    with path.open("rb") as file:
        found = file.read(MAX_BYTES + 1)
    if len(found) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes")
    return found


def _made(name: str, first: bytes, second: bytes = b"") -> Any:
    """The secret of these files. ValueError: they are none."""
    if name.startswith(FILE_CERT):
        return _pair(name, first, second)
    made = roots(name, _checked_roots(first))
    if name.startswith(FILE_CRL):
        made.validation_context.crl.inline_bytes = _checked_crl(second)
    return made


def _checked_crl(pem: bytes) -> bytes:
    try:
        x509.load_pem_x509_crl(pem)
    except ValueError:
        raise ValueError("there is no list of revoked certificates in it") from None
    return pem


def _checked_roots(pem: bytes) -> bytes:
    if not load_bundle(pem.decode("ascii", "replace")):
        raise ValueError("there is no certificate in it")
    return pem


def _pair(name: str, chain: bytes, key: bytes) -> Any:
    certificates = load_bundle(chain.decode("ascii", "replace"))
    if not certificates:
        raise ValueError("there is no certificate in it")
    if not same_key(load_key(key).public_key(), certificates[0].public_key()):
        raise ValueError("the key is not that of the certificate")
    return certificate(name, chain, key)
