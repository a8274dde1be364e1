"""How a connection is secured: what a client asks of an endpoint, and what a server's port takes.

Both are plain, hashable values: a TLS context is made once for each and kept.

Rule (Envoy): of a cluster's transports the first whose criteria the endpoint's metadata meets, all of
them, is the endpoint's; if there is none, the cluster's own.
"""

from dataclasses import field, fields
from enum import Enum
from typing import TYPE_CHECKING

from meshlib.values import dataclass

if TYPE_CHECKING:
    from meshlib.core.balance.cluster import Cluster
    from meshlib.core.balance.endpoints import Endpoint


class SanMatch(Enum):
    """How a subject alternative name is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"


class Trust(Enum):
    """Whose signature is taken."""

    MESH = "the mesh's roots, as they are now"
    SYSTEM = "the system's roots"
    FILE = "the roots of a file"
    NOBODY = "none is looked at (insecureSkipVerify)"


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a client asks of an endpoint. The identity it shows is the mesh's, a file's or none."""

    trust: Trust = Trust.MESH
    ca_file: str = ""
    """PEM, for Trust.FILE."""
    crl_file: str = ""
    """PEM: which certificates are revoked, a list of each authority of the chain; empty: none is asked."""
    mesh_identity: bool = True
    """Whether the workload's own certificate is shown (ISTIO_MUTUAL)."""
    certificate_file: str = ""
    """PEM chain to show instead (MUTUAL); empty: none."""
    key_file: str = ""
    sni: str = ""
    """Empty: the host of the request (Envoy's auto_sni), if it is a name."""
    verify_host: bool = False
    """Whether the certificate must be for the SNI (Envoy's auto_san_validation)."""
    sans: tuple[tuple[SanMatch, str], ...] = ()
    """One of them must be a URI or DNS name of the peer's; empty: any."""
    alpn: tuple[str, ...] = ()
    min_version: str = "TLSv1_2"
    """`TLSv1_2` or `TLSv1_3`."""
    _hash: int = field(init=False, repr=False, compare=False)
    """Of all that is above: each request looks for a connection by it."""

    def __post_init__(self) -> None:
        values = tuple(getattr(self, one.name) for one in fields(self) if one.compare)
        object.__setattr__(self, "_hash", hash(values))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Transport:
    """How the endpoints are reached that meet all the criteria; without criteria, every one."""

    name: str
    criteria: frozenset[tuple[str, str]] = frozenset()
    """Keys and values of the endpoint's metadata `envoy.transport_socket_match`."""
    tls: ClientTls | None = None
    """None: plain text."""


def secure(cluster: "Cluster", endpoint: "Endpoint") -> ClientTls | None:
    """What is asked of an endpoint of the cluster; None: plain text."""
    for transport in cluster.transports:
        if transport.criteria <= endpoint.transport:
            return transport.tls
    return cluster.tls


class InboundMode(Enum):
    """What a server's port takes (PeerAuthentication)."""

    DISABLE = "plain text only"
    PERMISSIVE = "mutual TLS and plain text"
    STRICT = "mutual TLS only"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a server's port asks of its peers. It shows the workload's own certificate."""

    mode: InboundMode = InboundMode.PERMISSIVE
    trust_domains: tuple[str, ...] = ()
    """A peer's identity must be of one of them; empty: any that the roots vouch for."""
    alpn: tuple[str, ...] = ("h2", "http/1.1")
    min_version: str = "TLSv1_2"
