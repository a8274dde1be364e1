"""MeshConfig: the settings of the whole mesh.

What this library reads is typed; the rest of Istio's mesh-wide settings is known by name and kept
as it was written, so that a MeshConfig of an existing mesh is taken unchanged.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field

from meshlib.control.istio.destinationrule import (
    ConnectionPoolSettings,
    LocalityLoadBalancerSetting,
    OutlierDetection,
    TcpKeepalive,
    ZoneAwareLoadBalancerSetting,
)
from meshlib.control.istio.fields import Bool, Int32, Seconds, Spec, Text, UInt32
from meshlib.control.istio.sidecar import OutboundTrafficMode, OutboundTrafficPolicy
from meshlib.control.istio.virtualservice import HTTPRetry

Free = Mapping[str, Any]
"""A message that is kept as it was written."""


class H2UpgradePolicy(StrEnum):
    """Whether HTTP/1.1 connections become HTTP/2, for the whole mesh."""

    DO_NOT_UPGRADE = "DO_NOT_UPGRADE"
    UPGRADE = "UPGRADE"


class InboundTrafficMode(StrEnum):
    """Which address a server's process is reached at."""

    PASSTHROUGH = "PASSTHROUGH"
    LOCALHOST = "LOCALHOST"


class InboundTrafficPolicy(Spec):
    """How a server's process is reached."""

    mode: InboundTrafficMode = InboundTrafficMode.PASSTHROUGH


class AccessLogEncoding(StrEnum):
    """The form of the access log."""

    TEXT = "TEXT"
    JSON = "JSON"


class NormalizationType(StrEnum):
    """How paths are put in order before they are matched."""

    DEFAULT = "DEFAULT"
    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


class ProxyPathNormalization(Spec):
    """Path normalisation."""

    normalization: NormalizationType = NormalizationType.DEFAULT


class DefaultTrafficPolicy(Spec):
    """What holds where a DestinationRule says nothing."""

    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None


class DefaultProviders(Spec):
    """The extension providers that are used where a Telemetry says nothing."""

    tracing: tuple[Text, ...] = ()
    metrics: tuple[Text, ...] = ()
    access_logging: tuple[Text, ...] = ()


def _allow_any() -> OutboundTrafficPolicy:
    return OutboundTrafficPolicy(mode=OutboundTrafficMode.ALLOW_ANY)


def domain_name(text: str) -> str:
    """A trust domain as it stands in identities."""
    return text.replace("@", ".").lower()


class MeshConfig(Spec):
    """Defaults are those of Istio's mesh."""

    root_namespace: Text = "istio-system"
    trust_domain: Text = "cluster.local"
    trust_domain_aliases: tuple[Text, ...] = ()
    enable_auto_mtls: Bool | None = None
    """None is true."""
    outbound_traffic_policy: OutboundTrafficPolicy = Field(default_factory=_allow_any)
    inbound_traffic_policy: InboundTrafficPolicy | None = None
    connect_timeout: Seconds = 10.0
    tcp_keepalive: TcpKeepalive | None = None
    protocol_detection_timeout: Seconds | None = None
    dns_refresh_rate: Seconds | None = None
    h2_upgrade_policy: H2UpgradePolicy = H2UpgradePolicy.DO_NOT_UPGRADE
    locality_lb_setting: LocalityLoadBalancerSetting | None = None
    """None is enabled."""
    zone_aware_lb_setting: ZoneAwareLoadBalancerSetting | None = None
    default_service_export_to: tuple[Text, ...] = ("*",)
    default_virtual_service_export_to: tuple[Text, ...] = ("*",)
    default_destination_rule_export_to: tuple[Text, ...] = ("*",)
    default_http_retry_policy: HTTPRetry | None = None
    default_inbound_http_retry_policy: HTTPRetry | None = None
    default_traffic_policy: DefaultTrafficPolicy | None = None
    path_normalization: ProxyPathNormalization | None = None
    access_log_file: Text = ""
    access_log_format: Text = ""
    access_log_encoding: AccessLogEncoding = AccessLogEncoding.TEXT
    enable_tracing: Bool = True
    default_providers: DefaultProviders | None = None
    extension_providers: tuple[Free, ...] = ()
    default_config: Free = Field(default_factory=dict)

    proxy_listen_port: Int32 = 15001
    proxy_inbound_listen_port: Int32 = 15006
    proxy_http_port: Int32 = 0
    tls_defaults: Free = Field(default_factory=dict)
    mesh_mtls: Free = Field(default_factory=dict, alias="meshMTLS")
    ca: Free = Field(default_factory=dict)
    ca_certificates: tuple[Free, ...] = ()
    certificates: tuple[Free, ...] = ()
    config_sources: tuple[Free, ...] = ()
    discovery_selectors: tuple[Free, ...] = ()
    service_settings: tuple[Free, ...] = ()
    service_scope_configs: tuple[Free, ...] = ()
    outbound_cluster_stat_name: Text = ""
    inbound_cluster_stat_name: Text = ""
    enable_prometheus_merge: Bool | None = None
    enable_envoy_access_log_service: Bool = False
    disable_envoy_listener_log: Bool = False
    verify_certificate_at_client: Bool | None = None
    ingress_service: Text = ""
    ingress_selector: Text = ""
    ingress_class: Text = ""
    ingress_controller_mode: Text = ""


class ForwardClientCertDetails(StrEnum):
    """What becomes of what a caller of a gateway says of a certificate."""

    UNDEFINED = "UNDEFINED"
    SANITIZE = "SANITIZE"
    FORWARD_ONLY = "FORWARD_ONLY"
    APPEND_FORWARD = "APPEND_FORWARD"
    SANITIZE_SET = "SANITIZE_SET"
    ALWAYS_FORWARD_ONLY = "ALWAYS_FORWARD_ONLY"


class GatewayTopology(Spec):
    """`defaultConfig.gatewayTopology`: what stands before a gateway."""

    num_trusted_proxies: UInt32 = 0
    forward_client_cert_details: ForwardClientCertDetails = ForwardClientCertDetails.UNDEFINED
    proxy_protocol: Free | None = None
    """Given: connections begin with a PROXY header."""

    @classmethod
    def of(cls, mesh: MeshConfig) -> "GatewayTopology":
        """That of the mesh; ValueError: it is not valid."""
        return cls.model_validate(mesh.default_config.get("gatewayTopology") or {})


def in_force(mesh: MeshConfig, trust_domain: str) -> MeshConfig:
    """The settings with the trust domain in which certificates are signed; empty: as they are.

    Another one that they ask for is an alias meanwhile: nobody is refused for what is to come.
    """
    asked = domain_name(mesh.trust_domain)
    if not trust_domain or asked == trust_domain:
        return mesh
    more = (asked,) if "trust_domain" in mesh.model_fields_set else ()
    aliases = tuple(dict.fromkeys((*mesh.trust_domain_aliases, *more)))
    return mesh.model_copy(update={"trust_domain": trust_domain, "trust_domain_aliases": aliases})
