"""A node's workloads in the mesh: each has a certificate and is registered, both by the node.

Rules:

- First the certificate, then the registration, which says DRAINING until it is told that the workload serves:
  who is sent to a workload can reach it.
- One identity of the node's shows all that; the workloads' own are shown to their peers only.
- Where control is talked to in plain text there are no certificates, and nothing takes mutual TLS.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from meshlib.bootstrap import Bootstrap
from meshlib.dataplane.mesh import identity
from meshlib.dataplane.register import Registration
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds.names import TUNNEL_HTTP, TUNNEL_LABEL
from meshlib.xds.node import NODE_NAME

if TYPE_CHECKING:
    from meshlib.dataplane.certs import Certs
    from meshlib.dataplane.impersonated import Impersonated
    from meshlib.dataplane.tls import Held


class Workload(Protocol):
    """What is needed of `agent.workload.Workload`."""

    @property
    def name(self) -> str:
        """On its node."""

    @property
    def namespace(self) -> str:
        """Of the mesh."""

    @property
    def service_account(self) -> str:
        """Whose certificate it has."""

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """Its own."""

    @property
    def ports(self) -> tuple[tuple[str, int], ...]:
        """By name."""

    @property
    def address(self) -> str:
        """Where others reach it."""

    @property
    def netns(self) -> str:
        """The file of its network namespace, in which it is captured; empty: it is not."""

    @property
    def app_ports(self) -> tuple[tuple[int, int], ...]:
        """Where the application itself listens, if elsewhere."""

    @property
    def proxy_port(self) -> int:
        """Where it finds an HTTP proxy; 0: nowhere."""

    @property
    def locality(self) -> str:
        """`region/zone/subzone`."""

    @property
    def weight(self) -> int:
        """Its share of traffic."""


class Membership:
    """One workload's part in the mesh."""

    def __init__(
        self, registration: Registration, held: "Callable[[], Held | None]", left: Callable[[bool], None]
    ) -> None:
        """Use `Memberships.join`."""
        self._registration, self._held, self._left = registration, held, left

    def __repr__(self) -> str:
        return f"<Membership {self._registration!r}>"

    @property
    def held(self) -> "Held | None":
        """Its certificate in force; None: there is none without TLS."""
        return self._held()

    @property
    def joined(self) -> bool:
        """Whether the control service has taken it, on the stream that is open now."""
        return self._registration.joined

    def serve(self) -> None:
        """It takes calls from now on."""
        self._registration.serve()

    def drain(self) -> None:
        """Says that it leaves; waits until others have heard of it."""
        self._registration.drain()

    def part(self) -> None:
        """Says that it leaves, and does; its certificate stays until it is closed."""
        self._registration.close()

    def close(self, *, stays: bool = False) -> None:
        """Leaves; its certificate is forgotten with the last workload of its account. Twice is once.

        `stays`: it comes back, its node ends; its certificate is kept on disk.
        """
        self._registration.close()
        left, self._left = self._left, _nobody
        left(stays)


class Memberships:
    """Those of one node. Thread-safe; close it after its workloads."""

    def __init__(self, settings: Bootstrap, node: str) -> None:
        """`settings` are the node's own; starts nothing."""
        self._settings, self._node = settings, node
        self.own: Certs | None = identity(settings)
        """The node's own certificate; None: there is none without TLS."""
        self._others = None if self.own is None else _impersonated(settings, self.own)

    def join(self, workload: Workload) -> Membership:
        """It has a certificate, and is about to be registered. MeshError: not now, and why."""
        account = (workload.namespace, workload.service_account)
        others = self._others
        if others is not None:
            others.need(account)
        try:
            registration = Registration(
                replace(
                    self._settings,
                    namespace=workload.namespace,
                    service_account=workload.service_account,
                    labels=self._labels(workload),
                    ports=workload.ports,
                    address=workload.address,
                    locality=workload.locality or self._settings.locality,
                    weight=workload.weight,
                ),
                mutual_tls=others is not None,
                certs=self.own,
                place=self._place(workload),
                serving=False,
            )
        except BaseException:
            if others is not None:
                others.leave(account)
            raise
        if others is None:
            return Membership(registration, _nothing, _nobody)
        return Membership(
            registration, lambda: others.held(account), lambda stays: others.leave(account, stays=stays)
        )

    def held(self, of: SpiffeId) -> "Held | None":
        """The certificate of a workload that is here, whatever its trust domain; None: there is none."""
        return None if self._others is None else self._others.held((of.namespace, of.service_account))

    def close(self) -> None:
        """No certificate is renewed any more."""
        if self._others is not None:
            self._others.close()
        if self.own is not None:
            self.own.leave()

    def _labels(self, workload: Workload) -> tuple[tuple[str, str], ...]:
        tunnel = {TUNNEL_LABEL: TUNNEL_HTTP} if workload.netns and self._others is not None else {}
        return tuple(sorted({**tunnel, **dict(workload.labels)}.items()))

    def _place(self, workload: Workload) -> dict[str, Any]:
        said = {
            "UID": workload.name,
            "NETNS": workload.netns,
            "APP_PORTS": {str(port): own for port, own in workload.app_ports},
            "PROXY_PORT": workload.proxy_port,
        }
        return {NODE_NAME: self._node, **{name: value for name, value in said.items() if value}}


def _impersonated(settings: Bootstrap, own: "Certs") -> "Impersonated":
    from meshlib.dataplane.impersonated import Impersonated  # which loads cryptography

    own.use()
    return Impersonated(settings, own)


def _nothing() -> None:
    """There is nothing."""


def _nobody(_: bool) -> None:
    """Nobody leaves."""
