"""Certificates of every kind, good and bad, for tests: a root that signs what it is told to."""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshlib.dataplane.tls import Held

SERVER_AND_CLIENT = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def pem(certificate: x509.Certificate) -> str:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def der(certificate: x509.Certificate) -> bytes:
    """A certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def key_pem(key: Any) -> bytes:
    """A private key as PEM."""
    found: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return found


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> str:
        """The certificate."""
        return pem(self.certificate)

    @property
    def der(self) -> bytes:
        """The certificate."""
        return der(self.certificate)

    @property
    def key_pem(self) -> bytes:
        """The key."""
        return key_pem(self.key)


class SmallCa:
    """An authority. Times are seconds from `now`."""

    def __init__(self, name: str = "root", issuer: "SmallCa | None" = None, now: float | None = None) -> None:
        self.now = dt.datetime.now(dt.UTC) if now is None else dt.datetime.fromtimestamp(now, dt.UTC)
        self.key: Any = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.issuer = issuer
        signer = issuer or self
        self.certificate = (
            x509.CertificateBuilder(
                signer.name, self.name, self.key.public_key(), x509.random_serial_number()
            )
            .not_valid_before(self.now - dt.timedelta(days=1))
            .not_valid_after(self.now + dt.timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .sign(signer.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        """Its certificate."""
        return pem(self.certificate)

    def revoked(self, *certificates: Issued) -> bytes:
        """Its list of those that are revoked, as PEM."""
        builder = x509.CertificateRevocationListBuilder(
            self.name, self.now - dt.timedelta(hours=1), self.now + dt.timedelta(days=1)
        )
        for one in certificates:
            entry = x509.RevokedCertificateBuilder(one.certificate.serial_number, self.now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *uris: str,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        begins: float = -120.0,
        ends: float = 3600.0,
        authority: bool = False,
        usages: Sequence[x509.ObjectIdentifier] = SERVER_AND_CLIENT,
        key: Any = None,
        algorithm: Any = None,
    ) -> Issued:
        """A leaf with these names."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder(self.name, x509.Name([]), key.public_key(), x509.random_serial_number())
            .not_valid_before(self.now + dt.timedelta(seconds=begins))
            .not_valid_after(self.now + dt.timedelta(seconds=ends))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(_usage(sign=authority), critical=True)
        )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return Issued(builder.sign(self.key, algorithm or hashes.SHA256()), key)

    def held(self, uri: str, **options: Any) -> Held:
        """A workload's certificate, as a process holds it."""
        made = self.issue(uri, **options)
        chain, roots = made.pem, self.pem
        if self.issuer is not None:
            chain, roots = made.pem + self.pem, self.issuer.pem
        certificate = made.certificate
        return Held(
            chain,
            made.key_pem,
            roots,
            uri,
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not sign,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )
