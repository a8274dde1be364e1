"""The gate of one served port: may this request in, who sends it, what does the application get to see.

Rules:

- As long as no policy is known, nothing is let in (`prepare` waits, and fails with the reason). A policy that was
  known stays in force when the control service is lost.
- Two thin drivers, for threads and for tasks, do what `core.inbound.arrive` says; it decides.
"""

import time
from collections.abc import Callable

from meshlib.core.actions import Reply
from meshlib.core.inbound import Admitted as Admitted
from meshlib.core.inbound import Arrival, Inbound, arrive
from meshlib.core.mtls import ServerTls
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane import context
from meshlib.dataplane.checks import AsyncChecks, Checks
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.tls import Contexts
from meshlib.xds.names import inbound_listener


class Gate:
    """One served port of this process. Thread-safe."""

    def __init__(self, mesh: Mesh, port: int, wall: Callable[[], float] = time.time) -> None:
        """Asks for nothing yet; `wall` gives seconds since 1970."""
        self.mesh = mesh
        self.port = port
        self._wall = wall
        self._name = inbound_listener(port)
        self._checks = Checks(mesh)
        self._achecks = AsyncChecks(mesh)
        self._forward = frozenset(name.lower().encode() for name in mesh.bootstrap.forward_headers)

    def __repr__(self) -> str:
        return f"<Gate of port {self.port}: {self.mesh.view.inbound.get(self._name) or 'no policy yet'}>"

    def prepare(self) -> None:
        """Waits until it is known what is asked of callers. ControlUnavailable, RefusedResource, Closed."""
        self.mesh.prepare_inbound(self.port)

    async def aprepare(self) -> None:
        """`prepare` for asyncio."""
        await self.mesh.aprepare_inbound(self.port)

    @property
    def inbound(self) -> Inbound:
        """The policy in force. ControlUnavailable: none is known."""
        found = self.mesh.view.inbound.get(self._name)
        return found if found is not None else self.mesh.prepare_inbound(self.port)

    @property
    def tls(self) -> ServerTls:
        """What is asked of connections now."""
        return self.inbound.tls

    @property
    def contexts(self) -> Contexts | None:
        """TLS by this workload's certificate; None: it has none."""
        return self.mesh.contexts

    @property
    def own(self) -> str:
        """This workload's `spiffe://…`; empty: it has no certificate."""
        certs = self.mesh.certs
        held = None if certs is None else certs.held
        return "" if held is None else held.principal

    def admit(self, head: RequestHead, peer: Peer) -> Admitted | Reply:
        """Whether a request may be served; blocks while an external authority is asked."""
        flow = self._arrive(head, peer)
        try:
            check = flow.send(None)
            while True:
                check = flow.send(self._checks.ask(check))
        except StopIteration as ended:
            return _verdict(ended)

    async def aadmit(self, head: RequestHead, peer: Peer) -> Admitted | Reply:
        """`admit` for asyncio."""
        flow = self._arrive(head, peer)
        try:
            check = flow.send(None)
            while True:
                check = flow.send(await self._achecks.ask(check))
        except StopIteration as ended:
            return _verdict(ended)

    def _arrive(self, head: RequestHead, peer: Peer) -> Arrival:
        return arrive(self.inbound, head, peer, self.own, self._wall(), self.mesh.view.version)

    def handed(self, admitted: Admitted) -> context.Handed:
        """What an admitted request hands on to the calls that are made for it."""
        return context.handed(admitted.head, admitted.caller, self._forward, self.mesh.clock)

    def principal(self, chain_pem: str) -> str:
        """Whose certificate a PEM chain is, the leaf first, that a foreign server took; empty: nobody's of ours."""
        from meshlib.identity.chain import BadCertificate, Purpose, check_peer, verify_chain
        from meshlib.identity.pem import to_der

        certs = self.mesh.certs
        held = None if certs is None else certs.held
        if held is None:
            return ""
        try:
            chain, now, caller = to_der(chain_pem), self._wall(), Purpose.CLIENT
            verify_chain(chain, held.roots_pem, now, purpose=caller)
            return str(check_peer(chain[:1], trust_domains=self.tls.trust_domains, now=now, purpose=caller))
        except (BadCertificate, ValueError, IndexError):
            return ""


def _verdict(ended: StopIteration) -> Admitted | Reply:
    found: Admitted | Reply = ended.value
    return found
