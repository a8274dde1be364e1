"""What the control server shows of itself, and whom it believes: its SSL context, always of now.

Its certificate is from the authority that it serves, for the names by which clients know it, and renewed
at half its life; the roots by which client certificates are believed are the authority's. Rules:

- Both are looked at when a connection comes. What changed makes a new context, for that connection and
  the next ones; the others go on as they are.
- If no certificate can be made, the one there is serves on, and it is tried again a little later.
- A client's certificate is good until it ends, and as long as every root is trusted that was when it was
  shown: an open connection gives no longer life.
"""

import ipaddress
import logging
import socket
import ssl
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography import x509

from meshlib.errors import MeshError
from meshlib.identity.chain import Purpose, check_peer
from meshlib.identity.pem import fingerprint, split_pem
from meshlib.identity.renewal import Term, is_due
from meshlib.identity.spiffe import SpiffeId
from meshlib.xds.names import CONTROL_SERVER

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
ISTIOD = ("istiod.istio-system.svc", "istiod.istio-system.svc.cluster.local")
"""By these names Istio's agents and gRPC's bootstrap know a control service."""


class ServerCertificate(Protocol):
    """As the authority makes one."""

    @property
    def chain_pem(self) -> str:
        """The leaf and its intermediates."""

    @property
    def key_pem(self) -> bytes:
        """Its key."""

    @property
    def term(self) -> Term:
        """How long it is good for."""


class Authority(Protocol):
    """What the control server needs of `control.ca.authority.Authority`."""

    trust_domain: str

    @property
    def roots_pem(self) -> str:
        """All roots that are trusted now."""

    @property
    def fingerprint(self) -> str:
        """Of the root above `server_certificate`."""

    def server_certificate(self, names: Sequence[str], now: float) -> ServerCertificate:
        """For a server that these names lead to."""

    def sign(
        self, csr_pem: str, identity: SpiffeId, ttl_s: int, now: float, dns: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """A workload's certificate: leaf first, root last. `CsrRefused`: with the reason and a gRPC code."""

    def reload(self, now: float) -> bool:
        """Goes on to that time; whether the roots or the issuer changed."""

    def status(self, now: float) -> dict[str, Any]:
        """See `control.ca.report`."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a connection is met with: a context, and the roots (PEM) by which it believes certificates."""

    context: ssl.SSLContext
    roots: frozenset[str]


@dataclass(frozen=True, slots=True)
class Shown:
    """A client's certificate that was verified."""

    identity: SpiffeId
    term: Term
    root: str
    """The fingerprint of the root that it leads to."""
    roots: frozenset[str]


class Credentials:
    """One server's. One event loop."""

    def __init__(
        self,
        authority: Authority,
        names: Sequence[str],
        *,
        aliases: Callable[[], Collection[str]] = lambda: (),
        wall: Callable[[], float],
    ) -> None:
        """`names`: the server's host names and addresses; `aliases`: further trust domains, as of now."""
        self._authority = authority
        self._names = tuple(dict.fromkeys(names))
        self._aliases = aliases
        self._wall = wall
        self._offer: Offer | None = None
        self._trusted: tuple[str, frozenset[str]] = ("", frozenset())
        self._made: ServerCertificate | None = None
        self._roots = self._root = ""
        self._not_before = 0.0

    def offer(self) -> Offer:
        """For the next connection. ConfigError: the authority can't make a certificate, and never could."""
        now, roots = self._wall(), self._authority.roots_pem
        made, root = self._made, self._authority.fingerprint
        fresh = made is not None and not is_due(made.term, now, 0.0) and root == self._root
        if self._offer is not None and ((fresh and roots == self._roots) or now < self._not_before):
            return self._offer
        try:
            if made is None or not fresh:
                made = self._authority.server_certificate(self._names, now)
            self._offer = Offer(make_context(made, roots), frozenset(split_pem(roots)))
        except (MeshError, OSError, ValueError) as error:
            if self._offer is None:
                raise
            log.error("the control service's certificate can't be renewed: %s", error)
            self._not_before = now + RETRY_SECONDS
            return self._offer
        self._made, self._roots, self._root = made, roots, root
        return self._offer

    def identify(self, chain: Sequence[bytes], roots: frozenset[str]) -> Shown:
        """Whose certificate the first is, its path to the last, one of `roots`, being verified.

        BadCertificate: nobody's.
        """
        leaf, now = chain[0], self._wall()
        identity = check_peer([leaf], trust_domains=self._domains(), now=now, purpose=Purpose.CLIENT)
        term = Term.of(x509.load_der_x509_certificate(leaf))
        return Shown(identity, term, fingerprint(chain[-1]), roots)

    def _domains(self) -> tuple[str, ...]:
        return self._authority.trust_domain, *self._aliases()

    def lapsed(self, shown: Shown) -> str:
        """Why a certificate that was good is so no more; empty: it is."""
        if self._wall() >= shown.term.end:
            return "it has ended; come back with the next one"
        if shown.identity.trust_domain not in self._domains():
            return f"{shown.identity.trust_domain} is no trust domain of the mesh any more"
        pem = self._authority.roots_pem
        if self._trusted[0] != pem:
            self._trusted = pem, frozenset(split_pem(pem))
        if not shown.roots <= self._trusted[1]:
            return "the mesh has given up a root since it was shown; come back"
        return ""


def make_context(made: ServerCertificate, roots_pem: str) -> ssl.SSLContext:
    """TLS 1.2 or newer, HTTP/2; a client certificate is asked for and may be left out."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=roots_pem)
    # Python takes a key from a file only; this one is 0600 and gone when the call returns.
    with tempfile.NamedTemporaryFile(prefix="meshlib-") as file:
        file.write(made.key_pem + b"\n" + made.chain_pem.encode())
        file.flush()
        context.load_cert_chain(file.name)
    return context


def server_names(host: str, further: Sequence[str] = ()) -> tuple[str, ...]:
    """The names by which a server that listens at `host` is known; `further` are added."""
    found = [CONTROL_SERVER, *further, *ISTIOD, "localhost", "127.0.0.1", "::1", socket.gethostname()]
    try:
        if not ipaddress.ip_address(host).is_unspecified:
            found.append(host)
    except ValueError:
        found.append(host)
    return tuple(dict.fromkeys(found))
