"""Istio's standard labels of a request, and what each of them holds.

Rules (Istio):

- What is not known is `unknown`; of response flags, none is `-`.
- `reporter` is `source` at the caller and `destination` at the server.
- Only the server says how the connection was secured (`mutual_tls` or `none`); the caller says `unknown`.
- A cluster that carries no service gives `destination_service_name` its own name; `destination_service` is
  then the host that was asked for, but only at the caller.
- Principals are there if the connection is mutual TLS.
"""

from meshlib.xds.names import BLACK_HOLE_CLUSTER, PASSTHROUGH_CLUSTER, ClusterName
from meshlib.xds.workload import Workload

UNKNOWN = "unknown"
NAMES = (
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "connection_security_policy",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
)
"""The last four differ from request to request; the others belong to both ends."""

Service = tuple[str, str, str]
"""Host, name and namespace; empty text for what is not known."""
Ends = tuple[str, ...]
"""The values of the first 21 names."""
End = tuple[str, str, str, str]
"""The values of the last four."""


def service_of(cluster: str, said: Service | None, authority: str) -> Service:
    """The service behind a cluster. `said` is what the cluster's own metadata says, None: nothing."""
    if said is not None:
        return said
    if cluster in (PASSTHROUGH_CLUSTER, BLACK_HOLE_CLUSTER):
        return authority, cluster, ""
    name = ClusterName.parse(cluster)
    if name is None:
        return authority, "", ""
    parts = name.host.split(".")
    if len(parts) > 2 and parts[2] == "svc":
        return name.host, parts[0], parts[1]
    return name.host, name.host, ""


def outbound(own: Workload, server: Workload, service: Service, principals: tuple[str, str]) -> Ends:
    """What the caller says of both ends; `principals` are its own and the server's."""
    return _ends("source", own, server, service, principals, UNKNOWN)


def inbound(
    caller: Workload, own: Workload, service: Service, principals: tuple[str, str], mutual: bool
) -> Ends:
    """What the server says of both ends; `principals` are the caller's and its own."""
    return _ends("destination", caller, own, service, principals, "mutual_tls" if mutual else "none")


def _ends(
    reporter: str,
    source: Workload,
    destination: Workload,
    service: Service,
    principals: tuple[str, str],
    policy: str,
) -> Ends:
    found = (
        reporter,
        source.name,
        source.service,
        source.revision,
        source.namespace,
        principals[0],
        source.app,
        source.version,
        source.cluster,
        destination.name,
        destination.namespace,
        principals[1],
        destination.app,
        destination.version,
        service[0],
        destination.service,
        destination.revision,
        service[1],
        service[2],
        destination.cluster,
        policy,
    )
    return tuple(value or UNKNOWN for value in found)


def is_grpc(content_type: bytes | None) -> bool:
    """Whether that is gRPC's."""
    return content_type is not None and (
        content_type == b"application/grpc"
        or content_type.startswith((b"application/grpc+", b"application/grpc;"))
    )


def end_of(status: int, flags: str, *, grpc: bool, grpc_status: str = "") -> End:
    """How a request ended; `status` 0: there was no response."""
    return "grpc" if grpc else "http", str(status), grpc_status if grpc else "", flags or "-"
