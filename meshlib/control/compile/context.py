"""What is compiled for whom: the client's view of the graph, and the listener's port.

What a compilation looks up is noted, so that its result can be kept for as long as the same look-ups
give the same answers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from meshlib.control.graph.destinationrules import DestinationRule
from meshlib.control.graph.scope import Scope
from meshlib.control.graph.virtualservices import MESH
from meshlib.control.istio.gateway import gateway_key
from meshlib.control.registry import Service
from meshlib.xds.node import Client, Flavour

Read = tuple[str, str]
"""`service` or `rule`, and a full host."""


def answer(scope: Scope, read: Read) -> object:
    """What a look-up gives, as something that compares."""
    kind, host = read
    found = scope.service(host) if kind == "service" else scope.rule(host)
    return found.fingerprint if found is not None else None


@dataclass(frozen=True, slots=True)
class Context:
    """One compilation of routes: `port` is that of the listener, that is of the service called."""

    scope: Scope
    client: Client
    port: int
    reads: dict[Read, object] = field(default_factory=dict)
    """The look-ups so far, with their answers."""
    gateway: tuple[str, str] | None = None
    """Namespace and name of the Gateway whose routes they are; None: those of the mesh."""

    @property
    def grpc(self) -> bool:
        """Whether the client is gRPC's own, which refuses or reads some fields in its own way."""
        return self.client.flavour is Flavour.GRPC

    def bound(self, gateways: Iterable[str], namespace: str) -> bool:
        """Whether what is for these gateways, as a document of `namespace` names them, is for this one."""
        if self.gateway is None:
            return MESH in gateways
        return any(name != MESH and gateway_key(name, namespace) == self.gateway for name in gateways)

    def service(self, host: str) -> Service | None:
        """The service of a full host."""
        found = self.scope.service(host)
        self.reads["service", host] = found.fingerprint if found else None
        return found

    def rule(self, host: str) -> DestinationRule | None:
        """The DestinationRule of a full host."""
        found = self.scope.rule(host)
        self.reads["rule", host] = found.fingerprint if found else None
        return found

    def still_true(self, reads: dict[Read, object]) -> bool:
        """Whether look-ups that were noted earlier still give the same answers."""
        return all(answer(self.scope, read) == then for read, then in reads.items())
