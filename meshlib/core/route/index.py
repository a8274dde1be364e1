"""An index over the rules of a virtual host: the first match without trying every rule.

Each rule is filed once, under one of its conditions, the one that the fewest other rules share:

    exact path ──► by the path            header exactly "v" ──► by (header name, value)
    prefix ──► by length, then text       anything else ──► always tried

For a request the files are looked into, which gives the few rules that can match at all; these are
tried in their order. So the answer is that of the plain scan from the first rule to the last.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from meshlib.core.request import Dice, RequestHead
from meshlib.core.route.match import PathKind, RouteMatch, bare_path, values_of
from meshlib.core.route.rule import Route

_MILLION = 1_000_000
_MAX_HEADERS = 8
"""Header names with a file of their own, the most used ones: each costs one look-up a request."""

_Key = tuple[str | bytes | int, str | bytes]
"""("", path), (length, prefix) or (header name, value)."""


class RuleIndex:
    """Finds the first of `routes` that takes a request."""

    __slots__ = ("_always", "_by_header", "_by_path", "_by_prefix", "_only", "_routes")

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)
        self._only: Route | None = None
        """The only rule, if it looks at nothing but the path."""
        if len(self._routes) == 1:
            match = self._routes[0].match
            if not match.headers and not match.query and match.share is None:
                self._only = self._routes[0]
        names = _filed_headers(self._routes)
        keys = [tuple(_keys(route.match, names)) for route in self._routes]
        shared = Counter(key for some in keys for key in some)
        always: list[int] = []
        by_path: defaultdict[str, list[int]] = defaultdict(list)
        by_prefix: defaultdict[int, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        by_header: defaultdict[bytes, defaultdict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, some in enumerate(keys):
            match min(some, key=shared.__getitem__, default=None):
                case (str(), str(path)):
                    by_path[path].append(number)
                case (int(length), str(prefix)):
                    by_prefix[length][prefix].append(number)
                case (bytes(name), bytes(value)):
                    by_header[name][value].append(number)
                case _:
                    always.append(number)
        self._always = tuple(always)
        self._by_path = {key: tuple(numbers) for key, numbers in by_path.items()}
        self._by_prefix = tuple(
            (length, {key: tuple(numbers) for key, numbers in files.items()})
            for length, files in sorted(by_prefix.items())
        )
        self._by_header = tuple(
            (name, {key: tuple(numbers) for key, numbers in files.items()})
            for name, files in sorted(by_header.items())
        )

    def candidates(self, head: RequestHead, path: str) -> Sequence[int]:
        """The numbers, in order, of all rules that can match at all; `path` is without query."""
        found = self._by_path.get(path, ()) + self._always
        files = 0 if not found else 2
        for name, by_value in self._by_header:
            value = head.header(name)
            if value is None:
                continue
            for each in (value,) if b"," not in value else set(values_of(head, name)):
                if (more := by_value.get(each)) is not None:
                    found += more
                    files += 1
        size = len(path)
        for length, by_text in self._by_prefix:
            if length > size:
                break
            if (more := by_text.get(path[:length])) is not None:
                found += more
                files += 1
        return found if files < 2 else sorted(found)

    def find(self, head: RequestHead, dice: Dice) -> Route | None:
        """The first rule that takes the request, or None."""
        path = head.path
        if "?" in path or "#" in path:
            path = bare_path(path)
        only = self._only
        if only is not None:
            return only if only.match.path.holds(path) else None
        roll = -1.0
        for number in self.candidates(head, path):
            route = self._routes[number]
            match = route.match
            if not match.path.holds(path):
                continue
            if (match.headers or match.query) and not match.rest_holds(head):
                continue
            if match.share is not None:
                if roll < 0.0:
                    roll = dice.random() * _MILLION
                if roll >= match.share:
                    continue
            return route
        return None


def _keys(match: RouteMatch, names: frozenset[bytes]) -> Iterator[_Key]:
    """The conditions that a rule can be filed under: it never matches a request outside that file."""
    path = match.path
    if path.case_sensitive or not path.value.upper().isupper():
        if path.kind is PathKind.EXACT:
            yield "", path.value
        elif path.kind is PathKind.PREFIX and path.value:
            yield len(path.value), path.value
    for header in match.headers:
        if header.exact is not None and header.name in names:
            yield header.name, header.exact


def _filed_headers(routes: Sequence[Route]) -> frozenset[bytes]:
    """The header names worth a file: those most often wanted with an exact value."""
    wanted = Counter(
        header.name for route in routes for header in route.match.headers if header.exact is not None
    )
    return frozenset(name for name, _ in wanted.most_common(_MAX_HEADERS))
