"""Sidecar: what some workloads can see of the mesh, and what they take in."""

from enum import StrEnum

from meshlib.control.istio.destinationrule import ConnectionPoolSettings
from meshlib.control.istio.fields import Spec, Text, UInt32, WorkloadSelector
from meshlib.control.istio.gateway import ServerTLSSettings
from meshlib.control.istio.virtualservice import Destination


class CaptureMode(StrEnum):
    """How traffic gets to a listener."""

    DEFAULT = "DEFAULT"
    IPTABLES = "IPTABLES"
    NONE = "NONE"


class OutboundTrafficMode(StrEnum):
    """What becomes of traffic to hosts that the mesh does not know. The empty message is REGISTRY_ONLY."""

    REGISTRY_ONLY = "REGISTRY_ONLY"
    ALLOW_ANY = "ALLOW_ANY"
    ALLOW_ANY_DYNAMIC_DNS = "ALLOW_ANY_DYNAMIC_DNS"


class OutboundTrafficPolicy(Spec):
    """The same for some workloads or the whole mesh."""

    mode: OutboundTrafficMode = OutboundTrafficMode.REGISTRY_ONLY
    egress_proxy: Destination | None = None


class SidecarPort(Spec):
    """A port of a listener. Unlike a service's port its number may be 0, for a Unix socket."""

    number: UInt32 = 0
    protocol: Text = ""
    name: Text = ""
    target_port: UInt32 = 0


class IstioIngressListener(Spec):
    """A port that is taken in."""

    port: SidecarPort | None = None
    bind: Text = ""
    capture_mode: CaptureMode = CaptureMode.DEFAULT
    default_endpoint: Text = ""
    tls: ServerTLSSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None


class IstioEgressListener(Spec):
    """The hosts that can be seen, as `namespace/host`."""

    port: SidecarPort | None = None
    bind: Text = ""
    capture_mode: CaptureMode = CaptureMode.DEFAULT
    hosts: tuple[Text, ...] = ()


class Sidecar(Spec):
    """The spec of a Sidecar."""

    workload_selector: WorkloadSelector | None = None
    ingress: tuple[IstioIngressListener, ...] = ()
    egress: tuple[IstioEgressListener, ...] = ()
    inbound_connection_pool: ConnectionPoolSettings | None = None
    outbound_traffic_policy: OutboundTrafficPolicy | None = None
