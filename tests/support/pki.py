"""Certificates that are right, or wrong in exactly one way, from authorities of the test's own."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = 1_800_000_000.0
HOUR = 3600.0
ID = "spiffe://cluster.local/ns/default/sa/reviews"
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Pair:
    """A certificate, its key, and what is above it, the nearest first."""

    key: Key
    certificate: x509.Certificate
    above: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def chain_der(self) -> list[bytes]:
        """The leaf and the intermediates, without the root, as a peer shows them."""
        return [self.der, *(one.public_bytes(Encoding.DER) for one in self.above[:-1])]


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """One of each size is enough; to make one is slow."""
    return rsa.generate_private_key(65537, bits)


def usage(*, leaf: bool = True, signs: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(leaf, False, leaf, False, False, signs, signs, False, False)


def ca(
    name: str,
    above: Pair | None = None,
    *,
    key: Key | None = None,
    path_length: int | None = None,
    is_ca: bool = True,
    signs: bool = True,
    begin: float = NOW - HOUR,
    end: float = NOW + 1000 * HOUR,
    purposes: Sequence[x509.ObjectIdentifier] = (),
) -> Pair:
    """A CA: a root, or below another."""
    key = key or ec_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(above.certificate.subject if above else subject, subject, key, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(is_ca, path_length if is_ca else None), True)
    builder = builder.add_extension(usage(leaf=not signs, signs=signs), True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
    made = builder.sign(above.key if above else key, hashes.SHA256())
    return Pair(key, made, (above.certificate, *above.above) if above else ())


def leaf(
    above: Pair,
    *,
    key: Key | None = None,
    uris: Sequence[str] = (ID,),
    dns: Sequence[str] = (),
    purposes: Sequence[x509.ObjectIdentifier] | None = BOTH,
    is_ca: bool = False,
    key_usage: x509.KeyUsage | None = usage(),  # noqa: B008 - a frozen value
    begin: float = NOW - HOUR,
    end: float = NOW + HOUR,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Pair:
    """The certificate of a workload below a CA."""
    key = key or ec_key()
    builder = _builder(above.certificate.subject, x509.Name([]), key, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(is_ca, None), True)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, True)
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
    names = [*(x509.UniformResourceIdentifier(uri) for uri in uris), *(x509.DNSName(name) for name in dns)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), True)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical)
    made = builder.sign(above.key, hashes.SHA256())
    return Pair(key, made, (above.certificate, *above.above))


def self_signed() -> Pair:
    """A leaf that is its own issuer."""
    key = ec_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "myself")])
    made = (
        _builder(name, name, key, NOW - HOUR, NOW + HOUR)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(usage(), True)
        .add_extension(x509.ExtendedKeyUsage(BOTH), False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ID)]), True)
        .sign(key, hashes.SHA256())
    )
    return Pair(key, made)


_SHA256_RSA = bytes.fromhex("06092a864886f70d01010b")
_WEAK = {"md5": (b"\x04", hashes.MD5()), "sha1": (b"\x05", hashes.SHA1())}


def weakly_signed(pair: Pair, issuer_key: rsa.RSAPrivateKey, algorithm: str) -> Pair:
    """The same certificate with a good signature by MD5 or SHA-1, which no library makes any more."""
    last, weak = _WEAK[algorithm]
    old, size = pair.der, issuer_key.key_size // 8
    assert old.count(_SHA256_RSA) == 2
    der = old.replace(_SHA256_RSA, _SHA256_RSA[:-1] + last)
    tbs = pair.certificate.tbs_certificate_bytes.replace(_SHA256_RSA, _SHA256_RSA[:-1] + last)
    assert tbs in der
    der = der[:-size] + issuer_key.sign(tbs, padding.PKCS1v15(), weak)
    return replace(pair, certificate=x509.load_der_x509_certificate(der))


def plugin(
    folder: Path, *, root: Pair | None = None, mode: int = 0o600, now: float = NOW
) -> tuple[Pair, Pair]:
    """Writes Istio's plug-in files: a root and an intermediate below it."""
    root = root or ca("plugged root", key=rsa_key(number=1))
    own = ca(
        "plugged",
        root,
        key=rsa_key(number=2),
        path_length=0,
        begin=now - HOUR,
        end=now + 1000 * HOUR,
    )
    folder.mkdir(exist_ok=True)
    (folder / "ca-cert.pem").write_text(own.pem)
    (folder / "ca-key.pem").write_bytes(own.key_pem)
    (folder / "ca-key.pem").chmod(mode)
    (folder / "root-cert.pem").write_text(root.pem)
    (folder / "cert-chain.pem").write_text(own.pem + root.pem)
    return root, own


def _builder(
    issuer: x509.Name, subject: x509.Name, key: Key, begin: float, end: float
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer,
        subject,
        key.public_key(),
        x509.random_serial_number(),
        dt.datetime.fromtimestamp(begin, dt.UTC),
        dt.datetime.fromtimestamp(end, dt.UTC),
    )
