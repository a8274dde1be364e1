"""Keys and requests as they are made and read, and bundles of certificates."""

import hashlib
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from support.pki import ca, leaf, rsa_key

from meshlib.identity.keys import load_key, make_csr, make_key, same_key, weak_key
from meshlib.identity.pem import fingerprint, join_pem, load_bundle, split_pem, to_der, to_pem
from meshlib.identity.spiffe import SpiffeId

SOMEBODY = SpiffeId("cluster.local", "default", "reviews")


def test_a_key_is_ec_p256_and_new_each_time() -> None:
    one, other = load_key(make_key()), load_key(make_key())
    assert isinstance(one, ec.EllipticCurvePrivateKey)
    assert isinstance(one.curve, ec.SECP256R1)
    assert not same_key(one.public_key(), other.public_key())


def test_a_request_names_the_identity_and_is_signed() -> None:
    key = make_key()
    csr = x509.load_pem_x509_csr(make_csr(key, SOMEBODY))
    assert csr.is_signature_valid
    assert same_key(csr.public_key(), load_key(key).public_key())
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert [name.value for name in names.value] == [str(SOMEBODY)]


def test_a_request_of_somebody_unknown_has_no_name() -> None:
    assert len(x509.load_pem_x509_csr(make_csr(make_key(), None)).extensions) == 0


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"secret",
        b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        ),
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        ec.generate_private_key(ec.SECP224R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    ],
)
def test_what_is_no_usable_key_is_refused_and_not_shown(pem: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        load_key(pem)
    assert "secret" not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_weak_keys_are_told() -> None:
    assert weak_key(rsa_key(1024).public_key()) == "an RSA key of 1024 bits; from 2048 to 8192 are taken"
    assert weak_key(rsa_key(2048).public_key()) == ""
    huge = rsa.RSAPublicNumbers(65537, (1 << 8199) + 1).public_key()
    assert weak_key(huge) == "an RSA key of 8200 bits; from 2048 to 8192 are taken"
    assert weak_key(ed25519.Ed25519PrivateKey.generate().public_key()) == "a key that is neither EC nor RSA"


def test_bundles_are_split_joined_and_read() -> None:
    one, other = ca("one"), ca("other")
    text = f"# a note\n{one.pem}junk\r\n{other.pem.strip()}"
    assert split_pem(text) == (one.pem, other.pem)
    assert join_pem([text, one.pem]) == one.pem + other.pem
    assert load_bundle(text) == (one.certificate, other.certificate)
    assert to_der(text) == (one.der, other.der)
    assert to_pem(one.certificate) == one.pem
    assert split_pem("") == split_pem("-----BEGIN CERTIFICATE-----") == ()


def test_a_bundle_that_is_broken_or_huge() -> None:
    with pytest.raises(ValueError):
        load_bundle("-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n")
    with pytest.raises(ValueError, match="larger than 1048576 bytes"):
        split_pem("x" * 1048577)


def test_a_fingerprint_is_over_the_der() -> None:
    one = leaf(ca("one"))
    expected = "sha256:" + hashlib.sha256(one.der).hexdigest()
    assert fingerprint(one.certificate) == fingerprint(one.der) == expected


def test_a_signature_loads_no_module() -> None:
    """A child that is forked while a thread loads one has half of it for ever."""
    script = (
        "import sys\n"
        "from meshlib.identity import chain\n"
        "from meshlib.identity.keys import make_csr, make_key\n"
        "before = set(sys.modules)\n"
        "make_csr(make_key(), None)\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == "[]"
