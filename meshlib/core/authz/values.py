"""Conditions on a JSON-like value, as a token's claims are (Envoy's ValueMatcher).

Each is false of a value of another kind, and of one that is not there, unless it asks for that.
"""

from collections.abc import Sequence

from meshlib.core.authz.conditions import ABSENT, ValueTest
from meshlib.core.route.text import TextMatch


def is_null() -> ValueTest:
    """JSON's null."""
    return lambda value: value is None


def is_bool(wanted: bool) -> ValueTest:
    """That truth value."""
    return lambda value: value is wanted


def is_number(first: float, beyond: float | None = None) -> ValueTest:
    """A number from `first` up to, not including, `beyond`; None: exactly `first`."""
    if beyond is None:
        return lambda value: _is_number(value) and value == first
    return lambda value: _is_number(value) and first <= value < beyond


def is_text(match: TextMatch) -> ValueTest:
    """A text that meets the condition."""
    meets = match.meets
    return lambda value: isinstance(value, str) and meets(value.encode("utf-8", "surrogatepass"))


def is_present(wanted: bool) -> ValueTest:
    """There, whatever it is (null too), or not there."""
    return lambda value: (value is not ABSENT) is wanted


def has_item(test: ValueTest) -> ValueTest:
    """A list with an item that passes."""
    return lambda value: isinstance(value, (list, tuple)) and any(map(test, value))


def passes_one(tests: Sequence[ValueTest]) -> ValueTest:
    """One of the tests is passed."""
    offered = tuple(tests)
    return lambda value: any(test(value) for test in offered)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
