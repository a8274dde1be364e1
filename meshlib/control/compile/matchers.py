"""Matchers of authorization: Istio's texts with * as Envoy's messages.

Rules (Istio):

- `*` alone: anything but nothing; `*x`: a suffix; `x*`: a prefix; else exactly. A * elsewhere is a letter.
- Patterns are RE2, and only * stands for more than itself in them.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

from meshlib.xds import pb

ANYTHING = ".+"
_META = frozenset("\\.+*?()|[]{}^$")


def literal(text: str) -> str:
    """A pattern that matches just this text; letters, digits and - / : stand as they are."""
    return "".join(f"\\{char}" if char in _META else char for char in text)


def pattern(regex: str) -> Any:
    """A StringMatcher of a pattern."""
    return pb.StringMatcher(safe_regex=pb.RegexMatcher(regex=regex))


def text(value: str, prefix: str = "", *, ignore_case: bool = False) -> Any:
    """A StringMatcher for a text in which * may stand at one end; what is matched begins with `prefix`."""
    if value == "*":
        return pattern(ANYTHING)
    if value.startswith("*"):
        if prefix:
            return pattern(f"{literal(prefix)}.*{literal(value[1:])}")
        return pb.StringMatcher(suffix=value[1:], ignore_case=ignore_case)
    if value.endswith("*"):
        return pb.StringMatcher(prefix=prefix + value[:-1], ignore_case=ignore_case)
    return pb.StringMatcher(exact=prefix + value, ignore_case=ignore_case)


def header(name: str, value: str, *, ignore_case: bool = False) -> Any:
    """A HeaderMatcher; `*` is a header that is there."""
    if value == "*":
        return pb.HeaderMatcher(name=name, present_match=True)
    return pb.HeaderMatcher(name=name, string_match=text(value, ignore_case=ignore_case))


def network(value: str) -> Any:
    """A CidrRange of an address or range. ValueError: it is neither."""
    found = ipaddress.ip_network(value, strict=False)
    made = pb.message("envoy.config.core.v3.CidrRange")(address_prefix=str(found.network_address))
    made.prefix_len.value = found.prefixlen
    return made


def metadata(filter_name: str, path: Iterable[str], value: Any) -> Any:
    """A MetadataMatcher of what a filter wrote at `path`; `value` is a ValueMatcher."""
    made = pb.message("envoy.type.matcher.v3.MetadataMatcher")(filter=filter_name, value=value)
    for key in path:
        made.path.add(key=key)
    return made


def value_of(string: Any) -> Any:
    """A ValueMatcher of a text."""
    return pb.message("envoy.type.matcher.v3.ValueMatcher")(string_match=string)


def any_of(values: Sequence[Any]) -> Any:
    """A ValueMatcher of any of these; one stands for itself."""
    if len(values) == 1:
        return values[0]
    made = pb.message("envoy.type.matcher.v3.ValueMatcher")()
    made.or_match.value_matchers.extend(values)
    return made


def one_in(value: Any) -> Any:
    """A ValueMatcher of a list that holds such a value."""
    made = pb.message("envoy.type.matcher.v3.ValueMatcher")()
    made.list_match.one_of.CopyFrom(value)
    return made


def alone_or_in(value: Any) -> Any:
    """A ValueMatcher of such a value, or of a list that holds one."""
    return any_of((one_in(value), value))
