"""Which key sets can be used."""

import base64
import hashlib
import json

import pytest
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from meshlib.control.compile.authn import NOBODYS_KEY
from meshlib.control.keysets import has_usable_key

RSA = RSAKey.generate_key(2048).as_dict(private=False)
EC = ECKey.generate_key("P-256").as_dict(private=False)


@pytest.mark.parametrize(
    "key",
    [
        RSA,
        {**RSA, "alg": "PS256", "use": "sig", "x5c": ["ignored"]},
        EC,
        {**EC, "alg": "ES256"},
        OKPKey.generate_key("Ed25519").as_dict(private=False),
        OctKey.generate_key(256).as_dict(),
    ],
    ids=range(6),
)
def test_usable(key: dict[str, object]) -> None:
    assert has_usable_key(json.dumps({"keys": [{"kty": "new"}, key]}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"keys":{}}',
        '{"keys":[]}',
        '{"keys":[1]}',
        '{"keys":[{}]}',
        '{"keys":[{"kty":["RSA"]}]}',
        '{"keys":[{"kty":"RSA"}]}',
        '{"keys":[{"kty":"RSA","n":"!","e":"AQAB"}]}',
        '{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}',
        json.dumps({"keys": [{**RSA, "alg": "ES256"}]}),
        json.dumps({"keys": [{**EC, "crv": "secp256k1"}]}),
        json.dumps({"keys": [OKPKey.generate_key("X25519").as_dict(private=False)]}),
        "[" * 100_000,
    ],
    ids=range(16),
)
def test_not_usable(text: str) -> None:
    assert not has_usable_key(text)


def test_nobody_can_have_nobodys_key() -> None:
    """Its x is a hash: no private key was there before it."""
    assert has_usable_key(NOBODYS_KEY)
    found = json.loads(NOBODYS_KEY)["keys"][0]
    x = base64.urlsafe_b64decode(found["x"] + "=")
    assert x == hashlib.sha256(b"meshlib: nobody has this key 0").digest()
