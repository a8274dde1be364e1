"""What one client sees: services, their VirtualServices and DestinationRules, and the policy for the rest.

Everything is looked up by host; nothing here walks over all services but `services()`.

Rules (Istio):

- Of several services with one host the client's own namespace's is taken, else a Service, else the
  oldest.
- A destination of a visible VirtualService is seen even if the Sidecar does not name it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshlib.control.graph.destinationrules import DestinationRule
from meshlib.control.graph.hosts import closeness, covers, expand, full_names, is_wildcard
from meshlib.control.graph.sidecars import at_port, egress_of
from meshlib.control.graph.virtualservices import VirtualService
from meshlib.control.graph.visibility import exported_to, visible
from meshlib.control.istio.document import AnyDocument
from meshlib.control.istio.sidecar import OutboundTrafficMode, OutboundTrafficPolicy
from meshlib.control.istio.virtualservice import Destination
from meshlib.control.registry import Service

if TYPE_CHECKING:
    from meshlib.control.graph.graph import Graph


HTTP_PORT = 80
"""The port of a host without one, and the only one at which a VirtualService needs no service (Istio)."""


@dataclass(frozen=True, slots=True)
class Called:
    """What a client means by a host: a service, or the host of a VirtualService alone, or neither."""

    host: str
    service: Service | None = None
    virtual: VirtualService | None = None


class Scope:
    """The graph as one client sees it."""

    def __init__(
        self, graph: "Graph", namespace: str, labels: Mapping[str, str], sidecar: AnyDocument | None
    ):
        self.graph = graph
        self.namespace = namespace
        self.labels = labels
        self.sidecar = sidecar
        self._egress = egress_of(sidecar, namespace)
        self._virtual = graph.virtual_services.seen_from(namespace)
        self._connecting = graph.virtual_services.connecting_from(namespace)
        self._imported: frozenset[str] | None = None

    @property
    def domain(self) -> str:
        """The domain of Kubernetes' services."""
        return self.graph.domain

    @property
    def outbound(self) -> OutboundTrafficMode:
        """What becomes of requests to hosts that are not known."""
        return self._outbound.mode

    @property
    def egress_proxy(self) -> Destination | None:
        """Through whom requests and connections to hosts that are not known go; None: they go themselves."""
        policy = self._outbound
        return policy.egress_proxy if policy.mode is OutboundTrafficMode.ALLOW_ANY else None

    @property
    def _outbound(self) -> OutboundTrafficPolicy:
        policy = self.sidecar.spec.outbound_traffic_policy if self.sidecar else None
        return policy or self.graph.mesh.outbound_traffic_policy

    def service(self, host: str, port: int = 0) -> Service | None:
        """The service of exactly that full host, as far as it is seen; `port` 0: at any."""
        best: Service | None = None
        for service in self.graph.registry.services.get(host, ()):
            if not self._sees(service, port):
                continue
            if service.namespace == self.namespace:
                return service
            best = best or service
        return best

    def called(self, host: str, port: int) -> Called:
        """What the client means by `host` at `port`: the closest of what is known there."""
        found = next(self.meanings(host, port), None)
        return found or Called(host.lower().removesuffix("."))

    def meanings(self, host: str, port: int) -> Iterator[Called]:
        """All that the client may mean by `host` at `port`, the closest first."""
        names = list(full_names(host, self.namespace, self.domain))
        for name in names:
            if found := self._serving(name, port):
                yield Called(name, found, self.virtual(name))
        for name in self.graph.addresses.get(names[0], ()):
            if found := self._serving(name, port):
                yield Called(name, found, self.virtual(name))
        for name in self.graph.around(names[0]):
            found = self._serving(name, port)
            # A request has a name, by which it is known.
            if found is not None and (of := found.port(port)) is not None and not of.protocol.routed:
                yield Called(name, found, self.virtual(name))
        # A host that a VirtualService alone knows is meant by just that name (Istio).
        dotted = host.endswith(".")
        if port == HTTP_PORT and (not dotted or names[0].endswith(f".svc.{self.domain}")):
            for name in names:
                virtual = self._virtual.exact(name)
                if virtual is not None and self._sees_virtual(virtual, name) and not self.service(name):
                    yield Called(name, None, virtual)
        wide = [*self._endpoint_of(names[0], port), *self._covering(names[0], port, services_only=dotted)]
        for _, called in sorted(wide, key=lambda entry: closeness(entry[0])):
            yield called

    def means_services(self, host: str) -> bool:
        """Whether the host of a VirtualService means services that are seen, at whatever port."""
        if not is_wildcard(host):
            return self.service(host) is not None
        return any(covers(host, service.host) for service in self.services())

    def _serving(self, host: str, port: int) -> Service | None:
        """The service of exactly that full host, if it is seen at that port."""
        found = self.service(host, port)
        return found if found is not None and found.port(port) is not None else None

    def _covering(self, host: str, port: int, *, services_only: bool) -> Iterator[tuple[str, Called]]:
        """Wildcard hosts that cover `host`, and what they mean."""
        for pattern in self.graph.wildcard_services.matching(host):
            if found := self._serving(pattern, port):
                yield pattern, Called(pattern, found, self.virtual(pattern))
        if port != HTTP_PORT or services_only:
            return
        for pattern, virtual in self._virtual.covering(host):
            seen = is_wildcard(pattern) and self._sees_virtual(virtual, pattern)
            if seen and not self.means_services(pattern):
                yield pattern, Called(host, None, virtual)

    def _endpoint_of(self, host: str, port: int) -> Iterator[tuple[str, Called]]:
        """The headless services of Kubernetes of which `host` names one endpoint, by the end of `host`."""
        rest = host.partition(".")[2]
        while rest:
            for name in full_names(rest, self.namespace, self.domain):
                found = self._serving(name, port)
                if found is not None and found.kubernetes and found.headless:
                    yield f"*.{rest}", Called(name, found, self.virtual(name))
            rest = rest.partition(".")[2]

    def virtual(self, host: str) -> VirtualService | None:
        """The VirtualService for a full host: of the closest host that is seen."""
        for found in self._virtual.matching(host):
            if self._sees_virtual(found, host):
                return found
        return None

    def connecting(self, host: str) -> VirtualService | None:
        """The VirtualService with rules of connections for a full host: of the closest host that is seen."""
        for found in self._connecting.matching(host):
            if self._sees_virtual(found, host):
                return found
        return None

    def rule(self, host: str, owner: str | None = None) -> DestinationRule | None:
        """The DestinationRule for a full host."""
        if owner is None:
            service = self.service(host)
            owner = service.namespace if service else self.namespace
        return self.graph.destination_rules.find(host, owner, self.namespace, self.labels)

    def services(self) -> Iterator[Service]:
        """Every service that is seen, each host once, by host."""
        for host in self.graph.hosts:
            if found := self.service(host):
                yield found

    def sees_port(self, service: Service, port: int) -> bool:
        """Whether the service's port is seen."""
        return self._sees(service, port)

    def virtual_hosts(self) -> Iterator[tuple[str, VirtualService]]:
        """Every host of a VirtualService that is seen."""
        for host, virtual in self._virtual.hosts():
            if self._sees_virtual(virtual, host):
                yield host, virtual

    def _sees(self, service: Service, port: int) -> bool:
        default = self.graph.mesh.default_service_export_to
        if not visible(exported_to(service.export_to, default), service.namespace, self.namespace):
            return False
        if self._egress is None:
            return True
        listeners = at_port(self._egress, port)
        if any(listener.sees(service.namespace, service.host) for listener in listeners):
            return True
        return service.host in self._destinations()

    def _sees_virtual(self, virtual: VirtualService, host: str) -> bool:
        if self._egress is None:
            return True
        namespace = virtual.document.namespace
        return any(listener.touches(namespace, host) for listener in self._egress)

    def _destinations(self) -> frozenset[str]:
        """The hosts that visible VirtualServices send to."""
        if self._imported is None:
            found: set[str] = set()
            if self.egress_proxy is not None:
                found.add(expand(self.egress_proxy.host, self.namespace, self.domain))
            for _, virtual in self.virtual_hosts():
                for rule in virtual.rules:
                    named = [split.destination for split in rule.route.route]
                    named += [rule.route.mirror, *(mirror.destination for mirror in rule.route.mirrors)]
                    found.update(
                        expand(to.host, rule.document.namespace, self.domain)
                        for to in named
                        if to is not None
                    )
            for host, virtual in self._connecting.hosts():
                if self._sees_virtual(virtual, host):
                    spaces = virtual.document.namespace
                    found.update(
                        expand(split.destination.host, spaces, self.domain)
                        for split in virtual.connections
                        if split.destination is not None
                    )
            self._imported = frozenset(found)
        return self._imported
