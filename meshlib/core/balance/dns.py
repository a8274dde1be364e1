"""Endpoints that a cluster lists by name, and what becomes of them when the names are known.

Rules (Envoy):

- STRICT_DNS: each address of a name is an endpoint of its own, with what is said of the name: weight, health,
  locality, metadata.
- LOGICAL_DNS: the name is one endpoint, whatever its addresses; a new connection goes to the first of them.
- A name that never had an address is no endpoint. An IP address stands for itself.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from enum import Enum

from meshlib.core.balance.endpoints import Endpoint, EndpointSet
from meshlib.values import dataclass


class Family(Enum):
    """Which addresses are asked for (Envoy's DnsLookupFamily)."""

    AUTO = "IPv6, else IPv4"
    V4_ONLY = "IPv4"
    V6_ONLY = "IPv6"
    V4_PREFERRED = "IPv4, else IPv6"
    ALL = "both"


Question = tuple[str, Family]
"""A host name, and which of its addresses."""


@dataclass(frozen=True, slots=True)
class Named:
    """The endpoints of a DNS cluster as they are written."""

    endpoints: EndpointSet
    logical: bool = False
    """Whether a name is one endpoint (LOGICAL_DNS)."""
    family: Family = Family.AUTO
    refresh: float = 5.0
    """Seconds after which a name is asked for again."""
    retry: float = 5.0
    """Seconds after which it is, if nobody answered."""
    questions: frozenset[Question] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        hosts = {one.host for group in self.endpoints.localities for one in group.endpoints}
        found = frozenset((host, self.family) for host in hosts if not is_address(host))
        object.__setattr__(self, "questions", found)

    def resolved(self, answers: Mapping[Question, tuple[str, ...]]) -> EndpointSet:
        """The endpoints there are, where each question has these addresses."""
        return EndpointSet(
            tuple(
                replace(
                    group,
                    endpoints=tuple(found for one in group.endpoints for found in self._of(one, answers)),
                )
                for group in self.endpoints.localities
            )
        )

    def _of(self, one: Endpoint, answers: Mapping[Question, tuple[str, ...]]) -> Iterator[Endpoint]:
        question = one.host, self.family
        if question not in self.questions:
            yield one
            return
        addresses = answers.get(question, ())
        if self.logical:
            if addresses:
                yield replace(one, at=(addresses[0], one.port))
            return
        for address in addresses:
            yield replace(one, host=address, hostname=one.hostname or one.host)


def is_address(host: str) -> bool:
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def named_address(authority: str, secured: bool) -> tuple[str, int]:
    """Where a request goes by its own host: the port is 443 where it is `secured` and names none, else 80."""
    host, colon, port = authority.rpartition(":")
    if not colon or not port.isdecimal() or (":" in host and not host.endswith("]")):
        host, port = authority, ""
    return host.removeprefix("[").removesuffix("]"), int(port) if port else 443 if secured else 80
