"""connectionPool as Envoy's circuit breakers, connection options and HTTP options.

Rules (Istio): numbers of 0 or less are the default, which is no limit; connecting takes at most the
mesh's connectTimeout, 10 s, unless said otherwise. Keep-alive is in whole seconds; less than one is nothing.
"""

from typing import Any

from meshlib.control.compile.outlier import error_codes
from meshlib.control.istio.destinationrule import (
    ConnectionPoolSettings,
    H2UpgradePolicy,
    OutlierDetection,
    RetryBudget,
    TcpKeepalive,
)
from meshlib.control.istio.meshconfig import H2UpgradePolicy as MeshUpgrade
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.registry import Protocol
from meshlib.xds import pb
from meshlib.xds.node import Flavour

UNLIMITED = 2**32 - 1
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def breakers(
    cluster: Any, said: ConnectionPoolSettings | None, budget: RetryBudget | None, flavour: Flavour
) -> None:
    """Puts the limits on an envoy.config.cluster.v3.Cluster."""
    tcp, http = (said.tcp, said.http) if said else (None, None)
    made = cluster.circuit_breakers.thresholds.add()
    made.max_connections.value = _limit(tcp.max_connections if tcp else 0)
    made.max_pending_requests.value = _limit(http.http1_max_pending_requests if http else 0)
    made.max_requests.value = _limit(http.http2_max_requests if http else 0)
    made.max_retries.value = _limit(http.max_retries if http else 0)
    if budget is not None and flavour is not Flavour.GRPC:
        made.retry_budget.budget_percent.value = 20.0 if budget.percent is None else budget.percent
        made.retry_budget.min_retry_concurrency.value = budget.min_retry_concurrency or 3
        if budget.budget_interval is not None:
            made.retry_budget.budget_interval.CopyFrom(pb.duration(budget.budget_interval))


def connection(cluster: Any, said: ConnectionPoolSettings | None, mesh: MeshConfig) -> None:
    """Puts the connect timeout and keep-alive on an envoy.config.cluster.v3.Cluster."""
    tcp = said.tcp if said else None
    timeout = tcp.connect_timeout if tcp and tcp.connect_timeout else mesh.connect_timeout
    cluster.connect_timeout.CopyFrom(pb.duration(timeout))
    alive = tcp.tcp_keepalive if tcp and tcp.tcp_keepalive else mesh.tcp_keepalive
    if alive is not None:
        _keep_alive(cluster.upstream_connection_options.tcp_keepalive, alive)


def http_options(
    cluster: Any,
    said: ConnectionPoolSettings | None,
    detection: OutlierDetection | None,
    protocol: Protocol,
    mesh: MeshConfig,
) -> None:
    """Puts the HTTP version, the limits of a connection, and which responses are failures, on an
    envoy.config.cluster.v3.Cluster.
    """
    tcp, http = (said.tcp, said.http) if said else (None, None)
    made = pb.HttpProtocolOptions()
    common = made.common_http_protocol_options
    idle = http.idle_timeout if http and http.idle_timeout is not None else tcp.idle_timeout if tcp else None
    if idle is not None:
        common.idle_timeout.CopyFrom(pb.duration(idle))
    if http and http.max_requests_per_connection > 0:
        common.max_requests_per_connection.value = http.max_requests_per_connection
    if tcp and tcp.max_connection_duration:
        common.max_connection_duration.CopyFrom(pb.duration(tcp.max_connection_duration))
    error_codes(made, detection)
    speaks = spoken(said, protocol, mesh)
    if speaks is Protocol.HTTP2:
        options = made.explicit_http_config.http2_protocol_options
        options.SetInParent()
        if http and http.max_concurrent_streams > 0:
            options.max_concurrent_streams.value = http.max_concurrent_streams
        if http and http.http2_keep_alive is not None:
            if http.http2_keep_alive.interval:
                options.connection_keepalive.interval.CopyFrom(pb.duration(http.http2_keep_alive.interval))
            if http.http2_keep_alive.timeout:
                options.connection_keepalive.timeout.CopyFrom(pb.duration(http.http2_keep_alive.timeout))
    elif speaks is Protocol.SNIFFED:
        made.use_downstream_protocol_config.SetInParent()
    elif made.ByteSize():
        made.explicit_http_config.http_protocol_options.SetInParent()
    if made.ByteSize():
        cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(pb.pack(made))


def spoken(said: ConnectionPoolSettings | None, protocol: Protocol, mesh: MeshConfig) -> Protocol:
    """What a client speaks at a port of that protocol; SNIFFED: what its caller speaks."""
    if said and said.http and said.http.use_client_protocol:
        return Protocol.SNIFFED
    return Protocol.HTTP2 if _upgraded(said, protocol, mesh) else protocol


def _upgraded(said: ConnectionPoolSettings | None, protocol: Protocol, mesh: MeshConfig) -> bool:
    # A port without a protocol's name keeps what its caller speaks, also if a rule says UPGRADE: Istio's
    # setH2Options puts nothing in the place of useDownstreamProtocol.
    if protocol is not Protocol.HTTP:
        return False
    own = said.http.h2_upgrade_policy if said and said.http else H2UpgradePolicy.DEFAULT
    if own is H2UpgradePolicy.DEFAULT:
        return mesh.h2_upgrade_policy is MeshUpgrade.UPGRADE
    return own is H2UpgradePolicy.UPGRADE


def _limit(number: int) -> int:
    return number if number > 0 else UNLIMITED


def _keep_alive(made: Any, said: TcpKeepalive) -> None:
    made.SetInParent()
    if said.probes:
        made.keepalive_probes.value = said.probes
    if said.time and said.time >= 1:
        made.keepalive_time.value = int(said.time)
    if said.interval and said.interval >= 1:
        made.keepalive_interval.value = int(said.interval)
