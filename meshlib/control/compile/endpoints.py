"""The endpoints of a cluster as Envoy's ClusterLoadAssignment.

Rules: a subset takes endpoints that carry all its labels. A server that is about to leave is listed
as DRAINING. gRPC reaches no sockets of the file system. Every locality has the weight of its
endpoints, because gRPC passes over one without. An endpoint that takes mutual TLS says so in its metadata.
"""

from collections.abc import Sequence
from typing import Any

from meshlib.control.compile import telemetry
from meshlib.control.compile.hbone import put_target
from meshlib.control.compile.locality import Group
from meshlib.control.registry import Endpoint
from meshlib.xds import pb
from meshlib.xds.names import ISTIO_METADATA, MUTUAL, TLS_MODE, TRANSPORT_SOCKET_MATCH
from meshlib.xds.node import Flavour

_DRAINING = 3
_UNIX = "unix://"


def usable(endpoints: Sequence[Endpoint], flavour: Flavour) -> tuple[Endpoint, ...]:
    """Those that a client of that flavour can reach."""
    if flavour is not Flavour.GRPC:
        return tuple(endpoints)
    return tuple(endpoint for endpoint in endpoints if not endpoint.address.startswith(_UNIX))


def load_assignment(name: str, groups: Sequence[Group], tunnel: Sequence[str] | None = None) -> Any:
    """An envoy.config.endpoint.v3.ClusterLoadAssignment. `tunnel`: who takes HBONE is reached by it, and must
    be one of these; None: nobody is.
    """
    made = pb.ClusterLoadAssignment(cluster_name=name)
    for group in groups:
        locality = made.endpoints.add(priority=group.priority)
        where = group.locality
        locality.locality.SetInParent()
        if where.region:
            locality.locality.region = where.region
        if where.zone:
            locality.locality.zone = where.zone
        if where.subzone:
            locality.locality.sub_zone = where.subzone
        locality.load_balancing_weight.value = group.weight
        for endpoint in group.endpoints:
            _add(locality.lb_endpoints.add(), endpoint, tunnel if endpoint.tunnel else None)
    return made


def _add(made: Any, endpoint: Endpoint, tunnel: Sequence[str] | None) -> None:
    if tunnel is not None:
        put_target(made, endpoint, tunnel)
    elif endpoint.address.startswith(_UNIX):
        made.endpoint.address.pipe.path = endpoint.address.removeprefix(_UNIX)
    else:
        socket = made.endpoint.address.socket_address
        socket.address = endpoint.address
        socket.port_value = endpoint.port
    made.load_balancing_weight.value = endpoint.weight
    if endpoint.mutual:
        made.metadata.filter_metadata[TRANSPORT_SOCKET_MATCH].update({TLS_MODE: MUTUAL})
    workload = telemetry.workload(endpoint)
    if workload is not None:
        made.metadata.filter_metadata[ISTIO_METADATA].update(workload)
    if endpoint.draining:
        made.health_status = _DRAINING
