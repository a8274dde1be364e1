"""What sends calls for threads: meshlib's sender, over gRPC's channels."""

from meshlib.dataplane import exchange, network
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ConfigError
from meshlib_grpc.blocking import Connections
from meshlib_grpc.options import Options


class Sender(exchange.Sender):
    """Thread-safe."""

    def __init__(self, mesh: Mesh | exchange.FindMesh, options: Options) -> None:
        super().__init__(mesh)
        self._options = options

    def channels(self) -> Connections:
        """Those of this process."""
        return self.connections()  # type: ignore[return-value]  # as made below

    def _connect(self) -> network.Connections:
        mesh = self.mesh
        refuse_network(mesh.network)
        most_idle = mesh.bootstrap.idle_connections
        made = Connections(mesh.clock, lambda: mesh.view, self._contexts, self._options, most_idle)
        mesh.told_to(made)
        if self._closed:
            made.close()
        return made


def refuse_network(found: network.Network | None) -> None:
    """ConfigError: calls of gRPC are not sent over a network that a mesh brings."""
    if found is not None:
        raise ConfigError("this mesh has a network of its own, over which calls of gRPC can't be sent")
