"""A route table: which virtual host answers for an authority, and which of its rules takes a request.

Rules (Envoy, RouteMatcher):
* A virtual host is found by its domains, in any case: the exact name first, then the longest
  `*.suffix`, then the longest `prefix.*`, then `*`. A wildcard stands for at least one character.
* Rules are tried in order; the first that matches wins.
* One roll of the dice serves all shares (runtime fractions) of one request.

Rules are indexed when the table is made (`index.py`); order is never changed by that.
"""

import copy
from collections.abc import Iterable
from dataclasses import field

from meshlib.core.request import Dice, RequestHead
from meshlib.core.route.index import RuleIndex
from meshlib.core.route.rule import DirectResponse, Route
from meshlib.values import dataclass

MILLION = 1_000_000
_MOST_FOUND = 1000


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """The rules for some domains."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    attempt_count: bool = False
    """Whether x-envoy-attempt-count goes with each request."""
    tells_attempts: bool = False
    """Whether it comes with each response."""
    index: RuleIndex = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", RuleIndex(self.routes))

    @property
    def blocks(self) -> bool:
        """Whether it is the one for hosts that the mesh does not know and does not let anybody call."""
        return any(isinstance(route.action, DirectResponse) and route.action.blocks for route in self.routes)

    def match(self, head: RequestHead, dice: Dice) -> Route | None:
        """The first rule that takes the request, or None."""
        return self.index.find(head, dice)

    def scan(self, head: RequestHead, roll: float) -> Route | None:
        """What `match` gives, by trying every rule in order; `roll` is the dice's number in [0, 1)."""
        for route in self.routes:
            share = route.match.share
            if (share is None or roll * MILLION < share) and route.match.matches(head):
                return route
        return None


class RouteTable:
    """All virtual hosts of one route configuration. Immutable. ValueError: a domain stands twice."""

    __slots__ = (
        "_default",
        "_exact",
        "_found",
        "_prefixes",
        "_suffixes",
        "hosts",
        "ignore_port",
        "name",
        "version",
    )

    def __init__(self, name: str, hosts: Iterable[VirtualHost], *, ignore_port: bool = False) -> None:
        self.name = name
        self.version = ""
        """Of the configuration that it came with."""
        self.hosts = tuple(hosts)
        self.ignore_port = ignore_port
        self._exact: dict[str, VirtualHost] = {}
        suffixes: dict[int, dict[str, VirtualHost]] = {}
        prefixes: dict[int, dict[str, VirtualHost]] = {}
        self._default: VirtualHost | None = None
        for host in self.hosts:
            for domain in host.domains:
                self._add(domain.lower(), host, suffixes, prefixes)
        self._suffixes = tuple(sorted(suffixes.items(), reverse=True))
        self._prefixes = tuple(sorted(prefixes.items(), reverse=True))
        self._found: dict[str, VirtualHost | None] = {}
        """What was found before: a client has few authorities."""

    def of(self, version: str) -> "RouteTable":
        """The same table, of that configuration."""
        made = copy.copy(self)
        made.version = version
        return made

    def _add(
        self,
        domain: str,
        host: VirtualHost,
        suffixes: dict[int, dict[str, VirtualHost]],
        prefixes: dict[int, dict[str, VirtualHost]],
    ) -> None:
        if domain == "*":
            if self._default is not None:
                raise ValueError("only one virtual host can have the domain *")
            self._default = host
            return
        if domain.startswith("*"):
            into, key = suffixes.setdefault(len(domain) - 1, {}), domain[1:]
        elif domain.endswith("*"):
            into, key = prefixes.setdefault(len(domain) - 1, {}), domain[:-1]
        else:
            into, key = self._exact, domain
        if key in into:
            raise ValueError(f"the domain {domain} stands twice")
        into[key] = host

    def find_host(self, authority: str) -> VirtualHost | None:
        """The virtual host for what the Host header says, or None."""
        found = self._found
        try:
            return found[authority]
        except KeyError:
            if len(found) >= _MOST_FOUND:
                found.clear()
            host = found[authority] = self._find_host(authority)
            return host

    def _find_host(self, authority: str) -> VirtualHost | None:
        name = authority.lower()
        if self.ignore_port:
            name = without_port(name)
        found = self._exact.get(name)
        if found is not None:
            return found
        size = len(name)
        for length, by_text in self._suffixes:
            if length < size and (found := by_text.get(name[-length:])):
                return found
        for length, by_text in self._prefixes:
            if length < size and (found := by_text.get(name[:length])):
                return found
        return self._default

    def match(self, head: RequestHead, dice: Dice) -> Route | None:
        """The rule that takes the request; None: no virtual host, or none of its rules (404 NR)."""
        host = self.find_host(head.authority)
        return None if host is None else host.match(head, dice)

    def __repr__(self) -> str:
        routes = sum(len(host.routes) for host in self.hosts)
        return f"<RouteTable {self.name}: {len(self.hosts)} virtual hosts, {routes} routes>"


def without_port(authority: str) -> str:
    """An authority without its `:port`; brackets of an IPv6 address stay."""
    name, colon, port = authority.rpartition(":")
    return (
        name if colon and port.isdigit() and (not name.startswith("[") or name.endswith("]")) else authority
    )
