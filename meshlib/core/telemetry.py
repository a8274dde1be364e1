"""What is to be told of the requests of one listener: frozen, as the configuration says it.

Nothing here decides about a request; whoever tells (`dataplane.telemetry`) makes of it what writes.
"""

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class Telling:
    """All that is to be told."""

    logs: tuple[AccessLog, ...] = ()


NOTHING = Telling()
