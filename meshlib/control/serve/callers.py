"""Who calls: by client certificate, else by bearer token, else nobody.

Rules:

- A certificate counts before a token. One that names nobody is not made good by a token.
- A caller may only say of itself what its identity says: a node whose namespace or account is another's is
  refused, and what it leaves out is filled in.
- An alias of the trust domain is another name of the same mesh: its identities are the mesh's own, and get
  certificates in the trust domain of now.
- A token for single use is good for a certificate and nothing else.
- A good token is never refused for the bad ones of a neighbour: checking one is cheap. Who fails too often
  on one connection loses it; an address with too many failures is told so and no longer logged.
- No token and no part of one is logged or repeated.
"""

import logging
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc.aio

from meshlib.control.ca.jwt import TokenRefused, header
from meshlib.control.ca.kubernetes import KeysUnavailable
from meshlib.control.ca.tokens import Proof
from meshlib.control.serve.credentials import Shown
from meshlib.control.serve.front import Peer
from meshlib.control.serve.rates import Allowance
from meshlib.errors import ControlError
from meshlib.identity.spiffe import SpiffeId

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
FAILURES_OF_CONNECTION = 20
FAILURES_OF_ADDRESS, FAILURES_PER_SECOND = 50, 5
MAX_BEARER = 14 * 1024
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called."""

    address: str
    """`host:port` of the other end."""
    identity: SpiffeId | None
    """None: plaintext is allowed and nobody is asked."""
    proof: Proof | None = None
    """The join token that says so, if one does."""
    ends: float | None = None
    """When the token ends that says so, in seconds since 1970; None: a certificate does."""
    shown: Shown | None = None
    """The certificate that says so."""


class Denied(ControlError):
    """A call that is refused; `code` is the name of a gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Tokens(Protocol):
    """What is needed of `control.ca.tokens.JoinTokens`."""

    name: str

    def verify(self, token: str, now: float) -> Proof:
        """TokenRefused: it proves nothing."""


class PodTokens(Protocol):
    """What is needed of `control.ca.kubernetes.KubernetesTokens`."""

    def verify(self, token: str, now: float) -> Coroutine[Any, Any, tuple[SpiffeId, float]]:
        """Who shows it, and until when it is taken. TokenRefused, KeysUnavailable: it proves nothing."""


class Callers:
    """Tells who calls. One event loop."""

    def __init__(
        self,
        who: Callable[[str], Peer | None],
        trust_domain: str,
        *,
        aliases: Callable[[], Collection[str]] = lambda: (),
        joined: Tokens | None = None,
        pods: PodTokens | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`who` knows the peer of a connection by gRPC's name; `wall` in seconds since 1970."""
        self._who = who
        self._trust_domain = trust_domain
        self._aliases = aliases
        self._joined = joined
        self._pods = pods
        self._wall = wall
        self._clock = clock
        self._failures = Allowance(FAILURES_OF_ADDRESS, FAILURES_PER_SECOND)

    async def of(self, context: Context) -> Caller:
        """The caller of a call. Denied: it is nobody, or can't be told now."""
        peer = self._who(context.peer())
        if peer is None:
            raise Denied("UNAUTHENTICATED", "this connection did not come through the control service's port")
        if peer.identity is not None:
            return Caller(peer.address, self.own(peer.identity), shown=peer.shown)
        if peer.refusal:
            raise self._failed(peer, f"the client certificate is refused: {peer.refusal}")
        try:
            caller = await self._by_token(peer, bearer(context.invocation_metadata() or ()))
        except TokenRefused as error:
            raise self._failed(peer, str(error)) from None
        except KeysUnavailable as error:
            raise Denied("UNAVAILABLE", str(error)) from None
        peer.prove(str(caller.identity))
        return caller

    async def _by_token(self, peer: Peer, token: str) -> Caller:
        now = self._wall()
        if self._joined is not None and (
            self._pods is None or header(token, MAX_BEARER).key == self._joined.name
        ):
            proof = self._joined.verify(token, now)
            identity = self.own(proof.identity)
            if identity.trust_domain != self._trust_domain:
                raise TokenRefused(f"the token is for a workload of another mesh than {self._trust_domain}")
            return Caller(peer.address, identity, proof, proof.ends)
        if self._pods is not None:
            identity, ends = await self._pods.verify(token, now)
            return Caller(peer.address, identity, ends=ends)
        raise TokenRefused("no tokens are taken here")

    def own(self, identity: SpiffeId) -> SpiffeId:
        """What an identity of an alias of the trust domain is called here."""
        if identity.trust_domain not in self._aliases():
            return identity
        return SpiffeId(self._trust_domain, identity.namespace, identity.service_account)

    def _failed(self, peer: Peer, why: str) -> Denied:
        peer.failures += 1
        if peer.failures == FAILURES_OF_CONNECTION:
            peer.hang_up()
        if not self._failures.take(peer.host, self._clock()):
            return Denied("RESOURCE_EXHAUSTED", f"too many failed attempts from {peer.host}; {why}")
        log.warning("%s is not let in: %s", peer.address, why)
        return Denied("UNAUTHENTICATED", why)


def bearer(metadata: Any) -> str:
    """The one bearer token of a call's metadata, pairs of texts. TokenRefused: there is none, or several."""
    found = [value for name, value in metadata if name == "authorization"]
    if not found:
        raise TokenRefused("there is neither a client certificate nor a token; see `meshlib ca token`")
    if len(found) > 1 or not isinstance(found[0], str) or not found[0].lower().startswith(_BEARER):
        raise TokenRefused("one authorization header is needed: Bearer and a token")
    return str(found[0][len(_BEARER) :]).strip()


def standing(caller: Caller) -> Caller:
    """The caller, unless it is known by a token that is good for a certificate only. Denied: it is."""
    if caller.proof is not None and caller.proof.once:
        raise Denied(
            "PERMISSION_DENIED", "a token for single use is good for a certificate only; come back with that"
        )
    return caller


def claim(identity: SpiffeId, node: Any) -> None:
    """Checks what a Node message says of whom it is about, and completes it. Denied: it is another's."""
    wanted = {"NAMESPACE": identity.namespace, "SERVICE_ACCOUNT": identity.service_account}
    for name, right in wanted.items():
        found = said(node.metadata, name)
        if not found:
            node.metadata[name] = right
        elif found != right:
            raise Denied("PERMISSION_DENIED", f"the node says {name} {found[:80]!r}, but it is {identity}")
    parts = node.id.split("~")  # Istio's form: sidecar~address~pod.namespace~domain
    if len(parts) == 4 and "." in parts[2] and (found := parts[2].rpartition(".")[2]) != identity.namespace:
        raise Denied(
            "PERMISSION_DENIED", f"the node's id is of namespace {found[:80]!r}, but it is {identity}"
        )


def said(metadata: Any, name: str) -> str:
    """A text in metadata; something that is no text is not empty."""
    if name not in metadata.fields:
        return ""
    value = metadata.fields[name]
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return str(value.string_value)
    return "" if kind in (None, "null_value") else str(value).strip()


def operator(caller: Caller, root_namespace: str) -> None:
    """Denied: the caller is no operator, which is whoever has an identity of the root namespace."""
    if caller.identity is not None and caller.identity.namespace != root_namespace:
        raise Denied(
            "PERMISSION_DENIED",
            f"{caller.identity} is no operator; an identity of namespace {root_namespace} is needed, "
            "such as `meshlib ca token --operator` gives",
        )
