"""A JSON Web Token as text and what is wrong with one, before anybody's key is asked.

Rules (Envoy, jwt_verify_lib):

- Three parts, each base64url; padding and white space do no harm. Header and payload are JSON objects.
- `iss`, `sub`, `jti` are texts, `iat`, `nbf`, `exp` whole numbers that are not negative, `aud` one or
  more texts, where they are there.
- `alg` is one of a fixed list, in exactly that case. What else the header says of keys (`jwk`, `jku`,
  `x5u`, `x5c`) is never looked at: keys are those of the configuration.
- Times are compared in whole seconds with a leeway. Without `exp` a token never ends.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

import re2

from meshlib.values import dataclass

MAX_TOKEN = 32 * 1024
"""Characters; a longer one is no token."""
ALGORITHMS = frozenset(
    (
        *("ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA"),
        *("HS256", "HS384", "HS512"),
    )
)
"""Those that Envoy knows. No key of ours is one for HS: such a token is understood, and never good."""
_MOST = 2**64
_BASE64 = re2.compile(r"[A-Za-z0-9_-]*")


class Fault(Enum):
    """What is wrong with a token, in Envoy's words."""

    MISSING = "Jwt is missing"
    NOT_YET = "Jwt not yet valid"
    EXPIRED = "Jwt is expired"
    FORMAT = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
    HEADER_BASE64 = "Jwt header is an invalid Base64url encoded"
    HEADER_JSON = "Jwt header is an invalid JSON"
    ALG = "Jwt header [alg] field is required and must be a string"
    ALG_UNKNOWN = "Jwt header [alg] is not supported"
    KID = "Jwt header [kid] field is not a string"
    PAYLOAD_BASE64 = "Jwt payload is an invalid Base64url encoded"
    PAYLOAD_JSON = "Jwt payload is an invalid JSON"
    ISS = "Jwt payload [iss] field is not a string"
    SUB = "Jwt payload [sub] field is not a string"
    IAT = "Jwt payload [iat] field is not an integer"
    IAT_RANGE = "Jwt payload [iat] field is not a positive 64 bit integer"
    NBF = "Jwt payload [nbf] field is not an integer"
    NBF_RANGE = "Jwt payload [nbf] field is not a positive 64 bit integer"
    EXP = "Jwt payload [exp] field is not an integer"
    EXP_RANGE = "Jwt payload [exp] field is not a positive 64 bit integer"
    JTI = "Jwt payload [jti] field is not a string"
    AUD = "Jwt payload [aud] field is not a string or string list"
    SIGNATURE_BASE64 = "Jwt signature is an invalid Base64url encoded"
    SIGNATURE_LENGTH = "Jwt ED25519 signature is wrong length"
    ISSUER = "Jwt issuer is not configured"
    AUDIENCE = "Audiences in Jwt are not allowed"
    NOT_VERIFIED = "Jwt verification fails"
    NO_KEYS = "Jwks doesn't have any valid public key"
    NO_SUCH_KEY = "Jwks doesn't have key to match kid or alg from Jwt"

    @property
    def status(self) -> int:
        """Of the answer: a token for somebody else is forbidden, any other fault unauthorised."""
        return 403 if self is Fault.AUDIENCE else 401


_TIMES = (
    ("iat", Fault.IAT, Fault.IAT_RANGE),
    ("nbf", Fault.NBF, Fault.NBF_RANGE),
    ("exp", Fault.EXP, Fault.EXP_RANGE),
)


@dataclass(frozen=True, slots=True)
class Token:
    """A token that can be read. Nothing in it is true before a key has verified it."""

    text: str
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    algorithm: str
    key_id: str = ""
    issuer: str = ""
    subject: str = ""
    audiences: tuple[str, ...] = ()
    begins: int = 0
    """Seconds since 1970; 0: not said."""
    ends: int = 0

    @property
    def payload(self) -> str:
        """The payload as it stands in the token."""
        return self.text.split(".")[1]

    def untimely(self, now: float, leeway: int) -> Fault | None:
        """Whether it is too early or too late for the token; `now` in seconds since 1970."""
        seconds = int(now)
        if seconds + leeway < self.begins:
            return Fault.NOT_YET
        return Fault.EXPIRED if self.ends and seconds > self.ends + leeway else None


class _Faulty(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def read(text: str) -> Token | Fault:
    """The token in a text, or what is wrong with it."""
    parts = [part for part in text.split(".") if part] if len(text) <= MAX_TOKEN else []
    if len(parts) != 3:
        return Fault.FORMAT
    try:
        header = _object(parts[0], Fault.HEADER_BASE64, Fault.HEADER_JSON)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str):
            return Fault.ALG
        if algorithm not in ALGORITHMS:
            return Fault.ALG_UNKNOWN
        key_id = _text(header, "kid", Fault.KID)
        claims = _object(parts[1], Fault.PAYLOAD_BASE64, Fault.PAYLOAD_JSON)
        issuer, subject = _text(claims, "iss", Fault.ISS), _text(claims, "sub", Fault.SUB)
        _, begins, ends = (_time(claims, name, no, range_) for name, no, range_ in _TIMES)
        _text(claims, "jti", Fault.JTI)
        audiences = _audiences(claims)
        decoded(parts[2], Fault.SIGNATURE_BASE64)
    except _Faulty as faulty:
        return faulty.fault
    return Token(".".join(parts), header, claims, algorithm, key_id, issuer, subject, audiences, begins, ends)


def decoded(part: str, fault: Fault) -> bytes:
    """The bytes of one part."""
    plain = "".join(part.split())
    bare = plain.rstrip("=")
    if len(bare) % 4 == 1 or not _BASE64.fullmatch(bare) or (bare != plain and len(plain) % 4):
        raise _Faulty(fault)
    try:
        return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except (ValueError, binascii.Error):
        raise _Faulty(fault) from None


def _object(part: str, base64_fault: Fault, json_fault: Fault) -> dict[str, Any]:
    data = decoded(part, base64_fault)
    try:
        found = json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, parse_float=_number, parse_int=_whole
        )
    except (ValueError, RecursionError):
        raise _Faulty(json_fault) from None
    if not isinstance(found, dict):
        raise _Faulty(json_fault)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _number(text: str) -> float:
    """A number that is one, as Envoy reads it: `1e400` is none."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _whole(text: str) -> int:
    _number(text)
    return int(text)


def _text(found: Mapping[str, Any], name: str, fault: Fault) -> str:
    value = found.get(name, "")
    if not isinstance(value, str):
        raise _Faulty(fault)
    return value


def _time(claims: Mapping[str, Any], name: str, fault: Fault, range_fault: Fault) -> int:
    value = claims.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Faulty(fault)
    if not 0 <= value < _MOST:
        raise _Faulty(range_fault)
    if value != int(value):
        raise _Faulty(fault)
    return int(value)


def _audiences(claims: Mapping[str, Any]) -> tuple[str, ...]:
    value = claims.get("aud", ())
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise _Faulty(Fault.AUD)
    return tuple(value)
