"""Join tokens: what an operator hands to a workload, so that it can ask for its first certificate.

    operator ── meshlib ca token ──► token ── MESHLIB_TOKEN ──► workload ── shown once ──► control service

A token is a JSON web token signed with ES256 by a key of the authority's state directory. It says who
its bearer is (`sub`, a SPIFFE identity), for whom it is meant (`aud`), and from when until when.
Rules:

- Whoever can read the state directory can make tokens; nobody else can. The key is 0600 and never logged.
- A token for single use is good for one certificate. That it was used is on disk before the certificate
  is signed, and remembered until the token ends. If too many must be remembered, no further one is
  taken: nothing is forgotten early.
- A token ends to the second: the clock that set its end is the one that is asked.
- A line of the record that a dying process left torn spoils no other: the next one begins a line of its own.
- Everything is checked again when a token is shown: algorithm, key, issuer, audience, times, identity.
"""

import contextlib
import errno
import hashlib
import logging
import math
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshlib.control.ca.jwt import (
    LEEWAY_SECONDS,
    TokenRefused,
    check_audience,
    check_times,
    header,
    text,
    verified,
)
from meshlib.control.ca.store import locked, prepare, read_secret, write_secret
from meshlib.errors import ConfigError
from meshlib.identity.spiffe import SpiffeId

if TYPE_CHECKING:
    from joserfc.jwk import ECKey

log = logging.getLogger(__name__)

AUDIENCE = "meshlib-control"
ISSUER = "meshlib-ca"
ALGORITHM = "ES256"
MAX_TOKEN = 8 * 1024
MAX_LIFE_SECONDS = 366 * 24 * 3600
MAX_SPENT = 10_000
KEY_FILE = "join-key.pem"
SPENT_FILE = "spent-tokens"
_ONCE = "once"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a valid join token proves."""

    identity: SpiffeId
    ends: float
    """Seconds since 1970."""
    once: str = ""
    """For single use: the name under which `spend` remembers it."""


class JoinTokens:
    """Makes and checks the tokens of one authority. Time is an argument, in seconds since 1970."""

    def __init__(self, state_dir: Path, key: "ECKey", name: str) -> None:
        """Use `open`."""
        self.name = name
        """The name of the key (`kid`)."""
        self._key = key
        self._spent = _Spent(state_dir / SPENT_FILE)

    @classmethod
    def open(cls, state_dir: Path) -> "JoinTokens":
        """From the key in a state directory; the first to ask makes it. ConfigError: it can't be used."""
        from joserfc.errors import JoseError
        from joserfc.jwk import ECKey

        path = state_dir / KEY_FILE
        prepare(state_dir)
        try:
            with locked(state_dir):
                if not path.exists():
                    write_secret(path, ECKey.generate_key("P-256").as_pem(private=True))
            key = ECKey.import_key(read_secret(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except (JoseError, ValueError, TypeError):
            raise ConfigError(f"{path} is no private key") from None
        if not key.is_private or key.curve_name != "P-256":
            raise ConfigError(f"{path} is no private key on the curve P-256")
        return cls(state_dir, key, hashlib.sha256(key.as_pem(private=False)).hexdigest()[:32])

    def issue(self, identity: SpiffeId, life: int, now: float, *, single_use: bool = False) -> str:
        """A token for that identity, good for `life` seconds. ConfigError: no such lifetime."""
        from joserfc import jwt

        if not 0 < life <= MAX_LIFE_SECONDS:
            raise ConfigError(
                f"lifetime of a token: found {life} s; allowed is 1 s to {MAX_LIFE_SECONDS // 86400} days"
            )
        since = int(now)
        claims = {
            "iss": ISSUER,
            "sub": str(identity),
            "aud": AUDIENCE,
            "iat": since,
            "nbf": since,
            "exp": since + life,
            "jti": secrets.token_hex(16),
        }
        if single_use:
            claims["use"] = _ONCE
        return jwt.encode({"alg": ALGORITHM, "kid": self.name}, claims, self._key, algorithms=[ALGORITHM])

    def verify(self, token: str, now: float) -> Proof:
        """What the token proves; one for single use is not spent by this. TokenRefused: nothing."""
        said = header(token, MAX_TOKEN)
        if said.algorithm != ALGORITHM:
            raise TokenRefused(f"algorithm {said.algorithm[:20]!r} is not taken; only {ALGORITHM} is")
        if said.key != self.name:
            raise TokenRefused("the token is signed by a key that is not known here")
        claims = verified(token, self._key, ALGORITHM)
        if claims.get("iss") != ISSUER:
            raise TokenRefused(f"the token is not from {ISSUER}")
        check_audience(claims, AUDIENCE)
        ends = check_times(claims, now, late=0.0)  # the clock that set the end
        name, use = text(claims, "jti", 64), claims.get("use")
        if use not in (None, _ONCE) or not name.isalnum():
            raise TokenRefused("the token's claims use or jti are not of our making")
        try:
            identity = SpiffeId.parse(text(claims, "sub"))
        except ValueError:
            raise TokenRefused("the token's subject is no identity of a workload") from None
        if use == _ONCE and name in self._spent:
            raise TokenRefused("the token is for single use and was used")
        return Proof(identity, ends, name if use == _ONCE else "")

    def spend(self, proof: Proof, now: float) -> None:
        """A token for single use is used now. TokenRefused: it was, or too many are remembered."""
        if proof.once:
            self._spent.add(proof.once, proof.ends + LEEWAY_SECONDS, now)


class _Spent:
    """The names of used tokens with the time until which each must be remembered; a line each, on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._until: dict[str, float] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._names()

    def add(self, name: str, until: float, now: float) -> None:
        """On disk when this returns."""
        names = self._names()
        if name in names:
            raise TokenRefused("the token is for single use and was used")
        try:
            if len(names) >= MAX_SPENT:
                self._forget(now)
            if len(names) >= MAX_SPENT:
                raise TokenRefused(
                    f"{MAX_SPENT} tokens for single use are remembered; no further one is taken"
                )
            self._append(f"{math.ceil(until)} {name}\n")
        except OSError as error:
            log.exception("%s can't be written", self._path)
            raise TokenRefused(f"tokens for single use can't be remembered: {error.strerror}") from None
        names[name] = until

    def _names(self) -> dict[str, float]:
        if self._until is None:
            self._until = {}
            with contextlib.suppress(FileNotFoundError):
                for line in self._path.read_text("ascii", "replace").splitlines():
                    until, _, name = line.partition(" ")
                    if until.isdecimal() and name:
                        self._until[name] = float(until)
        return self._until

    def _forget(self, now: float) -> None:
        """Drops what ended, and writes what is left."""
        names = self._names()
        for name in [name for name, until in names.items() if until <= now]:
            del names[name]
        lines = "".join(f"{math.ceil(until)} {name}\n" for name, until in names.items())
        write_secret(self._path, lines.encode())

    def _append(self, line: str) -> None:
        with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b", 0) as file:
            size = os.fstat(file.fileno()).st_size
            # A process may have died before it wrote its line to the end.
            torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            whole = (b"\n" if torn else b"") + line.encode("ascii")
            if file.write(whole) != len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        if not size:
            _sync_folder(self._path.parent)


def _sync_folder(folder: Path) -> None:
    """A new file's name is on disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
