"""Resources written by hand, as few fields as they need, and decoders for them."""

from collections.abc import Callable, Mapping
from typing import Any

from meshlib.core.balance.cluster import Cluster
from meshlib.core.balance.endpoints import Endpoint, EndpointSet, LocalityEndpoints
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb
from meshlib.xds.kinds import Kind
from meshlib.xds.snapshot import Resource


def target(name: str, cluster: str, port: int = 1) -> tuple[Resource, ...]:
    """Listener, routes, cluster and one endpoint of a target."""
    return (*routed(name, cluster), *served_by(cluster, port))


def routed(name: str, cluster: str) -> tuple[Resource, ...]:
    """A listener and its routes, to one cluster; an empty cluster is a broken route."""
    manager = pb.HttpConnectionManager(stat_prefix="x")
    manager.rds.route_config_name = f"routes {name}"
    listener = pb.Listener(name=name)
    listener.api_listener.api_listener.CopyFrom(pb.pack(manager))
    routes = pb.RouteConfiguration(name=f"routes {name}")
    host = routes.virtual_hosts.add(name="all", domains=["*"])
    route = host.routes.add()
    route.match.prefix = "/"
    route.route.cluster = cluster
    return (
        Resource.of(Kind.LISTENER, name, listener),
        Resource.of(Kind.ROUTES, routes.name, routes),
    )


def served_by(cluster: str, port: int) -> tuple[Resource, ...]:
    """A cluster and its one endpoint."""
    made = pb.Cluster(name=cluster, type=pb.Cluster.EDS)
    made.eds_cluster_config.eds_config.ads.SetInParent()
    listed = pb.ClusterLoadAssignment(cluster_name=cluster)
    socket = listed.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
    socket.address, socket.port_value = "127.0.0.1", port
    return (Resource.of(Kind.CLUSTER, cluster, made), Resource.of(Kind.ENDPOINTS, cluster, listed))


def _listener(message: Any) -> str:
    return str(pb.unpack(message.api_listener.api_listener).rds.route_config_name)


def _cluster(message: Any) -> Cluster:
    if message.name == "bad":
        raise Refused("name", "is bad")
    return Cluster(message.name, message.name)


def _endpoints(message: Any) -> EndpointSet:
    found = [one.endpoint.address.socket_address for group in message.endpoints for one in group.lb_endpoints]
    listed = tuple(Endpoint(socket.address, socket.port_value) for socket in found)
    return EndpointSet((LocalityEndpoints("", 0, 1, listed),))


DECODERS: Mapping[Kind, Callable[[Any], Any]] = {
    Kind.LISTENER: _listener,
    Kind.ROUTES: decode_routes,
    Kind.CLUSTER: _cluster,
    Kind.ENDPOINTS: _endpoints,
}
