"""DestinationRule: what holds for requests to a host after routing: subsets, balancing, limits, TLS."""

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from meshlib.control.istio.fields import (
    Bool,
    Int32,
    Labels,
    LabelSelector,
    Number,
    PortSelector,
    Seconds,
    Spec,
    Text,
    UInt32,
    UInt64,
)


class SimpleLB(StrEnum):
    """The balancing algorithms."""

    UNSPECIFIED = "UNSPECIFIED"
    LEAST_CONN = "LEAST_CONN"
    RANDOM = "RANDOM"
    PASSTHROUGH = "PASSTHROUGH"
    ROUND_ROBIN = "ROUND_ROBIN"
    LEAST_REQUEST = "LEAST_REQUEST"


class HTTPCookieAttribute(Spec):
    """An attribute of a cookie that is generated."""

    name: Text = ""
    value: Text = ""


class HTTPCookie(Spec):
    """A cookie to hash; with a ttl it is generated when missing."""

    name: Text = ""
    path: Text = ""
    ttl: Seconds | None = None
    attributes: tuple[HTTPCookieAttribute, ...] = ()


class RingHash(Spec):
    """The ring hash algorithm."""

    minimum_ring_size: UInt64 | None = None


class MagLev(Spec):
    """The Maglev algorithm."""

    table_size: UInt64 | None = None


class ConsistentHashLB(Spec):
    """One key, one endpoint: what is hashed, and how."""

    one_of = (
        ("http_header_name", "http_cookie", "use_source_ip", "http_query_parameter_name"),
        ("ring_hash", "maglev"),
    )

    http_header_name: Text | None = None
    http_cookie: HTTPCookie | None = None
    use_source_ip: Bool | None = None
    http_query_parameter_name: Text | None = None
    ring_hash: RingHash | None = None
    maglev: MagLev | None = None
    minimum_ring_size: UInt64 | None = None


class Distribute(Spec):
    """Where the requests from a locality go, in percent."""

    from_: Text = ""
    to: Mapping[Text, UInt32] = Field(default_factory=dict)


class Failover(Spec):
    """The region that takes over for another one."""

    from_: Text = ""
    to: Text = ""


class LocalityLoadBalancerSetting(Spec):
    """Balancing by region, zone and sub-zone."""

    distribute: tuple[Distribute, ...] = ()
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[Text, ...] = ()
    enabled: Bool | None = None


class ZoneAwareLoadBalancerSetting(Spec):
    """Balancing that keeps requests in their zone as far as the zones are even."""

    enabled: Bool | None = None
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[Text, ...] = ()
    min_cluster_size: UInt64 | None = None


class WarmupConfiguration(Spec):
    """New endpoints get their share bit by bit."""

    duration: Seconds | None = None
    minimum_percent: Number | None = None
    aggression: Number | None = None


class LoadBalancerSettings(Spec):
    """How an endpoint is picked."""

    one_of = (("simple", "consistent_hash"),)

    simple: SimpleLB | None = None
    consistent_hash: ConsistentHashLB | None = None
    locality_lb_setting: LocalityLoadBalancerSetting | None = None
    zone_aware_lb_setting: ZoneAwareLoadBalancerSetting | None = None
    warmup_duration_secs: Seconds | None = None
    warmup: WarmupConfiguration | None = None


class TcpKeepalive(Spec):
    """Keep-alive probes on idle connections."""

    probes: UInt32 = 0
    time: Seconds | None = None
    interval: Seconds | None = None


class TCPSettings(Spec):
    """Limits of connections. 0 is no limit."""

    max_connections: Int32 = 0
    connect_timeout: Seconds | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Seconds | None = None
    idle_timeout: Seconds | None = None


class H2UpgradePolicy(StrEnum):
    """Whether HTTP/1.1 connections become HTTP/2."""

    DEFAULT = "DEFAULT"
    DO_NOT_UPGRADE = "DO_NOT_UPGRADE"
    UPGRADE = "UPGRADE"


class HTTP2KeepAlive(Spec):
    """PINGs on idle HTTP/2 connections."""

    interval: Seconds | None = None
    timeout: Seconds | None = None


class HTTPSettings(Spec):
    """Limits of requests. 0 is no limit."""

    http1_max_pending_requests: Int32 = 0
    http2_max_requests: Int32 = 0
    max_requests_per_connection: Int32 = 0
    max_retries: Int32 = 0
    idle_timeout: Seconds | None = None
    h2_upgrade_policy: H2UpgradePolicy = H2UpgradePolicy.DEFAULT
    use_client_protocol: Bool = False
    max_concurrent_streams: Int32 = 0
    http2_keep_alive: HTTP2KeepAlive | None = None


class ConnectionPoolSettings(Spec):
    """Circuit breaking: the limits of a destination's connections and requests."""

    tcp: TCPSettings | None = None
    http: HTTPSettings | None = None


class OutlierDetection(Spec):
    """When an endpoint that fails is left out, and for how long."""

    consecutive_errors: Int32 = 0
    """The old spelling of consecutive_gateway_errors; see the docs on old spellings."""
    split_external_local_origin_errors: Bool = False
    consecutive_local_origin_failures: UInt32 | None = None
    consecutive_gateway_errors: UInt32 | None = None
    consecutive_5xx_errors: UInt32 | None = None
    interval: Seconds | None = None
    base_ejection_time: Seconds | None = None
    max_ejection_percent: Int32 = 0
    min_health_percent: Int32 = 0
    outlier_detection_http_error_codes: tuple[UInt32, ...] = ()


class ClientTLSMode(StrEnum):
    """What TLS a client speaks. The empty message is DISABLE."""

    DISABLE = "DISABLE"
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"


class ClientTLSSettings(Spec):
    """The client's side of TLS."""

    mode: ClientTLSMode = ClientTLSMode.DISABLE
    client_certificate: Text = ""
    private_key: Text = ""
    ca_certificates: Text = ""
    ca_crl: Text = ""
    credential_name: Text = ""
    subject_alt_names: tuple[Text, ...] = ()
    sni: Text = ""
    insecure_skip_verify: Bool | None = None


class TunnelSettings(Spec):
    """Connections go through an HTTP tunnel."""

    protocol: Text = ""
    target_host: Text = ""
    target_port: UInt32 = 0


class ProxyProtocolVersion(StrEnum):
    """The version of the PROXY protocol."""

    V1 = "V1"
    V2 = "V2"


class ProxyProtocol(Spec):
    """The PROXY protocol is sent first."""

    version: ProxyProtocolVersion = ProxyProtocolVersion.V1


class RetryBudget(Spec):
    """Retries as a share of the requests in flight, or of those of an interval."""

    percent: Number | None = None
    min_retry_concurrency: UInt32 = 0
    budget_interval: Seconds | None = None


class PortTrafficPolicy(Spec):
    """The policy of one port; it replaces the policy around it."""

    port: PortSelector | None = None
    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None


class TrafficPolicy(Spec):
    """The policy of a host or a subset."""

    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] = ()
    tunnel: TunnelSettings | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None


class Subset(Spec):
    """The endpoints with these labels, under one name."""

    name: Text = ""
    labels: Labels = Field(default_factory=dict)
    traffic_policy: TrafficPolicy | None = None


class DestinationRule(Spec):
    """The spec of a DestinationRule."""

    host: Text = ""
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[Text, ...] = ()
    workload_selector: LabelSelector | None = None
