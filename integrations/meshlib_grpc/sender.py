"""What sends calls for threads: meshlib's sender, over gRPC's channels."""

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.request import Failed
from meshlib.dataplane import exchange, network
from meshlib.dataplane.hedge_blocking import Tries
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.telemetry.outbound import introduced
from meshlib.errors import ConfigError
from meshlib_grpc.blocking import Connections
from meshlib_grpc.onebyone import one_by_one
from meshlib_grpc.options import Options
from meshlib_grpc.unary import Unary, Wishes


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
        made = Connections(mesh.clock, lambda: mesh.view, self._contexts, self._options)
        if self._closed:
            made.close()
        return made


def refuse_network(found: network.Network | None) -> None:
    """ConfigError: calls of gRPC are not sent over a network that a mesh brings."""
    if found is not None:
        raise ConfigError("this mesh has a network of its own, over which calls of gRPC can't be sent")


class UnaryHands:
    """What a call with one request and one response acts with."""

    __slots__ = ("_message", "_request", "_sender", "_wishes", "last")

    def __init__(self, sender: Sender, request: exchange.Request, message: bytes, wishes: Wishes) -> None:
        self._sender = sender
        self._request = request
        self._message = message
        self._wishes = wishes
        self.last: Unary | None = None
        """What came last."""

    def send(self, attempt: Attempt) -> Unary | Failed:
        """One try."""
        sender = self._sender
        if attempt.tls is not None:
            attempt = introduced(attempt, attempt.tls, sender.mesh.telemetry)
        made = sender.channels().unary(attempt, self._message, self._wishes)
        if not isinstance(made, Failed):
            self.last = made
        return made

    def several(self) -> Tries:
        """One after the other."""
        return one_by_one(self.send, self._sender.threads)

    def mirror(self, mirror: Mirror) -> None:
        """A copy, in the background."""
        self._sender.mirror(mirror, self._request)

    def sleep(self, seconds: float) -> None:
        """Waits."""
        (self._sender.mesh.network or network.SOCKETS).sleep(seconds)
