"""Names that both planes must spell alike. Istio's, wherever Istio has one.

- cluster and EDS resource: `outbound|<port>|<subset>|<fqdn>`
- route configuration of one service: `outbound|<port>||<fqdn>`
- route configuration of an Envoy's shared HTTP listener: `<port>`
- listener that a `meshlib` or `grpc` client asks for: the `host:port` it was given
- listener of a server's own port: `xds.istio.io/grpc/lds/inbound/<address>:<port>`, as gRPC's servers ask
- of a node's workload: the same with `<uid>/` before it, and listeners `<uid>/outbound`, `inbound`, `hbone`,
  `dns`, `proxy`
- secrets: `default` is the workload's own certificate, `ROOTCA` the roots it trusts; of a Gateway's servers
  `kubernetes://<name>` (with `-cacert`: its CA), `file-cert:<certificate>~<key>`, `file-root:<ca>`,
  `file-crl:<ca>~<revoked>`; of a node's workload its SPIFFE id
"""

import functools

from meshlib.values import dataclass

PASSTHROUGH_CLUSTER = "PassthroughCluster"
BLACK_HOLE_CLUSTER = "BlackHoleCluster"
ALLOW_ANY = "allow_any"
BLOCK_ALL = "block_all"
UNKNOWN_SERVICE = "UnknownService"

INBOUND_LISTENER = "xds.istio.io/grpc/lds/inbound/"
OWN_SECRET = "default"  # noqa: S105 - a name
ROOTS_SECRET = "ROOTCA"  # noqa: S105 - a name

SDS_CLUSTER = "sds-grpc"
"""The static cluster by which an Envoy asks the agent beside it for secrets."""
KUBERNETES_SECRET, FILE_CERT, FILE_ROOT = "kubernetes://", "file-cert:", "file-root:"
FILE_CRL = "file-crl:"
WITHHELD_SECRET = "withheld://"  # noqa: S105 - a name
"""In the place of `kubernetes://` where the client may not have the key: nobody has such a secret."""
OF_CA = "-cacert"
"""Ends the name of the secret with the CA that belongs to a certificate."""

CONTROL_SERVER = "control.meshlib.internal"
"""A DNS name in the control service's own certificate. No workload is given one for it."""
TRUST_ROOTS = "/meshlib.control.v1.Trust/Roots"
"""The one call that needs no caller: an empty Struct, answered by {"roots": PEM bundle}."""

# Endpoint metadata by which Envoy picks a transport socket, and the label by which a workload says so.
TRANSPORT_SOCKET_MATCH = "envoy.transport_socket_match"
TLS_MODE = "tlsMode"
TLS_MODE_LABEL = "security.istio.io/tlsMode"
MUTUAL = "istio"

# Nodes: their identities' namespace, which no workload has; where a workload of theirs is met in its own
# network namespace; and Istio's label (ambient) by which it says that it takes HBONE there.
NODE_NAMESPACE = "meshlib-node"
TUNNEL_LABEL, TUNNEL_HTTP = "networking.istio.io/tunnel", "http"
OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, DNS_PORT = 15001, 15006, 15008, 15053
RUNTIME_LAYER = "bounds"
"""The layer of the runtime of a node's Envoy that the control service says, and its resource."""

# Filter metadata: `istio` carries what istioctl shows, `meshlib` which line of which file made it.
ISTIO_METADATA = "istio"
MESHLIB_METADATA = "meshlib"


@dataclass(frozen=True, slots=True)
class ClusterName:
    """The four parts of a cluster's name."""

    port: int
    subset: str
    host: str
    direction: str = "outbound"

    def __str__(self) -> str:
        return f"{self.direction}|{self.port}|{self.subset}|{self.host}"

    @classmethod
    def parse(cls, name: str) -> "ClusterName | None":
        """The parts of `outbound|9080|v1|reviews.default.svc.cluster.local`; None for other names."""
        parts = name.split("|")
        if len(parts) != 4 or not parts[1].isdecimal():
            return None
        return cls(direction=parts[0], port=int(parts[1]), subset=parts[2], host=parts[3])


def cluster_name(port: int, subset: str, host: str) -> str:
    """`outbound|<port>|<subset>|<host>`."""
    return f"outbound|{port}|{subset}|{host}"


@functools.cache
def inbound_listener(port: int) -> str:
    """The name of the listener of a server's own port."""
    return f"{INBOUND_LISTENER}0.0.0.0:{port}"


def inbound_port(name: str) -> int | None:
    """The port in the name of a server's own listener; None: it is the name of something else."""
    if not name.startswith(INBOUND_LISTENER):
        return None
    port = name.rpartition(":")[2]
    return int(port) if port.isascii() and port.isdecimal() and 0 < int(port) < 65536 else None


def split_authority(name: str, default_port: int) -> tuple[str, int]:
    """`host` and port of `host`, `host:port` or `[v6]:port`; the host lower-case, without brackets.

    A port that is no number counts as part of the host, which then matches nothing.
    """
    host, colon, port = name.rpartition(":")
    if not colon or (host.count(":") and not host.endswith("]")):
        host, port = name, ""
    if port and not port.isdecimal():
        host, port = name, ""
    return host.removeprefix("[").removesuffix("]").lower(), int(port) if port else default_port
