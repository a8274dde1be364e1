"""Envoy's ClusterLoadAssignment as core's EndpointSet.

Rules (Envoy): an endpoint without a weight has 1; UNKNOWN and HEALTHY take requests, DEGRADED what those
can't take, UNHEALTHY, DRAINING and TIMEOUT none. A locality without a weight has none when localities are
weighted.
"""

from typing import Any

from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.dataplane.decode.errors import Refused, decode_each
from meshlib.dataplane.decode.mtls import decode_transport

MAX_ENDPOINTS = 100_000
MAX_LOCALITIES = 1_000
MAX_PRIORITY = 128
LONGEST_PATH = 107
"""Bytes: what fits into a sockaddr_un of Linux, with its end."""
MAX_WEIGHT = 2**32 - 1
_UNHEALTHY = frozenset((2, 3, 4))
"""envoy.config.core.v3.HealthStatus: UNHEALTHY, DRAINING, TIMEOUT."""
_DRAINING, _DEGRADED = 3, 5


def decode_endpoints(message: Any) -> EndpointSet:
    """An envoy.config.endpoint.v3.ClusterLoadAssignment. Refused: it can't be used; names the field."""
    if len(message.endpoints) > MAX_LOCALITIES:
        raise Refused("endpoints", f"more than {MAX_LOCALITIES} localities")
    if sum(len(group.lb_endpoints) for group in message.endpoints) > MAX_ENDPOINTS:
        raise Refused("endpoints", f"more than {MAX_ENDPOINTS} endpoints")
    made = decode_each(message.endpoints, "endpoints", _decode_locality)
    policy = message.policy
    factor = policy.overprovisioning_factor.value if policy.HasField("overprovisioning_factor") else 140
    if not factor:
        raise Refused("policy.overprovisioning_factor", "is 0")
    return EndpointSet(tuple(made), factor, policy.weighted_priority_health)


def _decode_locality(message: Any) -> LocalityEndpoints:
    if message.WhichOneof("lb_config"):
        raise Refused(message.WhichOneof("lb_config"), "is not supported")
    if message.priority > MAX_PRIORITY:
        raise Refused("priority", f"{message.priority} is more than {MAX_PRIORITY}")
    endpoints = decode_each(message.lb_endpoints, "lb_endpoints", _decode_endpoint)
    if sum(endpoint.weight for endpoint in endpoints) > MAX_WEIGHT:
        raise Refused("lb_endpoints", f"the weights sum up to more than {MAX_WEIGHT}")
    locality = message.locality
    words = "/".join(word for word in (locality.region, locality.zone, locality.sub_zone) if word)
    return LocalityEndpoints(words, message.priority, message.load_balancing_weight.value, tuple(endpoints))


def _decode_endpoint(message: Any) -> Endpoint:
    if message.WhichOneof("host_identifier") != "endpoint":
        raise Refused(message.WhichOneof("host_identifier") or "endpoint", "is not supported or not set")
    host, port = _decode_address(message.endpoint.address)
    weight = message.load_balancing_weight.value if message.HasField("load_balancing_weight") else 1
    return Endpoint(
        host=host,
        port=port,
        weight=weight,
        healthy=message.health_status not in _UNHEALTHY,
        hostname=message.endpoint.hostname,
        metadata=_decode_metadata(message.metadata),
        transport=decode_transport(message.metadata),
        degraded=message.health_status == _DEGRADED,
        draining=message.health_status == _DRAINING,
    )


def _decode_address(message: Any) -> tuple[str, int]:
    """Host and port, or a path and 0."""
    match message.WhichOneof("address"):
        case "socket_address":
            socket = message.socket_address
            if not socket.address:
                raise Refused("endpoint.address.socket_address.address", "is empty")
            if socket.WhichOneof("port_specifier") != "port_value" or not 0 < socket.port_value < 65536:
                raise Refused("endpoint.address.socket_address.port_value", f"{socket.port_value} is no port")
            return socket.address, socket.port_value
        case "pipe":
            path = message.pipe.path
            if not path.startswith(("/", "@")) or len(path.encode()) > LONGEST_PATH:
                raise Refused("endpoint.address.pipe.path", f"{path!r} is no path of a socket")
            return path, 0
    raise Refused("endpoint.address", "only socket_address and pipe are supported")


def _decode_metadata(message: Any) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"{space}/{key}", value.string_value)
        for space in sorted(message.filter_metadata)
        for key, value in sorted(message.filter_metadata[space].fields.items())
        if value.WhichOneof("kind") == "string_value"
    )
