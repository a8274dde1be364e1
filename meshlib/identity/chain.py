"""What makes a certificate a workload's, and a chain one that the roots vouch for.

OpenSSL builds and checks chains in a handshake. It does not know what an identity of the mesh is, and
takes for a server or client what we do not. So, of a leaf:

- Exactly one URI name, and that is a SPIFFE identity of a trust domain that is asked for (X.509-SVID, 2).
- It is no certificate of an authority: no CA flag, no key usage to sign certificates (X.509-SVID, 4).
- For servers and clients (EKU), signed with SHA-256 or better, by and with keys that are not short.
- It is its time; `SKEW` seconds are forgiven at the beginning, for clocks differ, and none at the end.
"""

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshlib.identity.spiffe import SpiffeId

SKEW = 60.0
MOST_CERTIFICATES = 32
MOST_BYTES = 256 * 1024
SHORTEST_RSA = 2048
SHORTEST_EC = 256
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----[^-]{1,65536}-----END CERTIFICATE-----")
_GOOD_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class BadCertificate(ValueError):
    """A certificate that must not be trusted; the message says why."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a workload's certificate says."""

    identity: SpiffeId
    not_before: float
    """Seconds since 1970."""
    not_after: float


def split_pem(text: str) -> list[str]:
    """The certificates of a PEM text, each on its own, a line break at its end. BadCertificate: too many."""
    if len(text) > MOST_BYTES:
        raise BadCertificate(f"{len(text)} bytes of certificates; at most {MOST_BYTES} are taken")
    found = [f"{block}\n" for block in _PEM.findall(text)]
    if len(found) > MOST_CERTIFICATES:
        raise BadCertificate(f"{len(found)} certificates; at most {MOST_CERTIFICATES} are taken")
    return found


def fingerprint(pem: str) -> str:
    """`sha256:<64 hex digits>` over a certificate's DER. BadCertificate: it is none."""
    return f"sha256:{_load(pem).fingerprint(hashes.SHA256()).hex()}"


def check_peer(chain_der: Sequence[bytes], *, trust_domains: Sequence[str], now: float) -> SpiffeId:
    """The identity in a chain's leaf, after a handshake checked the chain. BadCertificate.

    `trust_domains`: the leaf's must be one of them; empty: any.
    """
    if not chain_der:
        raise BadCertificate("no certificate was shown")
    try:
        found = x509.load_der_x509_certificate(chain_der[0])
        return _leaf(found, trust_domains, now).identity
    except BadCertificate:
        raise
    except ValueError as error:  # cryptography's word for whatever can't be parsed
        raise BadCertificate(f"it can't be read: {error}") from None


def leaf_of(pem: str, now: float, trust_domains: Sequence[str] = ()) -> Leaf:
    """What a workload's certificate says. BadCertificate: it is none, or not good now."""
    try:
        return _leaf(_load(pem), trust_domains, now)
    except BadCertificate:
        raise
    except ValueError as error:
        raise BadCertificate(f"it can't be read: {error}") from None


def verify_chain(chain: Sequence[str], roots_pem: str, key_pem: bytes, now: float) -> Leaf:
    """A chain (PEM, leaf first) that leads to a root and whose leaf is of that key. BadCertificate."""
    if not chain or len(chain) > MOST_CERTIFICATES:
        raise BadCertificate(f"a chain of {len(chain)} certificates")
    certificates = [_load(pem) for pem in chain]
    leaf = leaf_of(chain[0], now)
    key = serialization.load_pem_private_key(key_pem, None).public_key()
    if _spki(key) != _spki(certificates[0].public_key()):
        raise BadCertificate("it is not of the key that was asked for")
    roots = [_load(pem) for pem in split_pem(roots_pem)]
    current = certificates[0]
    for issuer in (*certificates[1:], None):
        if any(_signed(current, root) and _in_time(root, now) for root in roots):
            return leaf
        if issuer is None:
            break
        if not _is_authority(issuer) or not _in_time(issuer, now) or not _signed(current, issuer):
            raise BadCertificate("its chain is broken")
        current = issuer
    raise BadCertificate("its chain leads to no root that is trusted")


def _leaf(found: x509.Certificate, trust_domains: Sequence[str], now: float) -> Leaf:
    begins, ends = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    if now < begins - SKEW:
        raise BadCertificate(f"it is not valid before {_iso(found.not_valid_before_utc)}")
    if now >= ends:
        raise BadCertificate(f"it expired at {_iso(found.not_valid_after_utc)}")
    _check_strength(found)
    if _is_authority(found):
        raise BadCertificate("it is an authority's, not a workload's")
    _check_usage(found)
    return Leaf(_identity(found, trust_domains), begins, ends)


def _identity(found: x509.Certificate, trust_domains: Sequence[str]) -> SpiffeId:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise BadCertificate("it has no subject alternative name") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise BadCertificate(f"it has {len(uris)} URI names; an identity is exactly one")
    try:
        identity = SpiffeId.parse(uris[0])
    except ValueError as error:
        raise BadCertificate(str(error)) from None
    if trust_domains and identity.trust_domain not in trust_domains:
        raise BadCertificate(
            f"it is of the trust domain {identity.trust_domain}; allowed is {', '.join(trust_domains)}"
        )
    return identity


def _check_strength(found: x509.Certificate) -> None:
    if not isinstance(found.signature_hash_algorithm, _GOOD_HASHES) and not _hashless(found):
        raise BadCertificate("it is signed with a hash that is too weak")
    key = found.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < SHORTEST_RSA:
        raise BadCertificate(f"its RSA key has {key.key_size} bits; {SHORTEST_RSA} are needed")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < SHORTEST_EC:
        raise BadCertificate(f"its EC key has {key.key_size} bits; {SHORTEST_EC} are needed")
    known = (rsa.RSAPublicKey, ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)
    if not isinstance(key, known):
        raise BadCertificate("its key is of a kind that is not taken")


def _hashless(found: x509.Certificate) -> bool:
    """Ed25519 and Ed448 carry their hash in themselves."""
    oid = found.signature_algorithm_oid
    return oid in (x509.SignatureAlgorithmOID.ED25519, x509.SignatureAlgorithmOID.ED448)


def _check_usage(found: x509.Certificate) -> None:
    wanted = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    try:
        usage = set(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return
    if not wanted <= usage:
        raise BadCertificate("its extended key usage is not for servers and clients")


def _is_authority(found: x509.Certificate) -> bool:
    extensions = found.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return True
    except x509.ExtensionNotFound:
        pass
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return usage.key_cert_sign or usage.crl_sign


def _in_time(found: x509.Certificate, now: float) -> bool:
    return found.not_valid_before_utc.timestamp() - SKEW <= now < found.not_valid_after_utc.timestamp()


def _signed(found: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        found.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _load(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise BadCertificate(f"it can't be read: {error}") from None


def _spki(key: object) -> bytes:
    found: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return found


def _iso(at: dt.datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
