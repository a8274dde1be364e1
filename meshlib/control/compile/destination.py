"""Which cluster a destination is.

Rules (Istio): the port is the destination's, else the only one of its service, else the listener's.
A host or subset that is not known still gives a name; the client then answers 503, no such cluster. What
is not known at all goes to the egressProxy of the client's outboundTrafficPolicy, or where it was going.
"""

from meshlib.control.compile.context import Context
from meshlib.control.graph.hosts import expand
from meshlib.control.istio.virtualservice import Destination
from meshlib.xds.names import PASSTHROUGH_CLUSTER, UNKNOWN_SERVICE, ClusterName


def cluster_of(context: Context, destination: Destination | None, namespace: str) -> str:
    """The cluster's name; short hosts belong to `namespace`."""
    if destination is None or not destination.host:
        return UNKNOWN_SERVICE
    host = expand(destination.host, namespace, context.scope.domain)
    return str(ClusterName(_port(context, destination, host), destination.subset, host))


def outside(context: Context) -> str:
    """The cluster of requests and connections to hosts that are not known, where any may be called."""
    proxy = context.scope.egress_proxy
    return PASSTHROUGH_CLUSTER if proxy is None else cluster_of(context, proxy, context.scope.namespace)


def _port(context: Context, destination: Destination, host: str) -> int:
    if destination.port is not None and destination.port.number:
        return destination.port.number
    service = context.service(host)
    if service is not None and len(service.ports) == 1:
        return service.ports[0].number
    return context.port
