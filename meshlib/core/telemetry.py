"""What is to be told of the requests of one listener: frozen, as the configuration says it.

Nothing here decides about a request; whoever tells (`dataplane.telemetry`) makes of it what writes.
"""

from enum import Enum

from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class AccessLog:
    """A file to which each request is a line."""

    path: str
    text: str = ""
    """Envoy's format of a line, if `json` is empty."""
    json: str = ""
    """A JSON object whose texts are formats."""
    omit_empty: bool = False
    """Whether what a request does not have is left out instead of `-` or null."""
    condition: str = ""
    """In CEL, which requests are told of; empty: all."""
    source: str = ""
    """`file:line` of the YAML that asks for it."""
    unusable: str = ""
    """Why it can't be written at all; empty: it can."""


class TagSource(Enum):
    """Where the value of a span's tag is from."""

    LITERAL = "literal"
    ENVIRONMENT = "environment"
    HEADER = "header"


@dataclass(frozen=True, slots=True)
class CustomTag:
    """A tag of every span."""

    name: str
    source: TagSource
    value: str
    """The value itself, or the name of the variable or header."""
    default: str = ""
    """If there is no such variable or header; empty: then there is no tag."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """Spans are made."""

    sampling: float | None = None
    """The share, 0 to 1, of the traces that begin here which are sampled; None: nobody says."""
    tags: tuple[CustomTag, ...] = ()


@dataclass(frozen=True, slots=True)
class Telling:
    """All that is to be told."""

    logs: tuple[AccessLog, ...] = ()
    tracing: Tracing | None = Tracing()
    """None: no spans are made."""


NOTHING = Telling()
