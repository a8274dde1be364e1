"""Which cipher suites, curves and pins of a server's TLS an Envoy takes.

Envoy refuses a whole listener for one that it does not know, and with a Secret everything that shows it. So
a name that is not here is left out with a warning, as Istio does it; a pin that can't be one is an error, for
without it less would be asked of callers than was meant.
"""

import base64
import binascii
import re
from collections.abc import Iterable

_SHA256_BYTES = 32

CIPHER_SUITES = frozenset(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES128-SHA",
        "ECDHE-RSA-AES128-SHA",
        "ECDHE-ECDSA-AES256-SHA",
        "ECDHE-RSA-AES256-SHA",
        "AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "AES128-SHA",
        "AES256-SHA",
        "DES-CBC3-SHA",
    )
)
"""Istio's list (pkg/config/security). Those of TLS 1.3 can't be chosen: BoringSSL offers all of them."""
ALL = "ALL"
CURVES = frozenset(("P-256", "P-384", "P-521", "X25519", "X25519MLKEM768"))
"""Istio's list without P-224 and X25519Kyber768Draft00, which Envoy takes no more."""
_HASH = re.compile(r"[0-9a-fA-F]{64}|(?:[0-9a-fA-F]{2}:){31}[0-9a-fA-F]{2}")


def is_suite(name: str) -> bool:
    """Whether it names a suite, all, or several of equal rank: `[one|other]`."""
    if name.startswith("[") and name.endswith("]"):
        return all(one in CIPHER_SUITES for one in name[1:-1].split("|"))
    return name == ALL or name in CIPHER_SUITES


def suites(names: Iterable[str]) -> tuple[str, ...]:
    """Those that an Envoy takes, each once."""
    return tuple(dict.fromkeys(name for name in names if is_suite(name)))


def curves(names: Iterable[str]) -> tuple[str, ...]:
    """Those that an Envoy takes, each once."""
    return tuple(dict.fromkeys(name for name in names if name in CURVES))


def is_hash(text: str) -> bool:
    """Whether it can be the SHA-256 of a certificate: 64 hexadecimal digits, or 32 pairs with colons."""
    return _HASH.fullmatch(text) is not None


def is_spki(text: str) -> bool:
    """Whether it can be the SHA-256 of a public key: 32 bytes in Base64."""
    try:
        return len(base64.b64decode(text, validate=True)) == _SHA256_BYTES and len(text) == 44
    except (binascii.Error, ValueError):
        return False
