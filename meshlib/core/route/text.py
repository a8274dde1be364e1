"""Conditions on a text: exact, prefix, suffix, contains, regex; and on a number; and on presence.

Values are bytes as they came. Patterns are RE2 and must match the whole value; case is ignored in
ASCII only, as Envoy does.
"""

from collections.abc import Callable
from dataclasses import field
from enum import Enum

from meshlib.values import dataclass


class TextKind(Enum):
    """How a text is compared."""

    EXACT = "exactly"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "containing"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class TextMatch:
    """A condition on a text. ValueError: the pattern is no RE2 pattern, or too big."""

    kind: TextKind
    value: str
    ignore_case: bool = False
    meets: Callable[[bytes | None], bool] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "meets", _text_test(self))

    @property
    def only(self) -> bytes | None:
        """The one text that meets this, if there is exactly one."""
        return self.value.encode() if self.kind is TextKind.EXACT and not self.ignore_case else None

    def __str__(self) -> str:
        return f'{self.kind.value} "{self.value}"{", any case" if self.ignore_case else ""}'


@dataclass(frozen=True, slots=True)
class Range:
    """A whole number from `start` up to, not including, `end`."""

    start: int
    end: int

    def meets(self, value: bytes | None) -> bool:
        """Whether `value` is such a number."""
        number = _whole_number(value)
        return number is not None and self.start <= number < self.end

    def __str__(self) -> str:
        return f"a number in [{self.start}, {self.end})"


@dataclass(frozen=True, slots=True)
class Presence:
    """There, with any value, or (`wanted` false) not there."""

    wanted: bool = True

    def meets(self, value: bytes | None) -> bool:
        """Whether presence is as wanted."""
        return (value is not None) is self.wanted

    def __str__(self) -> str:
        return "present" if self.wanted else "absent"


def _whole_number(value: bytes | None) -> int | None:
    if not value:
        return None
    digits = value[1:] if value[:1] in (b"-", b"+") else value
    return int(value) if digits.isdigit() and len(digits) < 20 else None


def _text_test(match: TextMatch) -> Callable[[bytes | None], bool]:
    if match.kind is TextKind.REGEX:
        from meshlib.core.route.pattern import regex_test  # RE2, which few rules need

        return regex_test(match.value)
    wanted = match.value.encode()
    if match.ignore_case:
        test = _plain_test(match.kind, wanted.lower())
        return lambda value: value is not None and test(value.lower())
    test = _plain_test(match.kind, wanted)
    return lambda value: value is not None and test(value)


def _plain_test(kind: TextKind, wanted: bytes) -> Callable[[bytes], bool]:
    if kind is TextKind.EXACT:
        return lambda value: value == wanted
    if kind is TextKind.PREFIX:
        return lambda value: value.startswith(wanted)
    if kind is TextKind.SUFFIX:
        return lambda value: value.endswith(wanted)
    return lambda value: wanted in value
