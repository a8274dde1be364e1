"""What is compiled for whom: the client's view of the graph, and the listener's port."""

from dataclasses import dataclass

from meshlib.control.graph.scope import Scope
from meshlib.xds.node import Client, Flavour


@dataclass(frozen=True, slots=True)
class Context:
    """One compilation of routes: `port` is that of the listener, that is of the service called."""

    scope: Scope
    client: Client
    port: int

    @property
    def grpc(self) -> bool:
        """Whether the client is gRPC's own, which refuses or reads some fields in its own way."""
        return self.client.flavour is Flavour.GRPC
