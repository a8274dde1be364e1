"""What of a request is hashed, so that one key goes to one endpoint: consistentHash on routes."""

from typing import Any

from meshlib.control.compile.context import Context
from meshlib.control.compile.policy import policy_of
from meshlib.control.istio.destinationrule import ConsistentHashLB
from meshlib.xds import pb
from meshlib.xds.names import ClusterName


def consistent_hash(context: Context, cluster: str) -> ConsistentHashLB | None:
    """The consistentHash in force for a cluster; None: its endpoints are picked in another way."""
    name = ClusterName.parse(cluster)
    if name is None:
        return None
    rule = context.rule(name.host)
    if rule is None:
        return None
    balancer = policy_of(rule, name.subset, name.port, context.scope.graph.mesh).load_balancer
    return balancer.consistent_hash if balancer else None


def hash_policy(action: Any, said: ConsistentHashLB) -> None:
    """Adds what is hashed to an envoy.config.route.v3.RouteAction."""
    if said.http_header_name:
        action.hash_policy.add(header={"header_name": said.http_header_name})
    elif said.http_cookie is not None:
        cookie = action.hash_policy.add(cookie={"name": said.http_cookie.name, "path": said.http_cookie.path})
        if said.http_cookie.ttl is not None:
            cookie.cookie.ttl.CopyFrom(pb.duration(said.http_cookie.ttl))
        for attribute in said.http_cookie.attributes:
            cookie.cookie.attributes.add(name=attribute.name, value=attribute.value)
    elif said.use_source_ip:
        action.hash_policy.add(connection_properties={"source_ip": True})
    elif said.http_query_parameter_name:
        action.hash_policy.add(query_parameter={"name": said.http_query_parameter_name})
