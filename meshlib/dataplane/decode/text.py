"""Envoy's StringMatcher, RegexMatcher, fractions and durations as core's conditions and numbers."""

from typing import Any

from meshlib.core.route.text import TextKind, TextMatch
from meshlib.dataplane.decode.errors import Refused
from meshlib.xds import pb

MILLION = 1_000_000
DENOMINATORS = (100, 10_000, MILLION)
"""Of FractionalPercent, by its enum."""
_KINDS = {
    "exact": TextKind.EXACT,
    "prefix": TextKind.PREFIX,
    "suffix": TextKind.SUFFIX,
    "contains": TextKind.CONTAINS,
}


def decode_string(message: Any) -> TextMatch:
    """An envoy.type.matcher.v3.StringMatcher."""
    which = message.WhichOneof("match_pattern")
    if which == "safe_regex":
        return TextMatch(TextKind.REGEX, decode_regex(message.safe_regex, "safe_regex"))
    if which not in _KINDS:
        raise Refused("", f"{which} is not supported" if which else "no pattern is set")
    return plain(_KINDS[which], getattr(message, which), which, ignore_case=message.ignore_case)


def plain(kind: TextKind, value: str, path: str, *, ignore_case: bool = False) -> TextMatch:
    """A condition that is no regex; only the exact one may be empty."""
    if not value and kind is not TextKind.EXACT:
        raise Refused(path, "is empty")
    return TextMatch(kind, value, ignore_case)


def decode_regex(message: Any, path: str) -> str:
    """The pattern of an envoy.type.matcher.v3.RegexMatcher, which compiles and is within the bounds."""
    if not message.regex:
        raise Refused(f"{path}.regex", "is empty")
    from meshlib.core.route.pattern import pattern  # RE2, which few rules need

    try:
        pattern(message.regex)
    except ValueError as error:
        raise Refused(f"{path}.regex", str(error)) from None
    return str(message.regex)


def decode_millionths(message: Any) -> int:
    """An envoy.type.v3.FractionalPercent in parts per million, at most a million."""
    if not 0 <= message.denominator < len(DENOMINATORS):
        raise Refused("denominator", f"{message.denominator} is unknown")
    return min(MILLION, int(message.numerator) * MILLION // DENOMINATORS[message.denominator])


def decode_seconds(holder: Any, name: str, default: float) -> float:
    """The seconds of a Duration field; `default` if it is not set."""
    if not holder.HasField(name):
        return default
    found = pb.seconds(getattr(holder, name))
    if found < 0:
        raise Refused(name, f"{found:g} s is less than nothing")
    return found
