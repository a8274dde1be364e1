"""Keys that verify tokens, and the tokens that they verified.

Rules:

- Keys are those of the configuration and no others: nothing that a token says of keys is looked at.
- A key is for one kind of algorithm: RSA for RS and PS, a curve for its own ES, Ed25519 for EdDSA. Symmetric
  keys are passed over, so HS is never good, nor is `none`.
- Of tokens with a `kid` only keys with that one, or without any, are asked; of others all are (Envoy).
- A token with `crit` asks for what we do not know, and is refused (RFC 7515, 4.1.11).
- At most `MOST_KEPT` verified tokens are kept, the oldest go first. Their times are looked at with every
  request.
"""

import json
import threading
import warnings
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from meshlib.core.authn.token import Fault, Token, decoded
from meshlib.values import dataclass

MOST_KEPT = 1000
LARGEST_KEPT = 8 * 1024
"""Characters of a token that is kept."""
MOST_KEYS = 100
MAX_SET = 256 * 1024
"""Characters of a key set."""
_OF_CURVE = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_EDWARDS = ("EdDSA",)
_ED25519_BYTES = 64


@dataclass(frozen=True, slots=True)
class _Key:
    key_id: str
    algorithm: str
    """The only one that it is for; empty: any of its kind."""
    kinds: tuple[str, ...]
    """How such algorithms begin."""
    key: Any = field(repr=False)

    def is_for(self, token: Token) -> bool:
        if token.key_id and self.key_id and token.key_id != self.key_id:
            return False
        return self.algorithm in ("", token.algorithm)


class KeySet:
    """The keys of one provider."""

    def __init__(self, text: str) -> None:
        """`text`: a JWKS. One that can't be read, or has no key that can be used, verifies nothing."""
        self._keys = _read(text)
        self._kept: dict[str, Token] = {}
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"<KeySet of {len(self._keys)}, {len(self._kept)} tokens kept>"

    def kept(self, text: str) -> Token | None:
        """A token that was verified before."""
        return self._kept.get(text)

    def keep(self, token: Token) -> None:
        """Remembers a token that is good."""
        if len(token.text) > LARGEST_KEPT:
            return
        with self._guard:
            while len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[token.text] = token

    def verify(self, token: Token) -> Fault | None:
        """Whether one of the keys signed the token; None: one did."""
        if not self._keys:
            return Fault.NO_KEYS
        candidates = [key for key in self._keys if key.is_for(token)]
        if not candidates:
            return Fault.NO_SUCH_KEY
        if "crit" in token.header:
            return Fault.NOT_VERIFIED
        signed, _, signature = token.text.rpartition(".")
        given = decoded(signature, Fault.SIGNATURE_BASE64)
        able = [key for key in candidates if token.algorithm.startswith(key.kinds)]
        if any(_signed(token.algorithm, key.key, signed.encode(), given) for key in able):
            return None
        # Envoy asks an Ed25519 key whatever the algorithm is.
        edwards = any(key.kinds == _EDWARDS for key in candidates)
        return Fault.SIGNATURE_LENGTH if edwards and len(given) != _ED25519_BYTES else Fault.NOT_VERIFIED


def _signed(algorithm: str, key: Any, signed: bytes, signature: bytes) -> bool:
    from joserfc.jws import JWSRegistry

    try:
        return bool(JWSRegistry.algorithms[algorithm].verify(signed, signature, key))
    except (ValueError, TypeError):
        return False


def _read(text: str) -> tuple[_Key, ...]:
    if len(text) > MAX_SET:
        return ()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        return ()
    made = (_key(one) for one in listed[:MOST_KEYS] if isinstance(one, dict))
    return tuple(key for key in made if key is not None)


def _key(given: Mapping[str, Any]) -> _Key | None:
    """None: no token is verified by such a key."""
    kind, curve, algorithm = given.get("kty"), given.get("crv"), given.get("alg", "")
    key_id = given.get("kid", "")
    if not isinstance(algorithm, str) or not isinstance(key_id, str):
        return None
    public = {name: given[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in given}
    match kind:
        case "RSA" if algorithm[:2] in ("", "RS", "PS"):
            return _imported(public, key_id, algorithm, ("RS", "PS"))
        case "EC" if isinstance(curve, str) and curve in _OF_CURVE and algorithm in ("", _OF_CURVE[curve]):
            return _imported(public, key_id, algorithm, (_OF_CURVE[curve],))
        case "OKP" if curve == "Ed25519" and algorithm in ("", "EdDSA"):
            return _imported(public, key_id, algorithm, _EDWARDS)
    return None


def _imported(public: Mapping[str, Any], key_id: str, algorithm: str, kinds: tuple[str, ...]) -> _Key | None:
    from joserfc.errors import JoseError
    from joserfc.jwk import import_key

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of keys that are too weak
            return _Key(key_id, algorithm, kinds, import_key(dict(public)))
    except (JoseError, ValueError, TypeError, KeyError, Warning):
        return None
