"""PEM bundles of certificates, taken apart and put together, and the fingerprint of a certificate."""

import hashlib
import re
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

MAX_BUNDLE = 1024 * 1024
"""Bytes of a bundle: some five hundred certificates."""
_BLOCK = re.compile(
    r"-----BEGIN CERTIFICATE-----[\sA-Za-z0-9+/=]+-----END CERTIFICATE-----"
)  # no nested quantifier: linear


def split_pem(bundle: str) -> tuple[str, ...]:
    """Each certificate of a bundle as PEM of its own; text between them is left out."""
    if len(bundle) > MAX_BUNDLE:
        raise ValueError(f"a bundle of certificates is larger than {MAX_BUNDLE} bytes")
    return tuple(found[0] + "\n" for found in _BLOCK.finditer(bundle))


def join_pem(parts: Iterable[str]) -> str:
    """One bundle of several, each certificate once, in the order of their first appearance."""
    return "".join(dict.fromkeys(one for part in parts for one in split_pem(part)))


def load_bundle(bundle: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a bundle. ValueError: one of them can't be read."""
    return tuple(x509.load_pem_x509_certificate(one.encode()) for one in split_pem(bundle))


def to_pem(certificate: x509.Certificate) -> str:
    """A certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def to_der(bundle: str) -> tuple[bytes, ...]:
    """The certificates of a bundle as DER. ValueError: one of them can't be read."""
    return tuple(one.public_bytes(Encoding.DER) for one in load_bundle(bundle))


def fingerprint(certificate: x509.Certificate | bytes) -> str:
    """`sha256:<64 hex digits>` of a certificate's DER."""
    der = certificate if isinstance(certificate, bytes) else certificate.public_bytes(Encoding.DER)
    return "sha256:" + hashlib.sha256(der).hexdigest()
