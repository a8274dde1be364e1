"""One issuer of tokens: where its tokens may stand, whom they may be for, and what becomes of them."""

from collections.abc import Sequence
from dataclasses import field
from typing import Protocol

from meshlib.core.authn.token import Fault, Token
from meshlib.values import dataclass

LEEWAY = 60
"""Seconds that clocks may differ by."""


class Keys(Protocol):
    """What verifies tokens of one provider."""

    def kept(self, text: str) -> Token | None:
        """A token that was verified before."""
        ...

    def verify(self, token: Token) -> Fault | None:
        """Whether a key of the provider signed the token; None: one did."""
        ...

    def keep(self, token: Token) -> None:
        """Remembers a token that is good."""
        ...


@dataclass(frozen=True, slots=True)
class HeaderPlace:
    """A header, in lower case, and what stands before the token in it."""

    name: bytes
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """One issuer of tokens."""

    name: str
    keys: Keys = field(compare=False, repr=False)
    issuer: str = ""
    """Empty: any."""
    audiences: frozenset[str] = frozenset()
    """Empty: any."""
    headers: tuple[HeaderPlace, ...] = (HeaderPlace(b"authorization", "Bearer "),)
    params: tuple[str, ...] = ("access_token",)
    cookies: tuple[str, ...] = ()
    leeway: int = LEEWAY
    forward: bool = False
    payload_header: bytes = b""
    pad_payload: bool = False
    payload_key: str = ""
    """Where in the metadata the claims go; empty: nowhere."""
    header_key: str = ""
    split_claims: tuple[str, ...] = ()
    """Claims whose text is a list, with spaces between."""
    claim_headers: tuple[tuple[bytes, str], ...] = ()
    """Header in lower case, and the claim (`a.b` for one inside of another) that it gets."""

    def is_for(self, token: Token, audiences: frozenset[str] = frozenset()) -> bool:
        """Whether a token is for one of these audiences; empty: the provider's own."""
        allowed = audiences or self.audiences
        return not allowed or not allowed.isdisjoint(map(_trimmed, token.audiences))


def _trimmed(audience: str) -> str:
    """An audience without its scheme and its last slash: Envoy compares them so."""
    for scheme in ("https://", "http://"):
        audience = audience.removeprefix(scheme)
    return audience.removesuffix("/")


def allowed_audiences(audiences: Sequence[str]) -> frozenset[str]:
    """Audiences as they are compared."""
    return frozenset(map(_trimmed, audiences))
