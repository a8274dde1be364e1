"""What a path is before policies look at it: dot segments resolved, slashes merged (Envoy's HCM).

Rules, in this order (Envoy's codec, HCM and googleurl; each is compared with a real Envoy in the tests):

1. `http://host/path` is `/path` at that host. What does not begin with a slash then, is refused, as is a
   path with a byte that is not printable ASCII, and one with a fragment.
2. Escaped slashes (%2F, %5C) stay, are refused, or become slashes; then the request goes on, or the client is
   sent there.
3. `.;x` and `..;x` are `.` and `..`. Dot segments are resolved, %2e counts as a dot, a backslash is a
   slash, escaped letters, digits, `-`, `_`, `~` are written plainly, what must not stand in a path is
   escaped. A percent sign that escapes nothing stays, unless it would then escape something. A path that
   holds NUL is refused.
4. Several slashes become one; a path of nothing but slashes keeps two.

The query stays as it is. An application is given the path that was decided on: otherwise `/a/../b` would
be one thing to the policy and another to the application.

It is given it decoded, as ASGI and WSGI want it (`given`): `/a%3Ab` is `/a:b` to it. Only escaped slashes
stay so, for they were none to the policies. So policies look at both readings (core/authz/rbac.py).

And at a third (`routed`), as the most forgiving of the frameworks' routers reads what it is given: werkzeug
takes away slashes at the beginning, and so do those that mount one application in another; Starlette takes a
line break for the end (Python's `$`). `//admin` and `/admin%0A` run the handler of `/admin` there.
"""

from enum import Enum
from urllib.parse import unquote_to_bytes

import re2

from meshlib.core.route.match import bare_path
from meshlib.values import dataclass


class EscapedSlashes(Enum):
    """What is done with %2F and %5C."""

    KEEP = "keep"
    REJECT = "reject"
    REDIRECT = "unescape and redirect"
    FORWARD = "unescape and go on"


@dataclass(frozen=True, slots=True)
class PathOptions:
    """How paths are normalised. The default is what Istio compiles."""

    normalize: bool = True
    merge_slashes: bool = False
    escaped_slashes: EscapedSlashes = EscapedSlashes.KEEP


GO_ON, REDIRECT, REFUSE, NOT_FOUND = 0, 307, 400, 404
"""What becomes of a request: it goes on, or it is answered with that status."""

_ESCAPED = re2.compile(r"%(2[fF]|5[cC])")
_ESCAPE = re2.compile("%[0-9A-Fa-f]{2}")
_SLASHES = re2.compile("//+")
_ABSOLUTE = re2.compile(r"(?is)https?://(?:[^/@]*@)?([^/@?]+)(.*)")
_DOTS = re2.compile(r"/(\.\.?);[^/]*")
_ODD = re2.compile(r"[^!-~]|#")
_PLAIN = re2.Set.FullMatchSet()
"""Of paths in which there is nothing to do: no empty segment, none that begins with a dot, no escape.

Every request is asked this, and a set answers in a tenth of the time of a single pattern's Python.
"""
_PLAIN.Add(
    r"(?:(?:/[A-Za-z0-9_~!$&'()*+,;:@=\[\]-][A-Za-z0-9_~!$&'()*+,;:@=.\[\]-]*)+/?|/)"
    r"(?:\?[!\"$-~]*)?"
)
_PLAIN.Compile()
_UNESCAPED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~.")
_CAN_STAND = _UNESCAPED | frozenset("!$&'()*+,;=:@")
"""What needs no escape in a path (RFC 3986, 3.3: pchar)."""
_MUST_ESCAPE = frozenset('"<>?`{}^|')
_HEX = frozenset("0123456789abcdefABCDEF")


def origin_form(authority: str, path: str) -> tuple[str, str]:
    """Authority and path of a request, of which one that is a whole URL holds both."""
    if path.startswith("/"):
        return authority, path
    found = _ABSOLUTE.fullmatch(path)
    return (found[1], found[2] or "/") if found else (authority, path)


def normalize(path: str, options: PathOptions) -> tuple[int, str]:
    """What becomes of a request for `path` (with its query), and the path that it then has."""
    if _PLAIN.Match(path):
        return GO_ON, path
    if _ODD.search(path):
        return REFUSE, path
    if not path.startswith("/"):
        return NOT_FOUND if path == "*" else REFUSE, path
    bare = bare_path(path)
    query = path[len(bare) :]
    step = GO_ON
    if options.escaped_slashes is not EscapedSlashes.KEEP and _ESCAPED.search(bare):
        if options.escaped_slashes is EscapedSlashes.REJECT:
            return REFUSE, path
        bare = _ESCAPED.sub(lambda found: "/" if found[1][0] == "2" else "\\", bare)
        if options.escaped_slashes is EscapedSlashes.REDIRECT:
            step = REDIRECT
    if options.normalize:
        canonical = _canonical(bare)
        if canonical is None:
            return REFUSE, path
        bare = canonical
    if options.merge_slashes:
        bare = _SLASHES.sub("/", bare) if bare.strip("/") else bare[:2]
    return step, bare + query


def given(path: str) -> bytes:
    """A path, without its query, as an application is given it: decoded, but for escaped slashes."""
    return unquote_to_bytes(_ESCAPED.sub(lambda found: f"%25{found[1]}", path))


def plain(path: str) -> bytes:
    """A path, without its query, with no escape that it can do without, the others in capitals."""

    def written(escape: str) -> str:
        value = chr(int(escape[1:], 16))
        return value if value in _CAN_STAND else escape.upper()

    shortest: str = _ESCAPE.sub(lambda found: written(found[0]), path)
    return shortest.encode("latin-1", "replace")


def routed(path: bytes) -> bytes:
    """A decoded path as the most forgiving router reads it: no empty segment, no line break at the end."""
    path = path.removesuffix(b"\n")
    while b"//" in path:
        path = path.replace(b"//", b"/")
    return path


def beneath(path: str, root: str) -> bool:
    """Whether a path is `root`, or one of those below it; to the empty root all are."""
    root = root.rstrip("/")
    return path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/")


def _canonical(path: str) -> str | None:
    """None: it can't be normalised."""
    written = _written(_DOTS.sub(r"/\1", path))
    if written is None:
        return None
    made: list[str] = []
    parts = written[1:].split("/")
    last = len(parts) - 1
    for number, part in enumerate(parts):
        if part not in (".", ".."):
            made.append(part)
            continue
        if part == ".." and made:
            made.pop()
        if number == last:
            made.append("")
    return "/" + "/".join(made)


def _written(path: str) -> str | None:
    """Each character as it is written in a canonical path; None: one must not stand there."""
    made: list[str] = []
    loose: list[int] = []
    place = 0
    while place < len(path):
        mark, two = path[place], path[place + 1 : place + 3]
        place += 1
        if mark == "%" and len(two) == 2 and _HEX.issuperset(two):
            value = chr(int(two, 16))
            if value == "\0":
                return None
            made.append(value if value in _UNESCAPED else "%" + two)
            place += 2
            continue
        if mark == "%":
            loose.append(len(made))
        made.append("/" if mark == "\\" else f"%{ord(mark):02X}" if mark in _MUST_ESCAPE else mark)
    for at in loose:
        if len(made) > at + 2 and made[at + 1] in _HEX and made[at + 2] in _HEX:
            made[at] = "%25"
    return "".join(made)
