"""Host names in documents: short names, wildcards, and which of several hosts is the closest.

Rules (Istio):

- A name without a dot is a service of the document's own namespace; `*`, addresses and names with a
  dot stay as they are.
- `*` at the start stands for one character or more; the closest host is the exact one, else the
  longest wildcard.
- A client may call a service by its full name or, as Kubernetes' resolver allows it, by a shorter one;
  the full name may end with a dot, a shorter one may not.
"""

import ipaddress
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

DOMAIN = "cluster.local"


def expand(host: str, namespace: str, domain: str = DOMAIN) -> str:
    """The full name, lower case, of a host that a document of `namespace` names."""
    lower = host.lower()
    if not lower or lower.startswith("*") or "." in lower or ":" in lower:
        return lower
    return f"{lower}.{namespace}.svc.{domain}"


def is_wildcard(host: str) -> bool:
    """Whether the host stands for many."""
    return host.startswith("*")


def covers(pattern: str, host: str) -> bool:
    """Whether every name that `host` stands for is one of `pattern`'s."""
    if not is_wildcard(pattern):
        return pattern == host
    end = pattern[1:]
    if is_wildcard(host):
        return len(host) >= len(pattern) and host.endswith(end)
    return len(host) >= len(end) and host.endswith(end)


def overlap(one: str, other: str) -> bool:
    """Whether some name is meant by both."""
    return covers(one, other) or covers(other, one)


def closeness(host: str) -> tuple[bool, int, str]:
    """Sorts hosts, the closest first: exact ones, then the longer ones, then by alphabet."""
    return is_wildcard(host), -len(host), host


def full_names(host: str, namespace: str, domain: str = DOMAIN) -> Iterator[str]:
    """What a client in `namespace` may mean by `host`, the likeliest first. A dot at the end: it is full."""
    lower = host.lower().removesuffix(".")
    yield lower
    if host.endswith("."):
        return
    dots = lower.count(".")
    if dots == 0:
        yield f"{lower}.{namespace}.svc.{domain}"
    elif dots == 1:
        yield f"{lower}.svc.{domain}"
    if dots == 2 and lower.endswith(".svc"):
        yield f"{lower}.{domain}"


def spellings(
    host: str, service_namespace: str, client_namespace: str, domain: str = DOMAIN
) -> Iterator[str]:
    """Every spelling of a service's host that a client in `client_namespace` may use, the full one first."""
    yield host
    if not is_address(host):
        yield f"{host}."
    end = f".svc.{domain}"
    if is_wildcard(host) or not host.endswith(end):
        return
    short = host.removesuffix(end)
    if service_namespace == client_namespace:
        yield short.removesuffix(f".{service_namespace}")
    yield f"{short}.svc"
    yield short


def is_address(host: str) -> bool:
    """Whether it is an address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class HostIndex(Generic[T]):
    """Values by host; the closest is found without looking at all."""

    def __init__(self) -> None:
        self._exact: dict[str, T] = {}
        self._wild: dict[str, T] = {}
        self._lengths: list[int] = []

    def put(self, host: str, value: T) -> None:
        """The first value of a host stays."""
        if not is_wildcard(host):
            self._exact.setdefault(host, value)
        elif host not in self._wild:
            self._wild[host] = value
            if len(host) not in self._lengths:
                self._lengths = sorted((*self._lengths, len(host)), reverse=True)

    def exact(self, host: str) -> T | None:
        """The value of that very host."""
        return self._wild.get(host) if is_wildcard(host) else self._exact.get(host)

    def closest(self, host: str) -> T | None:
        """The value of the closest host that covers this one."""
        return next(self.matching(host), None)

    def matching(self, host: str) -> Iterator[T]:
        """The values of all hosts that cover this one, the closest first."""
        for _, value in self.covering(host):
            yield value

    def covering(self, host: str) -> Iterator[tuple[str, T]]:
        """All hosts that cover this one, with their values, the closest first."""
        wild = is_wildcard(host)
        if not wild and host in self._exact:
            yield host, self._exact[host]
        for length in self._lengths:
            if wild and length > len(host):
                continue
            if length - 1 <= len(host):
                pattern = "*" + host[len(host) - length + 1 :] if length > 1 else "*"
                if pattern in self._wild:
                    yield pattern, self._wild[pattern]

    def hosts(self) -> Iterator[tuple[str, T]]:
        """Every host and its value."""
        yield from self._exact.items()
        yield from self._wild.items()

    def wildcards(self) -> Iterator[tuple[str, T]]:
        """Every wildcard host and its value."""
        yield from self._wild.items()
