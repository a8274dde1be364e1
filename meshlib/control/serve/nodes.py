"""What a caller may say of a node, and a node of its workloads.

A node runs one Envoy for the workloads of a machine. It asks for their certificates (`ImpersonatedIdentity`,
as Istio's ztunnel), registers them, and follows the configuration of all of them. Rules:

- A caller is a node by its identity: namespace `meshlib-node`, the account is the node's name. An operator
  has to know the node (`meshlib ca node`); of one that is not known nothing is taken, nor is it renewed.
- A node speaks for the workloads that the operator named, by its own name, and for nobody else; never for a
  node or an operator.
- Nobody else speaks of nodes: no registration behind one, no configuration of one.
- A node takes part in nothing by itself: it registers its workloads, and follows as a node's Envoy.
- What is taken back ends the streams that rested on it.
"""

from collections.abc import Callable
from typing import Any, Protocol

from meshlib.control.ca.request import DEFAULT_TTL_S
from meshlib.control.serve.callers import Caller, Denied, claim, said, standing
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds.names import NODE_NAMESPACE
from meshlib.xds.node import NODE_NAME, Flavour

IMPERSONATED = "ImpersonatedIdentity"
"""Metadata of a certificate request, Istio's."""
LONGEST_LIFE_S = DEFAULT_TTL_S
"""Of a certificate for a workload of a node: what is taken back from the node ends within it."""


class Permissions(Protocol):
    """What is needed of `control.ca.nodes.Permissions`."""

    @property
    def revision(self) -> int:
        """Another number whenever other things may be allowed."""

    def known(self, node: str) -> bool:
        """Whether there is a node of that name."""

    def may(self, node: str, workload: SpiffeId) -> bool:
        """Whether that node may speak for that workload."""


class NoNodes:
    """Where there are none."""

    revision = 0

    def known(self, node: str) -> bool:
        """No."""
        return False

    def may(self, node: str, workload: SpiffeId) -> bool:
        """No."""
        return False


class Nodes:
    """Of one control service. Each question raises Denied, if the answer is no."""

    def __init__(
        self,
        permissions: Permissions,
        own: Callable[[SpiffeId], SpiffeId],
        root_namespace: Callable[[], str],
    ) -> None:
        """`own` knows an identity of an alias of the trust domain by its name here."""
        self._permissions = permissions
        self._own = own
        self._root_namespace = root_namespace
        self._seen = permissions.revision

    def changed(self) -> bool:
        """Whether other things may be allowed than when this was asked before."""
        before, self._seen = self._seen, self._permissions.revision
        return self._seen != before

    def certified(self, caller: Caller, request: Any) -> SpiffeId:
        """Whom a certificate is for."""
        own = _known_by(caller)
        if is_node(own):
            self.known(own)
        if IMPERSONATED not in request.metadata.fields:
            return own
        if not is_node(own):
            raise Denied(
                "PERMISSION_DENIED", f"certificates are made out to the caller only; {own} is no node"
            )
        standing(caller)
        try:
            workload = self._own(SpiffeId.parse(said(request.metadata, IMPERSONATED)))
        except ValueError as error:
            raise Denied("INVALID_ARGUMENT", f"{IMPERSONATED}: {error}") from None
        self.may(own, workload)
        if request.validity_duration > LONGEST_LIFE_S:
            raise Denied(
                "INVALID_ARGUMENT",
                f"the life asked for is {request.validity_duration} seconds; for the workload of a node at "
                f"most {LONGEST_LIFE_S} are given",
            )
        return workload

    def registers(self, caller: Caller, node: Any) -> Callable[[], None]:
        """Checks what the Node message of a registration says, and completes it; a later call of what is
        given tells whether that still holds.
        """
        own = caller.identity
        if own is None:
            return _always
        if not is_node(own):
            if NODE_NAME in node.metadata.fields:  # even an empty one: it says that there is a node
                raise Denied("PERMISSION_DENIED", f"{NODE_NAME}: {own} is no node, it registers itself only")
            claim(own, node)
            return _always
        self._named(own, node)
        namespace, account = (said(node.metadata, key) for key in ("NAMESPACE", "SERVICE_ACCOUNT"))
        try:
            workload = SpiffeId.of(own.trust_domain, namespace, account)
        except ValueError as error:
            raise Denied(
                "INVALID_ARGUMENT", f"a node says of each workload NAMESPACE and SERVICE_ACCOUNT; {error}"
            ) from None
        self.may(own, workload)
        claim(workload, node)
        return lambda: self.may(own, workload)

    def follows(self, caller: Caller, node: Any) -> Callable[[], None]:
        """The same of who follows configuration."""
        own = caller.identity
        if own is None:
            return _always
        claim(own, node)
        if said(node.metadata, "GENERATOR") != Flavour.NODE.value:
            if is_node(own):
                raise Denied("PERMISSION_DENIED", f"{own} follows as a node's Envoy and as nothing else")
            return _always
        if not is_node(own):
            raise Denied(
                "PERMISSION_DENIED",
                f"{own} is no node; what a node's Envoy is sent, only the node is sent (`meshlib ca node`)",
            )
        self._named(own, node)
        self.known(own)
        return lambda: self.known(own)

    def known(self, node: SpiffeId) -> None:
        """Denied: no operator knows that node."""
        if not self._permissions.known(node.service_account):
            raise Denied(
                "PERMISSION_DENIED",
                f"the node {node.service_account} is not known; `meshlib ca node` says for which workloads a "
                "node may speak",
            )

    def may(self, node: SpiffeId, workload: SpiffeId) -> None:
        """Denied: that node may not speak for that workload."""
        self.known(node)
        name = node.service_account
        if workload.namespace == NODE_NAMESPACE:
            raise Denied("PERMISSION_DENIED", f"the node {name} may not speak for {workload}: it is a node")
        if workload.namespace == self._root_namespace():
            raise Denied(
                "PERMISSION_DENIED", f"the node {name} may not speak for {workload}: it is an operator"
            )
        if workload.trust_domain != node.trust_domain:
            raise Denied("PERMISSION_DENIED", f"{workload} is of another mesh than {node.trust_domain}")
        if not self._permissions.may(name, workload):
            raise Denied(
                "PERMISSION_DENIED",
                f"the node {name} may not speak for {workload}; `meshlib ca node` says for whom",
            )

    def _named(self, own: SpiffeId, node: Any) -> None:
        """Its own name, which may be left out."""
        name = said(node.metadata, NODE_NAME)
        if not name:
            node.metadata[NODE_NAME] = own.service_account
        elif name != own.service_account:
            raise Denied("PERMISSION_DENIED", f"the node says {NODE_NAME} {name[:80]!r}, but it is {own}")


def is_node(identity: SpiffeId | None) -> bool:
    """Whether that is the identity of a node."""
    return identity is not None and identity.namespace == NODE_NAMESPACE


def _known_by(caller: Caller) -> SpiffeId:
    if caller.identity is None:
        raise Denied("UNAUTHENTICATED", "nobody is known without TLS")
    return caller.identity


def _always() -> None:
    """Holds for ever."""
