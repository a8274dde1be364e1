"""An index over the rules of a virtual host: the first match without trying every rule.

Each rule is filed once, under the condition that excludes most requests:

    exact path ──► by the path            header exactly "v" ──► by (header name, value)
    prefix ──► by length, then text       anything else ──► always tried

For a request the files are looked into, which gives the few rules that can match at all; these are
tried in their order. So the answer is that of the plain scan from the first rule to the last.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from meshlib.core.request import Dice, RequestHead
from meshlib.core.route.match import PathKind, bare_path, values_of
from meshlib.core.route.rule import Route

_MILLION = 1_000_000
_MAX_HEADERS = 8
"""Header names with a file of their own, the most used ones: each costs one look-up a request."""

_Files = dict[str, tuple[int, ...]]


class RuleIndex:
    """Finds the first of `routes` that takes a request."""

    __slots__ = ("_always", "_by_header", "_by_path", "_by_prefix", "_routes")

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)
        names = _filed_headers(self._routes)
        always: list[int] = []
        by_path: defaultdict[str, list[int]] = defaultdict(list)
        by_prefix: defaultdict[int, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        by_header: defaultdict[bytes, defaultdict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, route in enumerate(self._routes):
            path = route.match.path
            plain = path.case_sensitive or not path.value.upper().isupper()
            header = next(
                ((h.name, h.exact) for h in route.match.headers if h.exact is not None and h.name in names),
                None,
            )
            if path.kind is PathKind.EXACT and plain:
                by_path[path.value].append(number)
            elif header is not None and header[1] is not None:
                by_header[header[0]][header[1]].append(number)
            elif path.kind is PathKind.PREFIX and plain and path.value:
                by_prefix[len(path.value)][path.value].append(number)
            else:
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


def _filed_headers(routes: Sequence[Route]) -> frozenset[bytes]:
    """The header names worth a file: those most often wanted with an exact value."""
    wanted = Counter(
        header.name for route in routes for header in route.match.headers if header.exact is not None
    )
    return frozenset(name for name, _ in wanted.most_common(_MAX_HEADERS))
