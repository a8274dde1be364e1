"""Keys and the requests to have them certified."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.small_ca import key_pem

from meshlib.identity.keys import make_csr, make_key
from meshlib.identity.spiffe import SpiffeId


def test_a_request_is_signed_by_its_key_and_names_the_identity() -> None:
    key = make_key()
    request = x509.load_pem_x509_csr(make_csr(key, SpiffeId("cluster.local", "default", "reviews")))
    loaded = serialization.load_pem_private_key(key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    assert request.is_signature_valid
    assert request.public_key() == loaded.public_key()
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://cluster.local/ns/default/sa/reviews"
    ]


def test_a_request_need_not_name_anybody() -> None:
    assert not list(x509.load_pem_x509_csr(make_csr(make_key(), None)).extensions)


def test_another_kind_of_key_is_refused() -> None:
    with pytest.raises(TypeError, match="make_key"):
        make_csr(key_pem(rsa.generate_private_key(65537, 2048)), None)
