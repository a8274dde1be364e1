"""Key sets (JWKS) that Envoy can use: it refuses a whole listener for one without any usable key.

Rules (Envoy):

- A key is of RSA, EC (P-256, P-384, P-521), Ed25519, or a shared secret; an `alg`, if there is one, is of
  that kind. Keys that are none of these are passed over.
"""

import json
from collections.abc import Mapping

MAX_CHARS = 1 << 20
_ALGORITHMS = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",), "oct": ("HS",)}
_CURVES = {"EC": ("P-256", "P-384", "P-521"), "OKP": ("Ed25519",)}


def has_usable_key(text: str) -> bool:
    """Whether this is a key set with a key that tokens can be checked by."""
    if len(text) > MAX_CHARS:
        return False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    keys = found.get("keys") if isinstance(found, dict) else None
    return isinstance(keys, list) and any(isinstance(key, dict) and _is_usable(key) for key in keys)


def _is_usable(key: Mapping[str, object]) -> bool:
    kind, algorithm = key.get("kty"), key.get("alg")
    if not isinstance(kind, str) or kind not in _ALGORITHMS:
        return False
    if algorithm is not None and not (isinstance(algorithm, str) and algorithm.startswith(_ALGORITHMS[kind])):
        return False
    if kind in _CURVES and key.get("crv") not in _CURVES[kind]:
        return False
    from joserfc.errors import JoseError  # with cryptography, which few folders need
    from joserfc.jwk import import_key

    try:
        import_key({name: value for name, value in key.items() if isinstance(value, str)})
    except (JoseError, ValueError, TypeError, KeyError):
        return False
    return True
