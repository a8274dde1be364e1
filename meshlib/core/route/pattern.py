"""A user's pattern: RE2, in Envoy's dialect and bounds, and never anything else."""

from collections.abc import Callable

import re2

MAX_PATTERN = 16_384
"""Characters of a pattern."""
MAX_PROGRAM = 32_768
"""RE2 instructions of a pattern: Istio's bound for its proxies (re2.max_program_size.error_level)."""
_SET_PROGRAM = 1_000
"""Up to this size RE2's set automaton, which is faster from Python, cannot run out of memory."""


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


def regex_test(source: str) -> Callable[[bytes | None], bool]:
    """Whether a whole value matches. ValueError: as of `pattern`."""
    made = pattern(source)
    if made.programsize > _SET_PROGRAM:
        return lambda value: value is not None and made.fullmatch(value) is not None
    one = re2.Set.FullMatchSet(_options())
    one.Add(source)
    one.Compile()
    match = one.Match
    return lambda value: value is not None and match(value) is not None
