"""Conditions of RBAC as closures, made when a policy arrives: from a question to yes or no.

Rules (Envoy):

- `authenticated` is true of peers with a verified certificate only. Its name is the certificate's URI,
  one of its DNS names, or its subject: one that fits is enough.
- Values of metadata are compared by their kind: a text condition is false of a number, and of nothing.
- A path is compared as it was normalised; and, where the request is looked at as the application reads it, as
  that, or as it is written with the fewest escapes: to `/a/{*}` the escape of an `é` is one letter.
- What is compared with it may be read in the same way: `/a%20b` means `/a b`, and `/to/http://x` is met by
  `/to/http:/x` where no path has two slashes.
- The server name that a client asked for is compared in lower case; without one it is empty.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meshlib.core.authz.path import given, routed
from meshlib.core.authz.question import Question, Reading, parse_ip
from meshlib.core.route.match import HeaderMatch
from meshlib.core.route.text import TextKind, TextMatch
from meshlib.values import dataclass

Condition = Callable[[Question], bool]
ValueTest = Callable[[Any], bool]
_BITS = {4: 32, 6: 128}
ABSENT: Any = object()
"""Stands for a value that is not there."""


def always(_: Question) -> bool:
    """True of every request."""
    return True


def negated(part: Condition) -> Condition:
    """The opposite."""
    return lambda question: not part(question)


def every(parts: Sequence[Condition]) -> Condition:
    """All of them; of one, itself."""
    wanted = tuple(part for part in parts if part is not always)
    if not wanted:
        return always
    if len(wanted) == 1:
        return wanted[0]
    if len(wanted) == 2:
        first, second = wanted
        return lambda question: first(question) and second(question)

    def all_hold(question: Question) -> bool:
        for part in wanted:  # noqa: SIM110 - half the time of a generator
            if not part(question):
                return False
        return True

    return all_hold


def some(parts: Sequence[Condition]) -> Condition:
    """One of them is enough."""
    if always in parts:
        return always
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        first, second = parts
        return lambda question: first(question) or second(question)
    offered = tuple(parts)

    def one_holds(question: Question) -> bool:
        for part in offered:  # noqa: SIM110
            if part(question):
                return True
        return False

    return one_holds


def header(match: HeaderMatch) -> Condition:
    """A header, or `:method`, `:authority`, `:path`, `:scheme`."""
    exact = match.exact
    if exact is not None and match.name == b":method":
        method = exact.decode("latin-1")
        return lambda question: question.head.method == method
    if exact is not None and match.name == b":authority":
        authority = exact.decode("latin-1")
        return lambda question: question.head.authority == authority
    holds = match.holds
    return lambda question: holds(question.head)


def url_path(match: TextMatch) -> Condition:
    """The path without its query."""
    only, meets = match.only, match.meets
    read = _read(match)
    if read:

        def meets_read(question: Question) -> bool:
            tests = (meets, *(test for reading, test in read if question.reading >= reading))
            return any(any(map(test, question.paths)) for test in tests)

        return meets_read
    if only is not None:
        return lambda question: only in question.paths

    def holds(question: Question) -> bool:
        for path in question.paths:  # noqa: SIM110 - half the time of a generator
            if meets(path):
                return True
        return False

    return holds


def _read(match: TextMatch) -> list[tuple[Reading, Callable[[bytes | None], bool]]]:
    """What else meets a condition on a path, and from which reading on."""
    if match.kind is TextKind.REGEX:
        return []
    decoded = given(match.value)
    forms = ((Reading.GIVEN, decoded), (Reading.ROUTED, routed(decoded)))
    texts = [(reading, form.decode("utf-8", "replace")) for reading, form in forms]
    before = (match.value, texts[0][1])
    return [
        (reading, TextMatch(match.kind, text, match.ignore_case).meets)
        for (reading, text), other in zip(texts, before, strict=True)
        if text != other
    ]


def server_name(match: TextMatch) -> Condition:
    """The server name that TLS asked for."""
    meets = match.meets
    return lambda question: meets(question.peer.sni.lower().encode("latin-1", "replace"))


def authenticated(match: TextMatch | None) -> Condition:
    """The peer's certificate names it so; None: it has one."""
    if match is None:
        return lambda question: bool(question.names)
    meets, only = match.meets, match.only
    if only is not None:
        return lambda question: only in question.names

    def is_named(question: Question) -> bool:
        for name in question.names:  # noqa: SIM110 - half the time of a generator
            if meets(name):
                return True
        return False

    return is_named


@dataclass(frozen=True, slots=True)
class Block:
    """A range of IP addresses. ValueError: `address` is none, or `length` is too long for it."""

    address: str
    length: int

    def __post_init__(self) -> None:
        version, _ = parse_ip(self.address)
        if not version:
            raise ValueError(f"{self.address!r} is no IP address")
        if not 0 <= self.length <= _BITS[version]:
            raise ValueError(f"{self.length} bits are more than {self.address} has")

    def test(self) -> Callable[[str], bool]:
        """Whether an address is in the range."""
        version, number = parse_ip(self.address)
        shift = _BITS[version] - self.length
        wanted = (version, number >> shift)

        def holds(text: str) -> bool:
            found = parse_ip(text)
            return (found[0], found[1] >> shift) == wanted

        return holds


def direct_ip(block: Block) -> Condition:
    """The other end of the connection."""
    holds = block.test()
    return lambda question: holds(question.peer.address[0])


def remote_ip(block: Block) -> Condition:
    """The client's address as trusted headers say it, or the other end's."""
    holds = block.test()
    return lambda question: holds(question.remote)


def local_ip(block: Block) -> Condition:
    """The address that the connection came to."""
    holds = block.test()
    return lambda question: holds(question.peer.local[0])


def local_port(first: int, beyond: int) -> Condition:
    """The port that the connection came to: from `first` up to, not including, `beyond`."""
    if beyond == first + 1:
        return lambda question: question.peer.local[1] == first
    return lambda question: first <= question.peer.local[1] < beyond


def metadata(space: str, path: Sequence[str], test: ValueTest, *, invert: bool = False) -> Condition:
    """A value that a filter before left under `space`; `path` leads through nested objects."""
    keys = tuple(path)

    def holds(question: Question) -> bool:
        found: Any = question.metadata.get(space, ABSENT)
        for key in keys:
            found = found.get(key, ABSENT) if isinstance(found, Mapping) else ABSENT
        return test(found) is not invert

    return holds
