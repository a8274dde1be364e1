"""Certificates for workloads: Istio's `istio.v1.auth.IstioCertificateService`, and the roots for everyone.

Rules:

- Who the certificate is for is said by who calls; of the request only its key counts.
- Bounded: the size of a request, how many are signed at once and wait, how often one identity asks.
- A token for single use is spent, on disk, before anything is signed. A request that is refused for what it
  is does not spend one.
- The newest certificate of an identity at an address is remembered by its end, for the status.
- A certificate for somebody else (`ImpersonatedIdentity`, as ztunnel asks) is given to a node that may speak
  for that workload, see `nodes`; else it is refused, not silently made out to the caller. It counts as the
  node's asking, not the workload's.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from meshlib.control.ca.jwt import TokenRefused
from meshlib.control.ca.request import MAX_CSR, CsrRefused, read_key
from meshlib.control.ca.tokens import Proof
from meshlib.control.serve.callers import Caller, Denied
from meshlib.control.serve.credentials import Authority
from meshlib.control.serve.nodes import Nodes
from meshlib.control.serve.rates import Allowance
from meshlib.identity.pem import load_bundle
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds import pb

log = logging.getLogger(__name__)

SIGNED_AT_ONCE = 2
WAITING = 256
"""More than that are refused at once."""
BURST, PER_SECOND = 200, 20
"""Of one identity: a service may start with some hundred processes at the same time."""


REMEMBERED = 50_000


class Spending(Protocol):
    """What is needed of `control.ca.tokens.JoinTokens`."""

    def spend(self, proof: Proof, now: float) -> None:
        """TokenRefused: it was spent before."""


class Signing:
    """Signs for one authority. One event loop; the signing itself is on threads."""

    def __init__(
        self,
        authority: Authority,
        nodes: Nodes,
        tokens: Spending | None = None,
        *,
        hosts: Callable[[SpiffeId], Sequence[str]] = lambda _: (),
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hosts`: the DNS names of an identity's certificate; `wall` in seconds since 1970."""
        self._authority = authority
        self._nodes = nodes
        self._tokens = tokens
        self._hosts = hosts
        self._wall = wall
        self._clock = clock
        self._rates = Allowance(BURST, PER_SECOND)
        self._signing = asyncio.Semaphore(SIGNED_AT_ONCE)
        self._waiting = 0
        self._newest: OrderedDict[tuple[SpiffeId, str], float] = OrderedDict()

    async def create(self, request: Any, caller: Caller) -> Any:
        """An IstioCertificateResponse for an IstioCertificateRequest. Denied: with the reason."""
        csr = _checked(request)
        identity = self._nodes.certified(caller, request)
        if not self._rates.take(str(caller.identity), self._clock()):
            raise Denied("RESOURCE_EXHAUSTED", f"{caller.identity} asks for certificates too often")
        if self._waiting >= WAITING:
            raise Denied("RESOURCE_EXHAUSTED", "too many certificates are asked for; try again")
        self._waiting += 1
        try:
            async with self._signing:
                chain = await self._signed(csr, request.validity_duration, identity, caller.proof)
            if identity == caller.identity:
                self._remember(identity, caller.address, chain[0])
        except CsrRefused as error:
            log.warning("no certificate for %s at %s: %s", identity, caller.address, error)
            raise Denied(error.code, str(error)) from None
        except TokenRefused as error:
            raise Denied("UNAUTHENTICATED", str(error)) from None
        finally:
            self._waiting -= 1
        log.info("a certificate for %s at %s, %s", identity, caller.address, caller.identity)
        return pb.IstioCertificateResponse(cert_chain=chain)

    async def _signed(
        self, csr: str, seconds: int, identity: SpiffeId, proof: Proof | None
    ) -> tuple[str, ...]:
        if self._tokens is not None and proof is not None and proof.once:
            await asyncio.to_thread(read_key, csr)
            self._tokens.spend(proof, self._wall())
        # Istio: "<= 0 is the default".
        life, now = max(0, seconds), self._wall()
        return await asyncio.to_thread(self._authority.sign, csr, identity, life, now, self._hosts(identity))

    def newest_end(self, identity: SpiffeId, address: str) -> float:
        """When the newest certificate of that identity at that host ends; 0: none is known."""
        return self._newest.get((identity, _host(address)), 0.0)

    def _remember(self, identity: SpiffeId, address: str, leaf: str) -> None:
        key = identity, _host(address)
        self._newest[key] = load_bundle(leaf)[0].not_valid_after_utc.timestamp()
        self._newest.move_to_end(key)
        while len(self._newest) > REMEMBERED:
            self._newest.popitem(last=False)

    def roots(self) -> Any:
        """A Struct {"roots": PEM bundle}."""
        reply = pb.Struct()
        reply.update({"roots": self._authority.roots_pem})
        return reply


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _checked(request: Any) -> str:
    """The request's CSR. Denied: it is none."""
    if (size := request.ByteSize()) > 2 * MAX_CSR:  # it may wait for its turn
        raise Denied("INVALID_ARGUMENT", f"the request has {size} bytes; at most {2 * MAX_CSR} are taken")
    if len(request.csr) > MAX_CSR:
        raise Denied(
            "INVALID_ARGUMENT", f"the request has {len(request.csr)} characters; at most {MAX_CSR} are taken"
        )
    return str(request.csr)
