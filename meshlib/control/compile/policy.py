"""The traffic policy in force for one cluster: of the subset, the port, the host, the mesh.

Rules (Istio), for each of balancing, connection pool, outlier detection and TLS:

- subset's port > subset > host's port > host > mesh.
- Settings of a port replace all four of the policy around them; what they leave out is the default.
  They have no retry budget and no PROXY header, and those of the policy around them are lost.
- A subset takes from the host's policy what it does not say itself.
"""

from dataclasses import dataclass, replace

from meshlib.control.graph.destinationrules import DestinationRule
from meshlib.control.istio.destinationrule import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    LoadBalancerSettings,
    OutlierDetection,
    PortTrafficPolicy,
    ProxyProtocol,
    RetryBudget,
    TrafficPolicy,
)
from meshlib.control.istio.meshconfig import MeshConfig


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for one cluster; None: the default."""

    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    retry_budget: RetryBudget | None = None
    proxy_protocol: ProxyProtocol | None = None


def policy_of(rule: DestinationRule | None, subset: str, port: int, mesh: MeshConfig) -> Policy:
    """The policy of `subset` (empty: all) of a host at a port."""
    found = Policy()
    if rule is not None:
        found = _applied(found, rule.policy, port)
        if subset in rule.subsets:
            found = _applied(found, rule.subsets[subset][0].traffic_policy, port)
    default = mesh.default_traffic_policy
    if default is None:
        return found
    return replace(
        found,
        connection_pool=found.connection_pool or default.connection_pool,
        outlier_detection=found.outlier_detection or default.outlier_detection,
    )


def _applied(under: Policy, over: TrafficPolicy | None, port: int) -> Policy:
    if over is None:
        return under
    settings = next((p for p in over.port_level_settings if p.port and p.port.number == port), None)
    if settings is not None:
        return _of_port(settings, under)
    return Policy(
        over.load_balancer or under.load_balancer,
        over.connection_pool or under.connection_pool,
        over.outlier_detection or under.outlier_detection,
        over.tls or under.tls,
        over.retry_budget or under.retry_budget,
        over.proxy_protocol or under.proxy_protocol,
    )


def _of_port(settings: PortTrafficPolicy, under: Policy) -> Policy:
    return Policy(
        settings.load_balancer,
        settings.connection_pool,
        settings.outlier_detection,
        settings.tls,
        under.retry_budget,
        under.proxy_protocol,
    )
