"""`tunnel` of a DestinationRule as a TCP proxy's tunneling_config.

Rules (Istio):

- It is for connections (`tcp` and `tls` rules, ports of TCP and TLS); requests are never tunnelled.
- A destination with a subset has the subset's tunnel and no other; without one, and of several destinations,
  it is the host's. `portLevelSettings` change nothing about it.
"""

from typing import Any

from meshlib.control.graph.destinationrules import DestinationRule

POST = "POST"


def put_tunnel(proxy: Any, rule: DestinationRule | None, subset: str) -> None:
    """Puts it on an envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy."""
    if rule is None:
        return
    policy = rule.policy
    if subset:
        policy = rule.subsets[subset][0].traffic_policy if subset in rule.subsets else None
    said = policy.tunnel if policy is not None else None
    if said is None:
        return
    host = f"[{said.target_host}]" if ":" in said.target_host else said.target_host
    proxy.tunneling_config.hostname = f"{host}:{said.target_port}"
    proxy.tunneling_config.use_post = said.protocol == POST
