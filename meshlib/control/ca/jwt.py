"""JSON web tokens as callers show them: read strictly, before and while a signature is checked.

Rules:

- The header may name an algorithm, a type and a key, and nothing else: `jwk`, `jku`, `x5u`, `x5c`, `crit`
  and whatever else could bring a key or change the meaning make the token invalid.
- Which algorithm is right is said by the verifier. `none` is not one, however it is spelled.
- A key's name (`kid`) is only compared with names that are known; it is never a path, an address or a query.
- Sizes are bounded before anything is decoded. Times are whole or fractional seconds since 1970.
"""

import binascii
import json
import math
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshlib.errors import ControlError

LEEWAY_SECONDS = 60.0
"""By how much the clocks of two machines may differ."""
MAX_HEADER = 1024
_HEADERS = frozenset({"alg", "typ", "kid"})
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


class TokenRefused(ControlError):
    """A token that proves nothing; the message says why and repeats none of it."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a token says of its signature. Nothing of it is true yet."""

    algorithm: str
    key: str
    """The name of the key; empty: none is named."""


def header(token: str, most: int) -> Header:
    """The header of a token of at most `most` characters. TokenRefused: it can't be one that we take."""
    if len(token) > most:
        raise TokenRefused(f"the token has {len(token)} characters; at most {most} are allowed")
    parts = token.split(".")
    if len(parts) != 3 or not all(parts) or not _PLAIN.issuperset(token) or len(parts[0]) > MAX_HEADER:
        raise TokenRefused("that is no signed JSON web token: three parts of base64url are needed")
    found = _object(parts[0], "header")
    if extra := found.keys() - _HEADERS:
        raise TokenRefused(f"header parameter {min(extra)[:40]!r} is not taken; only alg, typ and kid are")
    texts = [found.get("alg"), found.get("typ", "JWT"), found.get("kid", "")]
    if not all(isinstance(text, str) for text in texts):
        raise TokenRefused("the token's header has a value that is no text")
    if str(texts[1]).upper() != "JWT":
        raise TokenRefused("the token's type is not JWT")
    return Header(str(texts[0]), str(texts[2]))


def verified(token: str, key: Any, algorithm: str) -> Mapping[str, Any]:
    """The claims of a token signed by this public key (of joserfc) with exactly this algorithm."""
    from joserfc import jwt
    from joserfc.errors import JoseError

    try:
        claims: Mapping[str, Any] = jwt.decode(token, key, algorithms=[algorithm]).claims
    except (JoseError, ValueError, TypeError):
        raise TokenRefused("the token's signature is not right") from None
    return claims


def check_audience(claims: Mapping[str, Any], audience: str) -> None:
    """TokenRefused: the token is not meant for this audience."""
    given = claims.get("aud")
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or audience not in found:
        raise TokenRefused(f"the token is not for audience {audience!r}")


def check_times(claims: Mapping[str, Any], now: float, *, late: float = LEEWAY_SECONDS) -> float:
    """When the token ends. TokenRefused: not now. `late`: the seconds for which it is taken after its end."""
    ends = _time(claims, "exp")
    if ends is None:
        raise TokenRefused("the token has no end (exp)")
    if now >= ends + late:
        raise TokenRefused(f"the token expired {now - ends:.0f} s ago")
    for name in ("nbf", "iat"):
        begins = _time(claims, name)
        if begins is not None and now < begins - LEEWAY_SECONDS:
            raise TokenRefused(f"the token is valid in {begins - now:.0f} s only ({name})")
    return ends


def text(claims: Mapping[str, Any], name: str, most: int = 2048) -> str:
    """A claim that must be there and be a text. TokenRefused: it is not."""
    found = claims.get(name)
    if not isinstance(found, str) or not 0 < len(found) <= most:
        raise TokenRefused(f"the token's claim {name} is no text of 1 to {most} characters")
    return found


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    found = claims.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise TokenRefused(f"the token's claim {name} is no time")
    if abs(found) > 1e12:
        raise TokenRefused(f"the token's claim {name} is no time of this era")
    return float(found)


def _object(part: str, what: str) -> Mapping[str, Any]:
    try:
        found = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        raise TokenRefused(f"the token's {what} can't be read") from None
    if not isinstance(found, dict):
        raise TokenRefused(f"the token's {what} is no object")
    return found
