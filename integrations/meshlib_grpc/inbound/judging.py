"""Whether a call is served, decided before a byte of its messages is read by the application.

peer ─► head ─► the gate's policies ─► the method is the one that was judged ─► served
"""

import logging
from typing import Any

import meshlib
from meshlib.core.actions import Reply
from meshlib.core.inbound import Admitted
from meshlib.core.request import Peer, RequestHead
from meshlib.core.route.match import bare_path
from meshlib.dataplane.gate import Gate, Gates
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.telemetry.inbound import Inbound
from meshlib.errors import ConfigError
from meshlib_grpc.inbound.arrival import AuthorityUnknown, head_of, tellable
from meshlib_grpc.inbound.peers import Met, shown
from meshlib_grpc.inbound.refusal import Refusal, host_unknown, no_method, refusal
from meshlib_grpc.inbound.serving import Serving, authority_of

log = logging.getLogger(__name__)

PROTOCOL = "HTTP/2"


class Arrived:
    """One call that is not judged yet."""

    __slots__ = ("gate", "head", "method", "peer", "watched")

    def __init__(self, gate: Gate, peer: Peer | None, method: str, context: Any) -> None:
        """`peer` None: gRPC has to say who that is."""
        self.gate, self.method = gate, method
        self.peer = peer = peer or shown(context, gate)
        metadata, left = context.invocation_metadata(), context.time_remaining()
        head = head_of(method, authority_of(context), peer.tls, metadata, left)
        self.head: RequestHead = gate.identified(head)
        telemetry, self.watched = gate.mesh.telemetry, None
        if telemetry.wants(gate.port):
            self.watched = Inbound(telemetry, tellable(self.head), peer, gate.port, PROTOCOL)

    def judged(self, verdict: Admitted | Reply) -> Serving | Refusal:
        """What becomes of it."""
        if isinstance(verdict, Reply):
            return self.refused(verdict)
        if bare_path(verdict.head.path) != self.method:
            return self.refused(no_method())
        return Serving(self.gate, verdict, self.peer, self.watched)

    def refused(self, reply: Reply) -> Refusal:
        """It is not served."""
        found = refusal(self.head, reply)
        if self.watched is not None:
            self.watched.refused(found.reply)
        return found


class Judge:
    """Who stands before a server's handlers. Thread-safe."""

    def __init__(self, mesh: Mesh | None, port: int | None, met: Met | None) -> None:
        """`met`: who came through ports of ours, and nobody else is served; None: gRPC takes connections
        itself, at the workload's `port`. Without it the settings must name one port.
        """
        self._mesh = mesh
        self._port = port
        self._met = met
        self._gates = Gates(None, port, self._found)
        self._told = False

    def gate(self, context: Any) -> tuple[Gate, Peer | None] | None:
        """The gate at which a call stands, and who calls, if that is known before there is a policy.

        None: its connection did not come through a port of ours.
        """
        if self._met is None:
            return self._gates.at(self._only_port()), None
        peer = self._met.find(context.peer())
        return None if peer is None else (self._gates.at(peer.local[1]), peer)

    def unknown_host(self, error: AuthorityUnknown) -> Reply:
        """The answer where a policy asks for what is not known."""
        if not self._told:
            self._told = True
            log.warning("calls are refused: %s", error)
        return host_unknown()

    def _found(self) -> Mesh:
        return self._mesh or meshlib.default()

    def _only_port(self) -> int:
        if self._port is not None:
            return self._port
        ports = self._found().bootstrap.ports
        if len(ports) != 1:
            said = ", ".join(f"{name}={number}" for name, number in ports) or "nothing"
            raise ConfigError(f"port: gRPC does not say at which port it serves; give it (`ports` is {said})")
        self._port = ports[0][1]
        return self._port
