"""What becomes of the path: prefix rewrite and regex rewrite, made once for each rule.

Rules (Envoy, RouteEntryImplBase::currentUrlPathAfterRewriteWithMatchedPath):
* A prefix rewrite replaces as many characters as the rule's prefix, or exact path, has, and keeps
  the rest with the query. Under a regex rule it replaces the whole path and keeps the query.
* A regex rewrite replaces every match in the path without its query; `\\1` to `\\9` are its groups,
  `\\0` the match. The query is kept. If nothing is left of the path, there is
  no rewrite: the function gives an empty text.
"""

from collections.abc import Callable

from meshlib.core.request import RequestHead
from meshlib.core.route.match import PathKind, PathMatch, bare_path

Rewrite = Callable[[RequestHead], str]


def prefix_rewrite(matched: PathMatch, text: str) -> Rewrite:
    """Replaces what `matched` matched by `text`."""
    if matched.kind is PathKind.REGEX:
        return lambda head: text + head.path[len(bare_path(head.path)) :]
    size = len(matched.value)
    return lambda head: text + head.path[size:]


def regex_rewrite(source: str, substitution: str) -> Rewrite:
    """Replaces every match of a pattern. ValueError: bad pattern, or a substitution with a bad escape."""
    from meshlib.core.route.pattern import pattern  # RE2, which few rules need

    made = pattern(source)
    parts = _parse_substitution(substitution, made.groups)

    def rewrite(head: RequestHead) -> str:
        bare = bare_path(head.path)
        text = bare.encode("latin-1")
        pieces: list[bytes] = []
        last = 0
        seen = False
        for match in made.finditer(text):
            start, end = match.span()
            if seen and start == end == last:
                continue  # RE2: an empty match right after the last match is not replaced
            pieces.append(text[last:start])
            pieces.extend(part if isinstance(part, bytes) else match.group(part) or b"" for part in parts)
            last, seen = end, True
        pieces.append(text[last:])
        left = b"".join(pieces).decode("latin-1")
        return left and left + head.path[len(bare) :]

    return rewrite


def _parse_substitution(text: str, groups: int) -> tuple[bytes | int, ...]:
    parts: list[bytes | int] = []
    rest = text
    while rest:
        plain, slash, rest = rest.partition("\\")
        if plain:
            parts.append(plain.encode())
        if not slash:
            break
        escaped, rest = rest[:1], rest[1:]
        if escaped == "\\":
            parts.append(b"\\")
        elif escaped.isascii() and escaped.isdigit():
            if int(escaped) > groups:
                raise ValueError(f"\\{escaped} is no group: the pattern has {groups}")
            parts.append(int(escaped))
        else:
            raise ValueError(f"\\{escaped} means nothing here; \\0 to \\9 are groups, \\\\ is a backslash")
    return tuple(parts)
