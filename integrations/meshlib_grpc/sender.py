"""What sends calls for threads: meshlib's sender, over gRPC's channels."""

import weakref
from typing import TYPE_CHECKING

from meshlib.dataplane import exchange, network
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ConfigError
from meshlib_grpc.blocking import Connections
from meshlib_grpc.options import Options

if TYPE_CHECKING:
    from meshlib_grpc.call import Call


class Sender(exchange.Sender):
    """Thread-safe."""

    def __init__(self, mesh: Mesh | exchange.FindMesh, options: Options) -> None:
        super().__init__(mesh)
        self._options = options
        self._calls: dict[int, weakref.ref[Call]] = {}
        """Those that go on for a while. Any thread takes one out at any time, in one step."""

    @property
    def closed(self) -> bool:
        """Whether no more calls are taken."""
        return self._closed

    def refuse(self) -> None:
        """ValueError: the channel is closed."""
        if self._closed:
            raise ValueError("Cannot invoke RPC on closed channel!")  # gRPC's words

    def close(self) -> None:
        """Ends the calls and the connections; the mesh stays."""
        super().close()
        with self._lock:
            going = self._calls.copy()
        for one in going.values():
            if (call := one()) is not None:
                call.end()
        made = self._connections
        if isinstance(made, Connections):
            made.end()

    def went_on(self, call: "Call") -> None:
        """The call has begun, and goes on for a while; it ends here if the channel was closed meanwhile."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._calls[id(call)] = weakref.ref(call)
        if closed:
            call.end()
        if call.done():
            self.has_ended(call)

    def has_ended(self, call: "Call") -> None:
        """It does no more."""
        self._calls.pop(id(call), None)

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
