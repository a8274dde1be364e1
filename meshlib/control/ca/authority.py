"""The certificate authority of a mesh: what it trusts, what it signs, how it changes.

Rules:

- The names in a certificate come from whoever authenticated the caller; of the request only the key counts.
- Time is an argument. What follows from time alone (which root issues, which is trusted) is worked out at
  each question; `reload` does what needs the disk, and is cheap when nothing changed.
- All that is in force is one value, swapped in one assignment: threads may sign while it changes.
- A change on disk that can't be used changes nothing: what was in force stays, with a warning.
- Keys are in no message, no `repr` and no status.
"""

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from meshlib.control.ca import rotation
from meshlib.control.ca.issuer import DAY_S, Issuer, IssuerExpired, make_issuer, make_leaf
from meshlib.control.ca.plugin import PluggedIn, plugin_files, read_plugin
from meshlib.control.ca.report import report
from meshlib.control.ca.request import (
    DEFAULT_TTL_S,
    MAX_TTL_S,
    CsrRefused,
    host_names,
    lifetime,
    read_key,
)
from meshlib.control.ca.state import FILE, State, new_generation, read_state, write_state
from meshlib.control.ca.store import Stamp, locked, prepare, stamp, sweep, write_secret
from meshlib.errors import ConfigError
from meshlib.identity.chain import Purpose
from meshlib.identity.keys import key_pem, load_key, make_key
from meshlib.identity.pem import fingerprint, join_pem, to_pem
from meshlib.identity.renewal import Term, is_due
from meshlib.identity.spiffe import SpiffeId

log = logging.getLogger(__name__)

ROOTS_FILE = "roots.pem"
"""In the state folder: all roots that are trusted now, for MESHLIB_CA_FILE."""
RETRY_S = 60.0
"""What on disk could not be used is looked at again after so long, even if it looks unchanged."""
OVERLAP_S = DAY_S
"""How long a new root is announced before it issues: whoever runs has heard of it by then."""


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """For the TLS port of the control service itself."""

    chain_pem: str
    """The leaf and its intermediates, without the root."""
    key_pem: bytes = field(repr=False)
    term: Term


class Authority:
    """Signs for one trust domain."""

    def __init__(self, folder: Path, plugin: Path | None, trust_domain: str, max_ttl_s: int) -> None:
        """Use `open`."""
        self._folder = folder
        self._plugin = plugin
        self.trust_domain = trust_domain
        self._max_ttl_s = max_ttl_s
        self._now = 0.0
        self._stamp: Stamp = ()
        self._again = 0.0
        self._held: State | PluggedIn | None = None
        self._problem = ""
        self._issued = 0
        self._refused: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Authority({self.trust_domain!r}, {str(self._plugin or self._folder)!r})"

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        trust_domain: str,
        now: float,
        plugin: Path | None = None,
        max_ttl_s: int = MAX_TTL_S,
    ) -> "Authority":
        """The authority of a state folder, made there if there is none; or of Istio's plug-in files.

        ConfigError: the folder or a file is open to others, broken, or does not fit.
        """
        made = cls(state_dir, plugin, SpiffeId.of(trust_domain, "any", "any").trust_domain, max_ttl_s)
        prepare(state_dir)
        if plugin is None:
            with locked(state_dir):
                sweep(state_dir / FILE)
                found = read_state(state_dir)
                state = found or State(made.trust_domain, (new_generation(made.trust_domain, now),))
                if state.trust_domain != made.trust_domain:
                    log.warning(
                        "the trust domain was %s and is now %s", state.trust_domain, made.trust_domain
                    )
                    state = dataclasses.replace(state, trust_domain=made.trust_domain)
                if state != found:
                    write_state(state_dir, state)
        made._load(now)
        made.reload(now)
        made._publish()
        return made

    @classmethod
    def existing(cls, state_dir: Path, *, now: float) -> "Authority":
        """The authority that was opened in this folder before, whatever its trust domain.

        ConfigError: there is none, or it can't be used.
        """
        state = read_state(state_dir) if state_dir.is_dir() else None
        if state is None:
            raise ConfigError(
                f"there is no certificate authority in {state_dir}; `meshlib control` makes it at its start"
            )
        return cls.open(state_dir, trust_domain=state.trust_domain, now=now)

    @property
    def roots_pem(self) -> str:
        """Every root that is trusted now, the oldest first, as one PEM bundle."""
        held = self._state()
        if isinstance(held, PluggedIn):
            return held.roots_pem
        return join_pem(to_pem(one.issuer.root) for one in rotation.trusted(held.generations, self._now))

    @property
    def fingerprint(self) -> str:
        """`sha256:<hex>` of the root that issues now: the one above `server_certificate`."""
        return fingerprint(self._issuer(self._now)[0].root)

    def sign(
        self, csr_pem: str, identity: SpiffeId, ttl_s: int, now: float, dns: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """A certificate for a workload: PEM of the leaf, each intermediate, the root.

        `identity` and `dns` are who it is for, by whoever authenticated the caller. `ttl_s`: 0 is the
        default. CsrRefused: with the reason and the name of a gRPC status. ValueError: a bad name in `dns`.
        """
        try:
            if identity.trust_domain != self.trust_domain:
                raise CsrRefused(f"{identity} is not of {self.trust_domain}", "PERMISSION_DENIED")
            life = lifetime(ttl_s, self._max_ttl_s)
            key = read_key(csr_pem)
            names = [x509.UniformResourceIdentifier(str(identity)), *host_names(dns)]
            issuer, until = self._issuer(now)
            leaf = make_leaf(issuer, key, names, list(Purpose), now, min(now + life, until))
        except IssuerExpired as error:
            self._refused["FAILED_PRECONDITION"] += 1
            raise CsrRefused(str(error), "FAILED_PRECONDITION") from None
        except CsrRefused as error:
            self._refused[error.code] += 1
            raise
        self._issued += 1
        return tuple(to_pem(one) for one in (leaf, *issuer.chain))

    def server_certificate(
        self, names: Sequence[str], now: float, ttl_s: int = DEFAULT_TTL_S
    ) -> ServerCertificate:
        """A key and certificate for a server that these host names and IP addresses lead to.

        ValueError: a name is neither, or there is none. ConfigError: the signing certificate has ended.
        """
        if not names:
            raise ValueError("a server needs a name")
        key = load_key(make_key())
        issuer, until = self._issuer(now)
        try:
            leaf = make_leaf(
                issuer, key.public_key(), host_names(names), [Purpose.SERVER], now, min(now + ttl_s, until)
            )
        except IssuerExpired as error:
            raise ConfigError(str(error)) from None
        above = issuer.chain[:-1]
        return ServerCertificate(
            "".join(to_pem(one) for one in (leaf, *above)), key_pem(key), Term.of(leaf, now)
        )

    def rotate_root(self, now: float, *, overlap_s: float = OVERLAP_S, keep_s: float | None = None) -> None:
        """Begins a rotation: a new root is trusted at once, issues after `overlap_s`, and alone counts
        `keep_s` later (the longest life of a certificate, unless said otherwise).

        ConfigError: one is under way that does not issue yet, or the root is somebody else's to rotate.
        """
        if self._plugin is not None:
            raise ConfigError(f"the root is in {self._plugin}; replace the files there, they are read again")
        if overlap_s < 0 or (keep_s is not None and keep_s < 0):
            raise ConfigError("the times of a rotation can't be negative")
        kept = self._max_ttl_s if keep_s is None else keep_s
        with locked(self._folder):
            state = self._on_disk()
            if rotation.phase(state.generations, now)[0] is rotation.Phase.ANNOUNCED:
                raise ConfigError("a rotation is under way; wait until its root issues")
            new = new_generation(state.trust_domain, now)
            after = rotation.succeed(state.generations, new, now, overlap_s, kept)
            write_state(self._folder, dataclasses.replace(state, generations=after))
        log.info("a rotation begins: root %s issues in %.0f s", fingerprint(new.issuer.root), overlap_s)
        self.reload(now)

    def reload(self, now: float) -> bool:
        """Goes on to a time: takes what changed on disk, renews the issuer when half its life is over.

        Whether peers must be told: other roots are trusted, or another issuer signs. Never raises for what
        is on disk; call it every second or so.
        """
        before = self._told()
        self._now = now
        if stamp(*self._files()) != self._stamp or now >= self._again:
            try:
                self._load(now)
            except ConfigError as error:
                self._again = now + RETRY_S
                self._warn(f"what was in force stays: {error}")
        held = self._state()
        if isinstance(held, State) and self._tidied(held, now) != held:
            try:
                with locked(self._folder):
                    write_state(self._folder, self._tidied(self._on_disk(), now))
                self._load(now)
            except ConfigError as error:
                self._warn(f"the issuing certificate can't be renewed: {error}")
        changed = self._told() != before
        if changed:
            self._publish()
            phase = (
                rotation.phase(held.generations, now)[0].value if isinstance(held, State) else "plugged in"
            )
            log.info("the roots or the issuer changed: %s; root %s issues", phase, self.fingerprint)
        return changed

    def status(self, now: float) -> dict[str, Any]:
        """For people and programs: see `report`. No keys."""
        counts = {"issued": self._issued, "refused": dict(self._refused)}
        found = report(self._state(), self.trust_domain, now)
        if self._problem:
            found["warnings"].append(self._problem)
        return found | counts

    def _files(self) -> tuple[Path, ...]:
        return plugin_files(self._plugin) if self._plugin is not None else (self._folder / FILE,)

    def _load(self, now: float) -> None:
        """Takes what is on disk. The stamp is older than the content, so no later change is missed."""
        self._stamp = stamp(*self._files())
        self._held = read_plugin(self._plugin, now) if self._plugin is not None else self._on_disk()
        self._now = now
        self._again = float("inf")
        self._problem = ""

    def _on_disk(self) -> State:
        state = read_state(self._folder)
        if state is None:
            raise ConfigError(f"{self._folder / FILE} is gone; restore it from a copy")
        return state

    def _state(self) -> State | PluggedIn:
        assert self._held is not None  # noqa: S101 - `open` loads before it hands out
        return self._held

    def _issuer(self, now: float) -> tuple[Issuer, float]:
        """Who signs, and until when what it signs may last: no longer than its root is trusted."""
        held = self._state()
        if isinstance(held, PluggedIn):
            return held.issuer, held.issuer.end
        one = rotation.issuing(held.generations, now)
        return one.issuer, one.trusted_until if one.trusted_until is not None else one.issuer.end

    def _told(self) -> tuple[str, str]:
        """What peers know of the authority."""
        return self.roots_pem, fingerprint(self._issuer(self._now)[0].chain[0])

    @staticmethod
    def _tidied(state: State, now: float) -> State:
        """With issuers renewed that are due, and without what is long forgotten."""
        kept = rotation.remembered(state.generations, now)
        signing = rotation.issuing(kept, now), kept[-1]
        return dataclasses.replace(
            state,
            generations=tuple(
                _renewed(one, state.trust_domain, now) if one in signing else one for one in kept
            ),
        )

    def _publish(self) -> None:
        path, roots = self._folder / ROOTS_FILE, self.roots_pem.encode()
        with contextlib.suppress(OSError):
            if path.read_bytes() == roots:
                return
        try:
            write_secret(path, roots)
        except ConfigError as error:
            self._warn(str(error))

    def _warn(self, problem: str) -> None:
        """Once for each problem."""
        if problem != self._problem:
            self._problem = problem
            log.warning("certificate authority: %s", problem)


def _renewed(one: rotation.Generation, trust_domain: str, now: float) -> rotation.Generation:
    own, root = one.issuer.chain
    last = own.not_valid_after_utc >= root.not_valid_after_utc
    if last or not is_due(Term.of(own), now, 0.0):
        return one
    return dataclasses.replace(one, issuer=make_issuer(one.label, trust_domain, one.root_key, root, now))
