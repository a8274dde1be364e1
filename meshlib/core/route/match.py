"""Whether a request meets a rule's conditions, and if not, which one failed.

Rules (Envoy, RouteMatch and HeaderUtility):
* All conditions must hold. The path is looked at without its query; a regex must match all of it.
* Names of headers are case-insensitive. Of several headers with one name it is enough that one value
  meets the condition; an inverted condition holds if none does. (Envoy, match_headers_individually.)
* A header that is absent fails every condition on its value, inverted ones too, unless the
  condition takes an absent header as an empty one.
* Query parameters are not decoded; of several with one name the first counts.

Conditions are closures, made once when a route configuration arrives. `matches` is the answer for
traffic; `why_not` says the same for people.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from enum import Enum

from meshlib.core.headers import ONE_PLACE, one_value
from meshlib.core.request import RequestHead
from meshlib.core.route.text import Presence, Range, TextKind, TextMatch
from meshlib.values import dataclass


class PathKind(Enum):
    """How a rule looks at the path."""

    PREFIX = "prefix"
    EXACT = "exact"
    REGEX = "regex"
    SEGMENTS = "path-separated prefix"
    """`/a` takes `/a` and `/a/b`, not `/ab`."""


@dataclass(frozen=True, slots=True)
class PathMatch:
    """The path condition. `value` is a prefix, a path or a pattern. ValueError: not an RE2 pattern."""

    kind: PathKind = PathKind.PREFIX
    value: str = "/"
    case_sensitive: bool = True
    holds: Callable[[str], bool] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", _path_test(self))

    def __str__(self) -> str:
        note = "" if self.case_sensitive or self.kind is PathKind.REGEX else ", any case"
        return f'{self.kind.value} "{self.value}"{note}'


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """A condition on one header, or on `:method`, `:authority`, `:path`, `:scheme`. `name` is lower case."""

    name: bytes
    test: TextMatch | Range | Presence
    invert: bool = False
    absent_is_empty: bool = False
    holds: Callable[[RequestHead], bool] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", _header_test(self))

    @property
    def exact(self) -> bytes | None:
        """The one value that meets this condition, if there is exactly one."""
        if self.invert or self.absent_is_empty or not isinstance(self.test, TextMatch):
            return None
        return self.test.only

    def __str__(self) -> str:
        return f"header {self.name.decode('latin-1')} {'not ' * self.invert}{self.test}"

    def why_not(self, head: RequestHead) -> str:
        """Why this condition does not hold, in words; only to be asked when it does not."""
        found = head.header(self.name)
        what = "is absent" if found is None else f'is "{found.decode("utf-8", "backslashreplace")}"'
        return f"header {self.name.decode('latin-1')} {what}, wanted {'not ' * self.invert}{self.test}"


@dataclass(frozen=True, slots=True)
class QueryMatch:
    """A condition on one query parameter."""

    name: str
    test: TextMatch | Presence

    def holds(self, parameters: dict[str, str]) -> bool:
        """Whether these parameters, from `query_parameters`, meet it."""
        found = parameters.get(self.name)
        return self.test.meets(None if found is None else found.encode("latin-1"))

    def __str__(self) -> str:
        return f"query parameter {self.name} {self.test}"

    def why_not(self, parameters: dict[str, str]) -> str:
        """Why this condition does not hold, in words; only to be asked when it does not."""
        found = parameters.get(self.name)
        what = "is absent" if found is None else f'is "{found}"'
        return f"query parameter {self.name} {what}, wanted {self.test}"


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """All conditions of one rule."""

    path: PathMatch = field(default_factory=PathMatch)
    headers: tuple[HeaderMatch, ...] = ()
    query: tuple[QueryMatch, ...] = ()
    share: int | None = None
    """The rule takes part for this many of a million requests; None: for all."""

    def matches(self, head: RequestHead) -> bool:
        """Whether all conditions hold, the share of traffic aside."""
        return self.path.holds(bare_path(head.path)) and self.rest_holds(head)

    def rest_holds(self, head: RequestHead) -> bool:
        """Whether the conditions other than the path hold."""
        for condition in self.headers:
            if not condition.holds(head):
                return False
        if self.query:
            parameters = query_parameters(head.path)
            return all(condition.holds(parameters) for condition in self.query)
        return True

    def why_not(self, head: RequestHead) -> str:
        """Every condition that fails, in words; empty if the rule matches."""
        return "; ".join(self._failures(head))

    def _failures(self, head: RequestHead) -> Iterator[str]:
        path = bare_path(head.path)
        if not self.path.holds(path):
            yield f'path is "{path}", wanted {self.path}'
        for header in self.headers:
            if not header.holds(head):
                yield header.why_not(head)
        if self.query:
            parameters = query_parameters(head.path)
            for query in self.query:
                if not query.holds(parameters):
                    yield query.why_not(parameters)

    def __str__(self) -> str:
        share = () if self.share is None else (f"{self.share / 10_000:g}% of requests",)
        return ", ".join((f"path {self.path}", *map(str, self.headers), *map(str, self.query), *share))


def bare_path(path: str) -> str:
    """A path without its query and fragment."""
    if "?" in path:
        path = path[: path.index("?")]
    if "#" in path:
        path = path[: path.index("#")]
    return path


def query_parameters(path: str) -> dict[str, str]:
    """The parameters of a path's query as they are written, the first of each name."""
    _, question, query = path.partition("?")
    found: dict[str, str] = {}
    if question:
        for part in query.split("&"):
            name, _, value = part.partition("=")
            found.setdefault(name, value)
    return found


def _path_test(match: PathMatch) -> Callable[[str], bool]:
    wanted = match.value if match.case_sensitive else match.value.lower()
    if match.kind is PathKind.REGEX:
        meets = TextMatch(TextKind.REGEX, match.value).meets
        return lambda path: meets(path.encode("latin-1"))
    test = _path_text_test(match.kind, wanted)
    return test if match.case_sensitive else lambda path: test(path.lower())


def _path_text_test(kind: PathKind, wanted: str) -> Callable[[str], bool]:
    if kind is PathKind.EXACT:
        return lambda path: path == wanted
    if kind is PathKind.PREFIX:
        return lambda path: path.startswith(wanted)
    segment = wanted + "/"
    return lambda path: path == wanted or path.startswith(segment)


def values_of(head: RequestHead, name: bytes) -> Sequence[bytes]:
    """The values of a header, one for each time it stands there; `name` is lower case."""
    value = head.header(name)
    if value is None:
        return ()
    if b"," not in value or name.startswith(b":") or name == b"host":
        return (value,)
    if name in ONE_PLACE:
        return (one_value(head, name) or b"",)
    return [each for key, each in head.headers if key.lower() == name]


def _header_test(match: HeaderMatch) -> Callable[[RequestHead], bool]:
    name, meets, invert = match.name, match.test.meets, match.invert
    absent = match.absent_is_empty
    if isinstance(match.test, Presence):
        return lambda head: meets(b"" if absent else head.header(name)) is not invert
    exact = match.exact

    def holds(head: RequestHead) -> bool:
        value = head.header(name)
        if value is None:
            return absent and meets(b"") is not invert
        if b"," not in value:
            return (value == exact) if exact is not None else meets(value) is not invert
        return any(map(meets, values_of(head, name))) is not invert

    return holds
