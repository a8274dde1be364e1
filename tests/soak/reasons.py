"""Why a request failed, in one word for the library and for a real Envoy."""

import enum
from typing import Any

from meshlib.errors import MeshError

TOLD = "as it was told"
"""What an endpoint says that is told to be unavailable."""
ENDPOINT = "x-endpoint"
"""The header by which a response is known for an endpoint's own."""


class Reason(enum.StrEnum):
    """Envoy's flags in brackets."""

    ENDPOINT = "the endpoint's own"
    CONNECT = "no connection [UF]"
    BROKEN = "the connection or the stream broke [UC, UR]"
    TIME = "time ran out [UT]"
    NOBODY = "no healthy endpoint [UH]"
    OVERFLOW = "too many [UO]"
    NOWHERE = "no route, no cluster [NR, NC]"
    BEGUN = "the response had begun"
    OTHER = "something else"


class Begun(Exception):
    """A response broke off after its head."""


_FLAGS = {
    "UF": Reason.CONNECT,
    "UC": Reason.BROKEN,
    "UR": Reason.BROKEN,
    "UT": Reason.TIME,
    "UH": Reason.NOBODY,
    "UO": Reason.OVERFLOW,
    "NR": Reason.NOWHERE,
    "NC": Reason.NOWHERE,
}
_ENVOYS = {
    # Its order counts: a reset names its reason.
    "connection failure": Reason.CONNECT,
    "connection timeout": Reason.CONNECT,
    "reset reason: overflow": Reason.OVERFLOW,
    "upstream connect error or disconnect/reset before headers": Reason.BROKEN,
    "upstream request timeout": Reason.TIME,
    "no healthy upstream": Reason.NOBODY,
}


def of_flag(flag: str) -> Reason:
    """Of Envoy's flags, comma separated."""
    return next((_FLAGS[one] for one in flag.split(",") if one in _FLAGS), Reason.OTHER)


def of_words(words: str) -> Reason:
    """Of what an Envoy says with its own replies."""
    if words == TOLD:
        return Reason.ENDPOINT
    return next((reason for text, reason in _ENVOYS.items() if text in words), Reason.OTHER)


def of_response(headers: Any, words: str, facts: Any) -> Reason:
    """Of a response that is no good one; `facts` None: it came through an Envoy."""
    if ENDPOINT in headers:
        return Reason.ENDPOINT
    return of_words(words) if facts is None else of_flag(facts.flag)


def of_error(error: BaseException) -> Reason:
    """Of an exception."""
    if isinstance(error, Begun) or "response had begun" in str(error) or "body broke off" in str(error):
        return Reason.BEGUN
    return of_flag(error.flag) if isinstance(error, MeshError) else Reason.OTHER
