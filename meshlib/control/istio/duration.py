"""Durations as Go and protobuf write them: a number with a unit, or several in a row."""

import re

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # the micro sign
    "μs": 1e-6,  # the Greek letter
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST = 64


def seconds(text: str) -> float:
    """`1h30m` as seconds. Raises ValueError if the text is no duration."""
    sign, rest = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text[1:] if text[:1] == "+" else text)
    if rest == "0":
        return 0.0
    if not rest or len(rest) > _LONGEST:
        raise ValueError(text)
    total, at = 0.0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            raise ValueError(text)
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    # Sums of decimal fractions such as 1s100ms must not show binary dust in what is compiled.
    return sign * round(total, 9)


def spell(value: float) -> str:
    """Seconds as a short text, such as `0.5s`."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
