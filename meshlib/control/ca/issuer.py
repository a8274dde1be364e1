"""Makes certificates: a root, an issuing CA below it, and the leafs of workloads and servers.

Rules (Istio's generate_cert.go, where it matters to a peer):

- A leaf begins two minutes before now, for clocks that differ, and never ends after one of its issuers.
- The subject of a leaf is empty and its names critical (RFC 5280, 4.1.2.6); the serial has 128 random bits.
- An issuer that has ended signs nothing.
"""

import datetime as dt
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from meshlib.identity.chain import Purpose
from meshlib.identity.keys import SigningKey, load_key, make_key
from meshlib.identity.renewal import BACKDATED_S

DAY_S = 86400
ROOT_LIFE_S = 3650 * DAY_S
ISSUER_LIFE_S = 365 * DAY_S
_EMPTY = x509.Name([])
_MAX_NAME = 64
"""RFC 5280's bound of an organisation's name."""


class IssuerExpired(Exception):
    """The issuer's certificate, or one above it, has ended."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs: a key, and the certificates from its own up to the root."""

    key: SigningKey = field(repr=False)
    chain: tuple[x509.Certificate, ...]

    @property
    def root(self) -> x509.Certificate:
        """The root above it, or itself."""
        return self.chain[-1]

    @property
    def end(self) -> float:
        """When the first of its chain ends, in Unix seconds."""
        return min(certificate.not_valid_after_utc.timestamp() for certificate in self.chain)


def make_root(label: str, trust_domain: str, now: float) -> tuple[SigningKey, x509.Certificate]:
    """A root with a key of its own, good for ten years."""
    key = load_key(make_key())
    name = _ca_name(f"meshlib root {label}", trust_domain)
    return key, _make_ca(key, name, key, None, now, now + ROOT_LIFE_S)


def make_issuer(
    label: str, trust_domain: str, root_key: SigningKey, root: x509.Certificate, now: float
) -> Issuer:
    """An issuing CA below a root, good for a year or as long as the root."""
    key = load_key(make_key())
    end = min(now + ISSUER_LIFE_S, root.not_valid_after_utc.timestamp())
    name = _ca_name(f"meshlib issuer {label}", trust_domain)
    return Issuer(key, (_make_ca(key, name, root_key, root, now, end), root))


def make_leaf(
    issuer: Issuer,
    key: CertificatePublicKeyTypes,
    names: Sequence[x509.GeneralName],
    purposes: Sequence[Purpose],
    now: float,
    end: float,
) -> x509.Certificate:
    """A leaf for a key that is somebody else's. `end`: Unix seconds; the issuer's end bounds it.

    IssuerExpired: it can't sign any more.
    """
    if issuer.end <= now:
        raise IssuerExpired(f"the signing certificate ended at {_time(issuer.end):%FT%TZ}")
    above = issuer.chain[0]
    leaf = (
        _builder(above.subject, _EMPTY, key, now, min(end, issuer.end))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(leaf=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose.value for purpose in purposes]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(_authority_key(above), critical=False)
    )
    return leaf.sign(issuer.key, _hash(issuer.key))


def _make_ca(
    key: SigningKey,
    name: x509.Name,
    signer: SigningKey,
    above: x509.Certificate | None,
    now: float,
    end: float,
) -> x509.Certificate:
    builder = (
        _builder(above.subject if above else name, name, key.public_key(), now, end)
        .add_extension(
            x509.BasicConstraints(ca=True, path_length=None if above is None else 0), critical=True
        )
        .add_extension(_usage(leaf=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if above is not None:
        builder = builder.add_extension(_authority_key(above), critical=False)
    return builder.sign(signer, _hash(signer))


def _builder(
    issuer: x509.Name, subject: x509.Name, key: CertificatePublicKeyTypes, now: float, end: float
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=secrets.randbits(128) or 1,  # zero is no serial number (RFC 5280, 4.1.2.2)
        not_valid_before=_time(now - BACKDATED_S),
        not_valid_after=_time(end),
    )


def _authority_key(above: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        known = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = above.public_key()
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def _usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        key_encipherment=leaf,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _hash(key: SigningKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512:
    """As strong as the key (RFC 5480, section 4)."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if key.curve.key_size > 384:
            return hashes.SHA512()
        if key.curve.key_size > 256:
            return hashes.SHA384()
    return hashes.SHA256()


def _ca_name(name: str, trust_domain: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:_MAX_NAME]),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC)
