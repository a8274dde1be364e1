"""A CA that somebody else keeps, in Istio's files: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem.

They are read and never written. All four are checked together, down to a certificate on trial, so that a
set that does not fit is found here and not in a handshake. The key may be readable by the file's group,
as a mounted Kubernetes secret with `defaultMode: 0440` is.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshlib.control.ca.issuer import Issuer, IssuerExpired, make_leaf
from meshlib.control.ca.store import MAX_FILE, read_secret
from meshlib.errors import ConfigError
from meshlib.identity.chain import BadCertificate, Purpose, path_to_root, verify_chain
from meshlib.identity.keys import load_key, make_key, same_key
from meshlib.identity.pem import join_pem, load_bundle, split_pem

CERTIFICATE, KEY, ROOTS, CHAIN = "ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"
_TRIAL_S = 60.0


@dataclass(frozen=True, slots=True)
class PluggedIn:
    """What the files hold."""

    issuer: Issuer
    roots_pem: str
    """All of root-cert.pem: it may list more than the one above the issuer."""


def plugin_files(folder: Path) -> tuple[Path, ...]:
    """The four files; cert-chain.pem may be missing if the root itself signs."""
    return tuple(folder / name for name in (CERTIFICATE, KEY, ROOTS, CHAIN))


def read_plugin(folder: Path, now: float) -> PluggedIn:
    """The issuer in a folder, checked. ConfigError: a file is missing, unsafe, or does not fit the others."""
    try:
        key = load_key(read_secret(folder / KEY, group=True))
    except FileNotFoundError:
        raise ConfigError(f"{folder / KEY} is missing") from None
    except ValueError as error:
        raise ConfigError(f"{folder / KEY} can't be used: {error}") from None
    own = _certificates(folder / CERTIFICATE)
    roots = _certificates(folder / ROOTS)
    between = _certificates(folder / CHAIN) if (folder / CHAIN).exists() else ()
    if not same_key(own[0].public_key(), key.public_key()):
        raise ConfigError(f"{folder / KEY} is not the key of {folder / CERTIFICATE}")
    try:
        path = path_to_root(own[0], (*own[1:], *between), roots, now)
        issuer = Issuer(key, path)
        _try(issuer, now)
    except (BadCertificate, IssuerExpired) as error:
        raise ConfigError(f"{folder / CERTIFICATE} can't sign: {error}") from None
    return PluggedIn(issuer, join_pem([_text(folder / ROOTS)]))


def _try(issuer: Issuer, now: float) -> None:
    """CA flags, path lengths, constraints on names and strengths, all as a peer will see them."""
    name = x509.UniformResourceIdentifier("spiffe://trial/ns/trial/sa/trial")
    trial_key = load_key(make_key()).public_key()
    leaf = make_leaf(issuer, trial_key, [name], list(Purpose), now, now + _TRIAL_S)
    roots = join_pem([issuer.root.public_bytes(Encoding.PEM).decode()])
    shown = [certificate.public_bytes(Encoding.DER) for certificate in (leaf, *issuer.chain)]
    for purpose in Purpose:
        verify_chain(shown, roots, now, purpose=purpose)


def _certificates(path: Path) -> tuple[x509.Certificate, ...]:
    text = _text(path)
    try:
        found = load_bundle(text)
    except ValueError:
        raise ConfigError(f"{path} holds a certificate that can't be read") from None
    if not found or len(found) != text.count("-----BEGIN CERTIFICATE-----"):
        raise ConfigError(f"{path} must hold certificates in PEM; it has {len(split_pem(text))} good ones")
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    if len(content) > MAX_FILE:
        raise ConfigError(f"{path} is larger than {MAX_FILE} bytes")
    return content.decode("utf-8", "replace")
