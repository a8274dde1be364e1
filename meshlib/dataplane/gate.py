"""The gate of one port that this process serves: what is asked of its callers, and who is let in.

Two drivers, for threads and for tasks, run `core.inbound.arrive`; there is no other twin.

Rules:

- Nobody is let in before the policy of the port is known: `prepare` waits for it, and fails as a first
  call does. One that was known stays in force while the control service is lost.
- A request is decided by the policy of the moment in which it arrives.
- The body is read only for an authority that wants it, by who serves the request and gave a `read`.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from meshlib.core.actions import Reply
from meshlib.core.authz.body import AsyncReading, Reading, Shown, Unread
from meshlib.core.authz.external import Check
from meshlib.core.authz.opinion import Opinion
from meshlib.core.inbound import Admitted, Arrival, Inbound, arrive
from meshlib.core.mtls import ServerTls
from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane import context
from meshlib.dataplane.checks import AsyncChecks, Checks
from meshlib.dataplane.context import Attachable, Handed
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.tls import Contexts
from meshlib.errors import ConfigError
from meshlib.xds.names import inbound_listener


class Asking(Protocol):
    """Asks an external authority, on a thread."""

    def __call__(self, check: Check) -> Opinion:
        """Its opinion; NoAnswer if it has none."""
        ...


class AsyncAsking(Protocol):
    """Asks an external authority, in a task."""

    def __call__(self, check: Check) -> Awaitable[Opinion]:
        """Its opinion; NoAnswer if it has none."""
        ...


class Gate:
    """One served port. Thread-safe."""

    def __init__(
        self,
        mesh: Mesh,
        port: int,
        *,
        ask: Asking | None = None,
        aask: AsyncAsking | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`port` is the workload's own. `ask`, `aask` None: through the mesh."""
        self.mesh = mesh
        self.port = port
        self._name = inbound_listener(port)
        self._ask = ask or Checks(mesh)
        self._aask = aask or AsyncChecks(mesh)
        self._wall = wall
        self._forward = frozenset(name.encode() for name in mesh.bootstrap.forward_headers)

    def __repr__(self) -> str:
        known = self.mesh.view.inbound.get(self._name)
        return f"<Gate of port {self.port}: {known.tls.mode.name if known else 'no policy yet'}>"

    def prepare(self) -> Inbound:
        """Waits until the policy is known, at once if it is. ControlUnavailable, RefusedResource, Closed."""
        return self.mesh.prepare_inbound(self.port)

    def aprepare(self) -> Awaitable[Inbound]:
        """`prepare` for asyncio."""
        return self.mesh.aprepare_inbound(self.port)

    @property
    def policy(self) -> Inbound:
        """The policy now. LookupError: it is not known."""
        return self.mesh.view.inbound[self._name]

    @property
    def tls(self) -> ServerTls:
        """What is asked of connections now."""
        return self.policy.tls

    @property
    def contexts(self) -> Contexts | None:
        """The workload's certificate; None: it has none."""
        return self.mesh.contexts

    def principal(self, chain_pem: str) -> str:
        """The `spiffe://…` of a chain that another server took; empty: the mesh does not vouch for it."""
        contexts = self.contexts
        return "" if contexts is None else contexts.vouched(self.tls, chain_pem)

    def identified(self, head: RequestHead) -> RequestHead:
        """The request with an x-request-id: its own, or a new one, as Envoy gives it."""
        if b"x-request-id" in head.index:
            return head
        return head.plus(((b"x-request-id", self.mesh.ledger.request_id(self.mesh.dice)),))

    def admit(self, head: RequestHead, peer: Peer, read: Reading | None = None) -> Admitted | Reply:
        """Whether a request may be served, and by whom it was sent; or what to answer instead.

        `read` None: its body can't be read, so where an authority wants it, nobody gets in.
        """
        arrival = self._arrive(head, peer)
        try:
            check = next(arrival)
            while True:
                wanted = check.filter.body
                found = None if wanted is None else read(wanted) if read else Unread.NOBODY_READS
                check = arrival.send(
                    found if isinstance(found, Unread) else self._ask(_with_body(check, found))
                )
        except StopIteration as end:
            admitted: Admitted | Reply = end.value
            return admitted

    async def aadmit(
        self, head: RequestHead, peer: Peer, read: AsyncReading | None = None
    ) -> Admitted | Reply:
        """`admit` for asyncio."""
        arrival = self._arrive(head, peer)
        try:
            check = next(arrival)
            while True:
                wanted = check.filter.body
                found = None if wanted is None else await read(wanted) if read else Unread.NOBODY_READS
                check = arrival.send(
                    found if isinstance(found, Unread) else await self._aask(_with_body(check, found))
                )
        except StopIteration as end:
            admitted: Admitted | Reply = end.value
            return admitted

    def handed(self, admitted: Admitted, watched: Attachable | None = None) -> Handed:
        """What the request hands on to the calls that are made for it; `watched`: who has its span."""
        return context.handed(admitted.head, admitted.caller, self._forward, within=watched)

    def _arrive(self, head: RequestHead, peer: Peer) -> Arrival:
        certs = self.mesh.certs
        own = certs.held.principal if certs is not None and certs.held is not None else ""
        return arrive(self.policy, head, peer, own, self._wall())


def _with_body(check: Check, body: Shown | None) -> Check:
    return check if body is None else Check(check.filter, check.question, body)


class Gates:
    """One gate, or one for each port at which requests arrive: what a middleware stands at."""

    def __init__(self, gate: Gate | None, port: int | None, mesh: Callable[[], Mesh]) -> None:
        """`gate` None: of `mesh()` at `port`; that None: the port that the server says."""
        self._gate = gate
        self._port = port
        self._mesh = mesh
        self._gates: dict[int, Gate] = {}

    def at(self, port: int) -> Gate:
        """The gate of a request that arrived at `port`. ConfigError: it is not known, and was not given."""
        if self._gate is not None:
            return self._gate
        port = self._port or port
        if not port:
            raise ConfigError("port: the server does not say at which port it serves; give it")
        found = self._gates.get(port)
        if found is None:
            mesh = self._mesh()
            mesh.used_by(self)
            found = self._gates.setdefault(port, Gate(mesh, port))
        return found

    def mesh_closed(self) -> None:
        """The next request finds a mesh again."""
        self._gates.clear()
