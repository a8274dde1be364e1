"""What the control server shows of itself, and whom it believes: its SSL context, always of now.

Its certificate is from the authority that it serves, for the names by which clients know it, and renewed
at half its life; the roots by which client certificates are believed are the authority's. Rules:

- Both are looked at when a connection comes. What changed makes a new context, for that connection and
  the next ones; the others go on as they are.
- If no certificate can be made, the one there is serves on, and it is tried again a little later.
"""

import ipaddress
import logging
import socket
import ssl
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from meshlib.errors import MeshError
from meshlib.identity.chain import Purpose, check_peer
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


class Credentials:
    """One server's. One event loop."""

    def __init__(
        self,
        authority: Authority,
        names: Sequence[str],
        *,
        aliases: Collection[str] = (),
        wall: Callable[[], float],
    ) -> None:
        """`names`: the server's host names and addresses; `aliases`: further trust domains of clients."""
        self._authority = authority
        self._names = tuple(dict.fromkeys(names))
        self._domains = (authority.trust_domain, *aliases)
        self._wall = wall
        self._context: ssl.SSLContext | None = None
        self._made: ServerCertificate | None = None
        self._roots = self._root = ""
        self._not_before = 0.0

    def context(self) -> ssl.SSLContext:
        """For the next connection. ConfigError: the authority can't make a certificate, and never could."""
        now, roots = self._wall(), self._authority.roots_pem
        made, root = self._made, self._authority.fingerprint
        fresh = made is not None and not is_due(made.term, now, 0.0) and root == self._root
        if self._context is not None and ((fresh and roots == self._roots) or now < self._not_before):
            return self._context
        try:
            if made is None or not fresh:
                made = self._authority.server_certificate(self._names, now)
            self._context = make_context(made, roots)
        except (MeshError, OSError, ValueError) as error:
            if self._context is None:
                raise
            log.error("the control service's certificate can't be renewed: %s", error)
            self._not_before = now + RETRY_SECONDS
            return self._context
        self._made, self._roots, self._root = made, roots, root
        return self._context

    def identify(self, der: bytes) -> SpiffeId:
        """Whose certificate that is, its path to a root being verified. BadCertificate: nobody's."""
        return check_peer([der], trust_domains=self._domains, now=self._wall(), purpose=Purpose.CLIENT)


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
