"""Conditions on a text: exact, prefix, suffix, contains, regex; and on a number; and on presence.

Values are bytes as they came. Patterns are RE2 and must match the whole value; case is ignored in
ASCII only, as Envoy does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import re2

MAX_PATTERN = 16_384
"""Characters of a pattern."""
MAX_PROGRAM = 32_768
"""RE2 instructions of a pattern: Istio's bound for its proxies (re2.max_program_size.error_level)."""
_SET_PROGRAM = 1_000
"""Up to this size RE2's set automaton, which is faster from Python, cannot run out of memory."""


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


def pattern(source: str) -> "re2._Regexp":
    """A compiled pattern. ValueError: not RE2, or beyond the bounds."""
    if len(source) > MAX_PATTERN:
        raise ValueError(f"the pattern has {len(source)} characters, at most {MAX_PATTERN} are taken")
    try:
        made = re2.compile(source, _options())
    except re2.error as error:
        raise ValueError(f"not an RE2 pattern: {_error_text(error)}") from None
    if made.programsize > MAX_PROGRAM:
        raise ValueError(
            f"the pattern's program has {made.programsize} steps, at most {MAX_PROGRAM} are taken"
        )
    return made


def _options() -> "re2.Options":
    options = re2.Options()
    options.log_errors = False
    return options


def _error_text(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)


def _whole_number(value: bytes | None) -> int | None:
    if not value:
        return None
    digits = value[1:] if value[:1] in (b"-", b"+") else value
    return int(value) if digits.isdigit() and len(digits) < 20 else None


def _text_test(match: TextMatch) -> Callable[[bytes | None], bool]:
    if match.kind is TextKind.REGEX:
        return _regex_test(match.value)
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


def _regex_test(source: str) -> Callable[[bytes | None], bool]:
    made = pattern(source)
    if made.programsize > _SET_PROGRAM:
        return lambda value: value is not None and made.fullmatch(value) is not None
    one = re2.Set.FullMatchSet(_options())
    one.Add(source)
    one.Compile()
    match = one.Match
    return lambda value: value is not None and match(value) is not None
