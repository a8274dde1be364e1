"""Who sent an inbound request, as far as the mesh vouches for it: what a handler is given."""

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from meshlib.core.request import Peer
from meshlib.values import dataclass

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of an admitted request. Nothing in it comes from a header that the mesh did not check."""

    peer: Peer
    principal: str = ""
    """`spiffe://…` of its certificate; empty: plain text."""
    namespace: str = ""
    service_account: str = ""
    trust_domain: str = ""
    claims: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    """Of the end user's verified token; empty: there was none."""
    request_principal: str = ""
    """`<issuer>/<subject>` of that token."""
    attempt: int = 1
    """Which try of its caller's this is (x-envoy-attempt-count, of mesh peers only)."""
