"""Addresses for services that have none of their own, so that a captured connection tells whom it is for.

Rules (Istio's auto-allocation):

- They are of 240.240.0.0/16, which is routed nowhere. Only flavour `node` has them: what calls by name
  needs none.
- A host has the address that its name hashes to; of two with one hash the later by name has the next that
  is free. So a host keeps its address, whatever else comes and goes, but where two collide.
- A host with * has none: nobody can look it up.
"""

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping

from meshlib.control.graph.hosts import is_wildcard
from meshlib.control.registry import Service

_FIRST = int(ipaddress.IPv4Address("240.240.0.0"))
_SIZE = 1 << 16


def own_addresses(service: Service) -> tuple[str, ...]:
    """The IPv4 addresses that a service has by itself."""
    found = []
    for address in service.addresses:
        try:
            found.append(str(ipaddress.IPv4Address(address)))
        except ValueError:
            continue
    return tuple(found)


def allocated(services: Mapping[str, Iterable[Service]]) -> Mapping[str, str]:
    """An address for each host that one of its services has none for."""
    taken: dict[int, str] = {}
    for host in sorted(services):
        if is_wildcard(host) or all(own_addresses(service) for service in services[host]):
            continue
        place = int.from_bytes(hashlib.sha256(host.encode()).digest()[:4]) % (_SIZE - 2)
        while place in taken and len(taken) < _SIZE - 2:
            place = (place + 1) % (_SIZE - 2)
        taken.setdefault(place, host)
    return {host: str(ipaddress.IPv4Address(_FIRST + 1 + place)) for place, host in taken.items()}
