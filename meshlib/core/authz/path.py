"""What a path is before policies look at it: dot segments resolved, slashes merged (Envoy's HCM).

Rules, in this order (Envoy, maybeNormalizePath):

1. A path with a fragment is refused.
2. Escaped slashes (%2F, %5C) stay, are refused, or become slashes; then the request goes on, or the client is
   sent there.
3. Dot segments are resolved, %2e counts as a dot, a backslash is a slash, escaped letters, digits, `-`, `_`,
   `~` are written plainly, what must not stand in a path is escaped. A path that holds NUL is refused.
4. Several slashes become one.

The query stays as it is. An application is given the path that was decided on: otherwise `/a/../b` would be one
thing to the policy and another to the application.
"""

import re
from dataclasses import dataclass
from enum import Enum

from meshlib.core.route.match import bare_path


class EscapedSlashes(Enum):
    """What is done with %2F and %5C."""

    KEEP = "keep"
    REJECT = "reject"
    REDIRECT = "unescape and redirect"
    FORWARD = "unescape and go on"


class Step(Enum):
    """What becomes of the request."""

    GO_ON = "go on"
    REFUSE = "refuse"
    REDIRECT = "redirect"


@dataclass(frozen=True, slots=True)
class PathOptions:
    """How paths are normalised. The default is what Istio compiles."""

    normalize: bool = True
    merge_slashes: bool = False
    escaped_slashes: EscapedSlashes = EscapedSlashes.KEEP


_ESCAPED = re.compile(r"%(2[fF]|5[cC])")
_SLASHES = re.compile("//+")
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,;:@=\[\]-][A-Za-z0-9_~!$&'()*+,;:@=.\[\]-]*)+/?|/")
"""Paths in which there is nothing to do: no empty segment, none that begins with a dot, no escape."""
_UNESCAPED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~")
_MUST_ESCAPE = frozenset(
    [*map(chr, range(1, 0x21)), *'"#<>?`{}', *map(chr, range(0x7F, 0x100))]
)
_HEX = frozenset("0123456789abcdefABCDEF")


def normalize(path: str, options: PathOptions) -> tuple[Step, str]:
    """What becomes of a request for `path` (with its query), and the path that it then has."""
    if _PLAIN.fullmatch(path):
        return Step.GO_ON, path
    if "#" in path:
        return Step.REFUSE, path
    if not path.startswith("/"):  # `*` of OPTIONS, an absolute URL, nothing at all
        return Step.GO_ON, path
    bare = bare_path(path)
    query = path[len(bare) :]
    step = Step.GO_ON
    if options.escaped_slashes is not EscapedSlashes.KEEP and _ESCAPED.search(bare):
        if options.escaped_slashes is EscapedSlashes.REJECT:
            return Step.REFUSE, path
        bare = _ESCAPED.sub(lambda found: "/" if found[1][0] == "2" else "\\", bare)
        if options.escaped_slashes is EscapedSlashes.REDIRECT:
            step = Step.REDIRECT
    if options.normalize:
        canonical = _canonical(bare)
        if canonical is None:
            return Step.REFUSE, path
        bare = canonical
    if options.merge_slashes:
        bare = _SLASHES.sub("/", bare)
    return step, bare + query


def _canonical(path: str) -> str | None:
    """None: it can't be normalised."""
    written = _written(path)
    if written is None:
        return None
    made: list[str] = []
    parts = written[1:].split("/")
    last = len(parts) - 1
    for number, part in enumerate(parts):
        if part == ".":
            if number == last:
                made.append("")
        elif part == "..":
            if made:
                made.pop()
            if number == last:
                made.append("")
        else:
            made.append(part)
    return "/" + "/".join(made)


def _written(path: str) -> str | None:
    """Each character as it is written in a canonical path; None: one must not stand there."""
    made, place = [], 0
    while place < len(path):
        mark = path[place]
        place += 1
        if mark == "%" and _HEX.issuperset(path[place : place + 2]) and len(path) >= place + 2:
            value = chr(int(path[place : place + 2], 16))
            if value == "\0":
                return None
            if value == "." or value in _UNESCAPED:
                made.append(value)
            else:
                made.append(path[place - 1 : place + 2])
            place += 2
        elif mark == "\\":
            made.append("/")
        elif mark == "\0":
            return None
        elif mark in _MUST_ESCAPE:
            made.append(f"%{ord(mark):02X}")
        else:
            made.append(mark)
    return "".join(made)
