"""Where checks put what they find: a path, a sentence, what was found and what is allowed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from meshlib.control.istio.document import FieldPath
from meshlib.control.istio.problem import BROKEN, DUBIOUS, NOT_APPLIED, OLD, Severity


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of a spec; the path consists of attribute names and starts below `spec`."""

    severity: Severity
    code: str
    path: FieldPath
    message: str
    found: str = ""
    allowed: str = ""


@dataclass(slots=True)
class Report:
    """A place in a spec, and the findings of the whole spec."""

    path: FieldPath = ()
    findings: list[Finding] = field(default_factory=list)

    def at(self, *path: str | int) -> "Report":
        """The same report, further down."""
        return Report((*self.path, *path), self.findings)

    def error(self, message: str, found: object = "", allowed: str = "") -> None:
        """The document is refused."""
        self._add(Severity.ERROR, BROKEN, message, found, allowed)

    def warn(self, message: str, found: object = "", allowed: str = "") -> None:
        """The document is taken; this looks like a mistake."""
        self._add(Severity.WARNING, DUBIOUS, message, found, allowed)

    def old(self, message: str) -> None:
        """A spelling that is deprecated; the message says what it does here and in today's Istio."""
        self._add(Severity.WARNING, OLD, message, "", "")

    def info(self, message: str) -> None:
        """The document is taken; in-process clients do not act on this."""
        self._add(Severity.INFO, NOT_APPLIED, message, "", "")

    def _add(self, severity: Severity, code: str, message: str, found: object, allowed: str) -> None:
        text = found if isinstance(found, str) else str(found)
        self.findings.append(Finding(severity, code, self.path, message, text[:200], allowed))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)
