"""What the authority takes of a certificate request: its public key, once that is proved. Nothing else.

Names, extensions and the subject of a request are not read: who asks is known from elsewhere.
"""

import ipaddress
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from meshlib.errors import ControlError
from meshlib.identity.keys import weak_hash, weak_key
from meshlib.identity.spiffe import SpiffeId

MAX_CSR = 16 * 1024
"""Bytes. A request with an RSA key of 8192 bits has some 3 KB."""
DEFAULT_TTL_S = 24 * 3600
MAX_TTL_S = 90 * 24 * 3600
"""Istio's DEFAULT_WORKLOAD_CERT_TTL and MAX_WORKLOAD_CERT_TTL."""
_BEGIN, _END = "-----BEGIN ", "-----END "
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
MAX_HOST = 253


class CsrRefused(ControlError):
    """A request is refused. `code` is the name of a gRPC status."""

    def __init__(self, reason: str, code: str = "INVALID_ARGUMENT") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


def read_key(csr_pem: str) -> CertificatePublicKeyTypes:
    """The public key of a request, whose sender holds the private one. CsrRefused: not proved, or weak."""
    if len(csr_pem) > MAX_CSR:
        raise CsrRefused(f"the request has {len(csr_pem)} bytes; at most {MAX_CSR} are taken")
    if csr_pem.count(_BEGIN) != 1 or csr_pem.count(_END) != 1:
        raise CsrRefused("the request must be one PEM block")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
        weakness = weak_key(key) or weak_hash(csr.signature_hash_algorithm)
        # Only then: to check the signature of a huge key is costly.
        proved = not weakness and csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise CsrRefused("the request can't be read") from None
    if weakness:
        raise CsrRefused(f"the request is refused: {weakness}")
    if not proved:
        raise CsrRefused("the signature of the request is wrong")
    return key


def lifetime(ttl_s: int, max_ttl_s: int) -> int:
    """How long a certificate is good for, in seconds; 0 asks for the default. CsrRefused: out of bounds."""
    if ttl_s < 0:
        raise CsrRefused(f"the life asked for is {ttl_s} seconds; it must be positive, or 0 for the default")
    if ttl_s > max_ttl_s:
        raise CsrRefused(f"the life asked for is {ttl_s} seconds; at most {max_ttl_s} are given")
    return ttl_s or min(DEFAULT_TTL_S, max_ttl_s)


def host_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """DNS names and IP addresses as they stand in a certificate. ValueError: one is neither."""
    return [_host_name(name) for name in dict.fromkeys(name.lower() for name in names)]


def service_names(identity: SpiffeId) -> tuple[str, ...]:
    """The DNS name of a workload's certificate, `<account>.<namespace>.svc`; none, if that is no name."""
    name = f"{identity.service_account}.{identity.namespace}.svc".lower()
    return (name,) if len(name) <= MAX_HOST and _HOST.fullmatch(name) else ()


def _host_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if len(name) > MAX_HOST or not _HOST.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is neither a host name nor an address")
    return x509.DNSName(name)
