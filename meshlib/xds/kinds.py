"""The resource types of the contract, and the order in which a change of several is sent.

The bounds of a node's Envoy (runtime) come first, before what they are for.
Make before break (Envoy, "xDS REST and gRPC protocol", eventual consistency): clusters and their
endpoints go out before the listeners and routes that name them; what is no longer named is
removed last, so that a client never holds a route to a cluster that it was told to forget.
"""

from enum import Enum

_URL = "type.googleapis.com/"


class Kind(Enum):
    """A resource type; the value is its type URL. Declared in the order of sending."""

    RUNTIME = _URL + "envoy.service.runtime.v3.Runtime"
    CLUSTER = _URL + "envoy.config.cluster.v3.Cluster"
    ENDPOINTS = _URL + "envoy.config.endpoint.v3.ClusterLoadAssignment"
    LISTENER = _URL + "envoy.config.listener.v3.Listener"
    ROUTES = _URL + "envoy.config.route.v3.RouteConfiguration"
    SCOPED_ROUTES = _URL + "envoy.config.route.v3.ScopedRouteConfiguration"
    SECRET = _URL + "envoy.extensions.transport_sockets.tls.v3.Secret"

    @property
    def type_url(self) -> str:
        """The protobuf type URL."""
        return self.value

    @property
    def short(self) -> str:
        """The field's short name: RTDS, CDS, EDS, LDS, RDS, SRDS, SDS."""
        return _SHORT[self]

    @property
    def wildcard(self) -> bool:
        """Whether a subscription without names means all of them (as Envoy subscribes)."""
        return self in (Kind.CLUSTER, Kind.LISTENER, Kind.SCOPED_ROUTES)


_SHORT = {
    Kind.RUNTIME: "RTDS",
    Kind.CLUSTER: "CDS",
    Kind.ENDPOINTS: "EDS",
    Kind.LISTENER: "LDS",
    Kind.ROUTES: "RDS",
    Kind.SCOPED_ROUTES: "SRDS",
    Kind.SECRET: "SDS",
}

SENDING_ORDER = tuple(Kind)
BY_TYPE_URL = {kind.type_url: kind for kind in Kind}
