"""A problem: what is wrong, or worth knowing, about a document; as precise as it can be."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """An error refuses the document it is about, or breaks traffic; the others change nothing."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `code` is Istio's IST code, or MESH and a number where Istio has none."""

    severity: Severity
    code: str
    message: str
    document: str = ""
    """The title of the document, such as `VirtualService default/reviews`, as far as it is known."""
    file: str = ""
    line: int = 0
    field: str = ""
    """As it was written: `spec.http[0].retries.perTryTimeout`."""
    found: str = ""
    allowed: str = ""

    @property
    def source(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        where = " ".join(part for part in (self.document, self.source) if part)
        head = f"{self.severity.value.capitalize()} [{self.code}]" + (f" ({where})" if where else "")
        return f"{head} {self.text}"

    @property
    def text(self) -> str:
        """The message with field, found and allowed, without the place."""
        field = f"{self.field}: " if self.field else ""
        found = f", found {self.found}" if self.found else ""
        allowed = f"; allowed: {self.allowed}" if self.allowed else ""
        return f"{field}{self.message}{found}{allowed}"


BROKEN = "IST0106"
"""The schema or the validation refuses it."""
DUBIOUS = "IST0133"
"""The validation warns."""
OLD = "IST0002"
"""A deprecated spelling."""
NOT_APPLIED = "MESH0001"
"""Understood and kept, but not acted on by in-process clients."""
OTHER_TLS = "MESH0002"
"""Clients are told to speak what their servers refuse."""


def shorten(value: object, limit: int = 80) -> str:
    """A value as it can stand in a message, never longer than `limit`."""
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= limit else value[: limit - 1] + "…")
    return "nothing" if value is None else str(value)[:limit]


HIDDEN = "MESH0003"
"""Another document of the same kind wins over it, or over a part of it."""
NOT_IN_FORCE = "MESH0004"
"""Understood, but what was in force at the start stays so."""
NEVER = "MESH0005"
"""It holds for nobody."""
