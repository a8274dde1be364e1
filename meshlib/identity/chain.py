"""Whether a peer's certificate is one: what the TLS library leaves to us, and the whole where there is none.

- `check_peer` follows a handshake: the chain was built and its signatures checked there. It reads who
  the peer is, and checks again what may not depend on how a library was built or configured.
- `verify_chain` is for certificates that came without a handshake: it builds the path to a root.

Rules:

- One URI name and no second, and it is a SPIFFE identity. "An X.509 SVID MUST contain exactly one
  URI SAN" (X509-SVID, section 2).
- "Leaf certificates … MUST NOT set keyCertSign or cRLSign" and "MUST set digitalSignature"
  (X509-SVID, section 4.3); a CA is no peer.
- A peer may be somewhat early, by the skew of two clocks, and never late.
- MD5 and SHA-1, RSA below 2048 bits and curves below P-256 are refused anywhere in the chain.
- Whatever can't be read is refused; no error of a parser gets out.
"""

import datetime as dt
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshlib.errors import MeshError
from meshlib.identity.keys import weak_hash, weak_key
from meshlib.identity.pem import load_bundle
from meshlib.identity.spiffe import SpiffeId

MAX_CHAIN = 8
"""Certificates that a peer may show. Istio's have two to four."""
SKEW_S = 60.0
"""How much earlier than its begin a certificate is taken. The CA dates it back two minutes besides."""
_T = TypeVar("_T", bound=x509.ExtensionType)
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Reason(Enum):
    """Why a certificate is refused."""

    NONE = "no certificate was shown"
    MALFORMED = "a certificate can't be read"
    TOO_LONG = "the chain is too long"
    NO_IDENTITY = "it names no SPIFFE identity"
    SEVERAL_IDENTITIES = "it names more than one URI"
    CA_AS_LEAF = "it is the certificate of a CA"
    NOT_A_CA = "an issuer is no CA"
    WRONG_USAGE = "it is not for this use"
    WEAK_HASH = "its signature is weak"
    WEAK_KEY = "its key is weak"
    NOT_YET_VALID = "it is not valid yet"
    EXPIRED = "it has expired"
    OTHER_TRUST_DOMAIN = "its trust domain is not taken"
    SELF_SIGNED = "it is self-signed"
    UNKNOWN_ISSUER = "no path leads from it to a trusted root"


class Purpose(Enum):
    """What a peer's certificate must be for."""

    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
    SERVER = ExtendedKeyUsageOID.SERVER_AUTH


class BadCertificate(MeshError):
    """A certificate is refused; `reason` says why as a closed set, the message in words."""

    fault = "upstream"
    status = 503
    grpc_code = "UNAUTHENTICATED"
    flag = "UF"

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason


def check_peer(
    chain_der: Sequence[bytes],
    *,
    trust_domains: Collection[str],
    now: float,
    purpose: Purpose,
    skew_s: float = SKEW_S,
) -> SpiffeId:
    """Who a peer is, of whom the handshake has verified the path to a root.

    `chain_der`: the leaf, then the issuers that are known, if any. `trust_domains`: one of them must be
    the peer's; empty takes any that the roots vouch for. `now`: Unix seconds. `purpose`: what the peer is.
    BadCertificate: it may not be taken.
    """
    chain = _load(chain_der)
    identity = _leaf(chain[0], purpose)
    for issuer in chain[1:]:
        _issuer(issuer)
    _in_time(chain, now, skew_s)
    domains = {domain.replace("@", ".").lower() for domain in trust_domains}
    if domains and identity.trust_domain not in domains:
        raise BadCertificate(
            Reason.OTHER_TRUST_DOMAIN, f"{identity} is not of {', '.join(sorted(domains))[:200]}"
        )
    return identity


def verify_chain(
    chain_der: Sequence[bytes],
    roots_pem: str,
    now: float,
    *,
    purpose: Purpose | None = None,
    skew_s: float = SKEW_S,
) -> tuple[x509.Certificate, ...]:
    """The path from a leaf to one of the roots: signatures, times, CA flags, path lengths, strengths.

    `chain_der`: the leaf, then its issuers in any order. The identity is not looked at: see `check_peer`.
    BadCertificate: there is no such path. ValueError: the roots can't be read.
    """
    chain = _load(chain_der)
    if _is_ca(chain[0]):
        raise BadCertificate(_self_signed(chain[0]) or Reason.CA_AS_LEAF, _name(chain[0]))
    _strong(chain[0])
    if purpose is not None:
        _used_for(chain[0], purpose)
    for issuer in chain[1:]:
        _issuer(issuer)
    _in_time(chain, now, skew_s)
    return path_to_root(chain[0], chain[1:], load_bundle(roots_pem), _when(chain, now), purpose)


def path_to_root(
    certificate: x509.Certificate,
    issuers: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: float,
    purpose: Purpose | None = None,
) -> tuple[x509.Certificate, ...]:
    """The path from a leaf or a CA to one of the roots, both ends included, valid at a time (Unix seconds).

    BadCertificate: there is none.
    """
    if not roots:
        raise BadCertificate(Reason.UNKNOWN_ISSUER, "no root is trusted")
    agnostic = verification.Criticality.AGNOSTIC
    issuer_rules = (
        verification.ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, agnostic, None)
        .may_be_present(x509.KeyUsage, agnostic, _may_sign)
        .may_be_present(x509.ExtendedKeyUsage, agnostic, _may_sign_for(purpose))
    )
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(list(roots)))
        .time(dt.datetime.fromtimestamp(at, dt.UTC))
        .max_chain_depth(MAX_CHAIN)
        .extension_policies(ca_policy=issuer_rules, ee_policy=verification.ExtensionPolicy.permit_all())
        .build_client_verifier()
    )
    try:
        return tuple(verifier.verify(certificate, list(issuers)).chain)
    except verification.VerificationError as error:
        raise _explained(certificate, issuers, roots, at, str(error)) from None
    except _UNREADABLE as error:
        raise BadCertificate(Reason.MALFORMED, str(error)[:200]) from None


def _load(chain_der: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    if not chain_der:
        raise BadCertificate(Reason.NONE)
    if len(chain_der) > MAX_CHAIN:
        raise BadCertificate(Reason.TOO_LONG, f"{len(chain_der)} certificates; at most {MAX_CHAIN} are taken")
    try:
        chain = tuple(x509.load_der_x509_certificate(der) for der in chain_der)
        for certificate in chain:
            # Parsed lazily by the library: whatever can't be read is found here and nowhere later.
            _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
    except _UNREADABLE as error:
        raise BadCertificate(Reason.MALFORMED, str(error)[:200]) from None
    return chain


def _leaf(leaf: x509.Certificate, purpose: Purpose) -> SpiffeId:
    if _is_ca(leaf):
        raise BadCertificate(_self_signed(leaf) or Reason.CA_AS_LEAF, _name(leaf))
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise BadCertificate(Reason.WRONG_USAGE, "its key usage has no digitalSignature")
    if usage.key_cert_sign or usage.crl_sign:
        raise BadCertificate(Reason.CA_AS_LEAF, "its key usage is that of a CA")
    _used_for(leaf, purpose)
    _strong(leaf)
    names = _extension(leaf, x509.SubjectAlternativeName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names is not None else []
    if not uris:
        raise BadCertificate(Reason.NO_IDENTITY, "it has no URI name")
    if len(uris) > 1:
        raise BadCertificate(Reason.SEVERAL_IDENTITIES, f"{len(uris)} of them")
    try:
        return SpiffeId.parse(uris[0])
    except ValueError as error:
        raise BadCertificate(Reason.NO_IDENTITY, str(error)) from None


def _issuer(certificate: x509.Certificate) -> None:
    usage = _extension(certificate, x509.KeyUsage)
    if not _is_ca(certificate) or (usage is not None and not usage.key_cert_sign):
        raise BadCertificate(Reason.NOT_A_CA, _name(certificate))
    _strong(certificate)


def _strong(certificate: x509.Certificate) -> None:
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        algorithm = None
    if weakness := weak_hash(algorithm):
        raise BadCertificate(Reason.WEAK_HASH, weakness)
    if weakness := weak_key(certificate.public_key()):
        raise BadCertificate(Reason.WEAK_KEY, weakness)


def _used_for(leaf: x509.Certificate, purpose: Purpose) -> None:
    # RFC 5280, 4.2.1.12: without the extension a key is for any purpose.
    usages = _extension(leaf, x509.ExtendedKeyUsage)
    allowed = {purpose.value, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if usages is not None and allowed.isdisjoint(usages):
        raise BadCertificate(Reason.WRONG_USAGE, f"it is no certificate of a {purpose.name.lower()}")


def _in_time(chain: Sequence[x509.Certificate], now: float, skew_s: float) -> None:
    for certificate in chain:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now + skew_s < begin.timestamp():
            raise BadCertificate(Reason.NOT_YET_VALID, f"{_name(certificate)} begins at {begin:%FT%TZ}")
        if now > end.timestamp():
            raise BadCertificate(Reason.EXPIRED, f"{_name(certificate)} ended at {end:%FT%TZ}")


def _when(chain: Sequence[x509.Certificate], now: float) -> float:
    """The time to verify at: now, or the begin of what was taken although it is a little early."""
    return max(now, *(one.not_valid_before_utc.timestamp() for one in chain))


def _may_sign(_: object, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("keyCertSign must be set in a CA certificate")


def _may_sign_for(
    purpose: Purpose | None,
) -> Callable[[verification.Policy, x509.Certificate, x509.ExtendedKeyUsage | None], None]:
    """A CA that is limited to some purposes vouches for no other (as OpenSSL and Go have it)."""

    def check(_: object, __: x509.Certificate, usages: x509.ExtendedKeyUsage | None) -> None:
        if usages is None or purpose is None:
            return
        if {purpose.value, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}.isdisjoint(usages):
            raise ValueError(f"a CA is not for certificates of a {purpose.name.lower()}")

    return check


def _explained(
    certificate: x509.Certificate,
    issuers: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: float,
    found: str,
) -> BadCertificate:
    """Which of the ways to fail it was: the verifier itself tells only the last that it tried."""
    if reason := _self_signed(certificate):
        return BadCertificate(reason, _name(certificate))
    by_name = {one.subject: one for one in (*roots, *issuers)}
    top, left = certificate, MAX_CHAIN
    while left and top.issuer != top.subject and (above := by_name.get(top.issuer)) is not None:
        if above.not_valid_after_utc.timestamp() < at:
            return BadCertificate(Reason.EXPIRED, f"its issuer {_name(above)}")
        if not _is_ca(above):
            return BadCertificate(Reason.NOT_A_CA, _name(above))
        top, left = above, left - 1
    if top.issuer not in by_name:
        return BadCertificate(
            Reason.UNKNOWN_ISSUER, f"{_spelled(top.issuer)} is neither trusted nor in the chain"
        )
    return BadCertificate(Reason.UNKNOWN_ISSUER, found[:200])


def _self_signed(certificate: x509.Certificate) -> Reason | None:
    if certificate.subject != certificate.issuer:
        return None
    try:
        certificate.verify_directly_issued_by(certificate)
    except Exception:  # noqa: BLE001 - the library documents three kinds, and raises more for odd keys
        return None
    return Reason.SELF_SIGNED


def _is_ca(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _extension(certificate: x509.Certificate, kind: type[_T]) -> _T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _name(certificate: x509.Certificate) -> str:
    return _spelled(certificate.subject) if certificate.subject.rdns else "the leaf"


def _spelled(name: x509.Name) -> str:
    return repr(name.rfc4514_string()[:120])
