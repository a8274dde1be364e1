"""A workload's key and its certificate request.

Keys are EC P-256: what Istio's ztunnel makes, small and fast in a handshake. A key is handed on as
PEM bytes, never as text, and nothing here logs it or shows it.
"""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

# Else a thread loads it at the first signature, and a child that is forked meanwhile has half of it for ever.
from cryptography.hazmat.backends.openssl import backend as backend
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from meshlib.identity.spiffe import SpiffeId

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
"""NIST SP 800-131A forbids shorter ones; a longer one costs whoever checks its signatures too much."""
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def make_key() -> bytes:
    """A new private key: EC P-256, PKCS#8 PEM, not encrypted."""
    return key_pem(ec.generate_private_key(ec.SECP256R1()))


def key_pem(key: SigningKey) -> bytes:
    """A private key as PKCS#8 PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> SigningKey:
    """A private key from PEM. ValueError: it is none, is encrypted, or is weak; the key is not shown."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Nothing of the parser's message is passed on: it may quote what it read.
        raise ValueError("it is no unencrypted PEM private key") from None
    weakness = weak_key(key.public_key())
    if weakness or not isinstance(key, SigningKey):
        raise ValueError(weakness)
    return key


def make_csr(key_pem: bytes, identity: SpiffeId | None) -> bytes:
    """A PKCS#10 request in PEM, with the identity as URI, if there is one.

    The CA takes the identity from whom it authenticated and never from here; Istio's agent writes it too.
    """
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    if identity is not None:
        uri = x509.UniformResourceIdentifier(str(identity))
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=True)
    return builder.sign(load_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def same_key(one: PublicKeyTypes, other: PublicKeyTypes) -> bool:
    """Whether two public keys are the same."""
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return one.public_bytes(*form) == other.public_bytes(*form)


def weak_key(key: PublicKeyTypes) -> str:
    """Why a public key is refused, or nothing."""
    if isinstance(key, rsa.RSAPublicKey):
        if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            return ""
        return f"an RSA key of {key.key_size} bits; from {MIN_RSA_BITS} to {MAX_RSA_BITS} are taken"
    if isinstance(key, ec.EllipticCurvePublicKey):
        if isinstance(key.curve, _CURVES):
            return ""
        return f"the curve {key.curve.name}; P-256, P-384 and P-521 are taken"
    return "a key that is neither EC nor RSA"


def weak_hash(algorithm: hashes.HashAlgorithm | None) -> str:
    """Why the hash of a signature is refused, or nothing."""
    if isinstance(algorithm, _HASHES):
        return ""
    name = algorithm.name.upper() if algorithm is not None else "an unknown hash"
    return f"signed with {name}; SHA-256, SHA-384 and SHA-512 are taken"
