"""Who serves in a test: for each service groups of endpoints of equal labels, each with its script.

Rules:

- A group without labels serves every subset that no other group of its service serves.
- Endpoints that the rules list themselves stay as they are; a group answers for those that have its labels.
  Only a group that no such endpoint belongs to is given endpoints: addresses that lead nowhere.
- A service without any group has one endpoint of nobody's, so that a call to it is found out.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshlib.control.graph.hosts import DOMAIN
from meshlib.control.registry import Endpoint, Port
from meshlib.testing.answers import Script
from meshlib.testing.calls import Call
from meshlib.xds.node import Locality

_END = f".svc.{DOMAIN}"


@dataclass(frozen=True)
class _Anyone(Endpoint):
    """An endpoint that carries whatever labels are asked for, but for those of others."""

    others: tuple[tuple[tuple[str, str], ...], ...] = ()

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it is one of those with these labels."""
        return not labels or not any(_carries(dict(other), labels) for other in self.others)


def _carries(own: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(own.get(key) == value for key, value in labels.items())


_NOBODY = _Anyone("198.18.0.0", 1)


class Upstream:
    """Endpoints of one service that answer by one script. Made by `ScriptedMesh.serve`."""

    def __init__(self, service: str, host: str, labels: Mapping[str, str]) -> None:
        self.service = service
        self.host = host
        self.labels = dict(labels)
        self.addresses: tuple[str, ...] = ()
        self.locality = Locality()
        self.weight = 1
        self.port: int | None = None
        self.calls: list[Call] = []
        self.script = Script()

    def answer(self, *answers: Any, **response: Any) -> None:
        """Other answers from now on, as of `ScriptedMesh.serve`."""
        self.script = Script(answers, **response)

    def endpoints(self, port: Port, others: Iterable["Upstream"]) -> Iterator[Endpoint]:
        """Behind a port of the service; `others` are its other groups."""
        number = port.target if isinstance(port.target, int) else port.number
        labels = tuple(sorted(self.labels.items()))
        for address in self.addresses:
            if self.labels:
                yield Endpoint(address, number, labels, self.locality, self.weight)
            else:
                taken = tuple(tuple(sorted(other.labels.items())) for other in others if other is not self)
                yield _Anyone(address, number, (), self.locality, self.weight, others=taken)

    def __repr__(self) -> str:
        labels = "".join(f" {key}={value}" for key, value in sorted(self.labels.items()))
        return f"<Upstream {self.service}{labels}: {len(self.addresses)} endpoints, {len(self.calls)} calls>"


class Upstreams:
    """All of a mesh, by the full host of their service."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._groups: dict[str, list[Upstream]] = {}
        self._listed: dict[tuple[str, tuple[str, int]], dict[str, str]] = {}
        """The labels of endpoints that the rules list, by host and address."""
        self._addresses = 0
        self._known: frozenset[str] = frozenset()
        """The full hosts of services that the rules list."""
        self._lock = threading.Lock()

    def full(self, name: str) -> str:
        """The full host of a service as a test names it."""
        lower = name.lower().removesuffix(".")
        if "." not in lower:
            return f"{lower}.{self.namespace}{_END}"
        if lower.count(".") == 1 and f"{lower}{_END}" in self._known:
            return f"{lower}{_END}"
        return f"{lower}.{DOMAIN}" if lower.endswith(".svc") else lower

    def know(self, hosts: Iterable[str]) -> None:
        """The rules list the services of these full hosts: `ratings.shop` may be one of them."""
        with self._lock:
            self._known = frozenset(hosts)
            self._groups = {self.full(host): groups for host, groups in self._groups.items()}

    def short(self, host: str) -> str:
        """The shortest name of a full host."""
        return host.removesuffix(f".{self.namespace}{_END}").removesuffix(_END)

    def put(self, name: str, labels: Mapping[str, str], count: int) -> Upstream:
        """The group of these labels, with that many endpoints."""
        host = self.full(name)
        with self._lock:
            groups = self._groups.setdefault(host, [])
            found = next((group for group in groups if group.labels == dict(labels)), None)
            if found is None:
                found = Upstream(name, host, labels)
                groups.append(found)
            while len(found.addresses) < count:
                self._addresses += 1
                address = f"198.18.{self._addresses >> 8}.{self._addresses & 255}"  # RFC 2544: leads nowhere
                found.addresses = (*found.addresses, address)
            found.addresses = found.addresses[:count]
            return found

    def of(self, host: str) -> list[Upstream]:
        """The groups of a full host."""
        return self._groups.get(host, [])

    def hosts(self) -> list[str]:
        """The full hosts that are served."""
        return list(self._groups)

    def names(self) -> list[str]:
        """What is served, as the test names it."""
        return [groups[0].service for groups in self._groups.values()]

    def ports(self, host: str) -> set[int]:
        """The ports that a test gave a service."""
        return {group.port for group in self.of(host) if group.port is not None}

    def endpoints(self, host: str, port: Port, listed: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        """Behind a port of a service for which the rules list `listed`."""
        groups = self.of(host)
        self._listed |= {(host, (one.address, one.port)): dict(one.labels) for one in listed}
        if not groups and not listed:
            return (_NOBODY,)
        made = [
            endpoint
            for group in groups
            if not (listed and any(endpoint.has(group.labels) for endpoint in listed))
            for endpoint in group.endpoints(port, groups)
        ]
        return (*listed, *made)

    def find(self, host: str, address: tuple[str, int]) -> tuple[Upstream | None, dict[str, str]]:
        """Who answers at an address of a service, and the labels of the endpoint there."""
        groups = self.of(host)
        for group in groups:
            if address[0] in group.addresses:
                return group, group.labels
        labels = self._listed.get((host, address), {})
        fitting = [group for group in groups if _carries(labels, group.labels)]
        return max(fitting, key=lambda group: len(group.labels), default=None), labels
