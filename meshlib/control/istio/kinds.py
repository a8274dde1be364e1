"""The kinds: which are read, by which model, under which names; which are passed over or gone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meshlib.control.istio.authorizationpolicy import AuthorizationPolicy
from meshlib.control.istio.destinationrule import DestinationRule
from meshlib.control.istio.fields import Spec
from meshlib.control.istio.gateway import Gateway
from meshlib.control.istio.kubernetes import Endpoints, EndpointSlice, Service
from meshlib.control.istio.meshconfig import MeshConfig
from meshlib.control.istio.peerauthentication import PeerAuthentication
from meshlib.control.istio.proxyconfig import ProxyConfig
from meshlib.control.istio.requestauthentication import RequestAuthentication
from meshlib.control.istio.secret import Secret
from meshlib.control.istio.serviceentry import ServiceEntry
from meshlib.control.istio.sidecar import Sidecar
from meshlib.control.istio.telemetry import Telemetry
from meshlib.control.istio.validity import (
    endpoints,
    gateway,
    jwt,
    mesh,
    rules,
    secret,
    security,
    service,
    services,
    sidecar,
    telemetry,
)
from meshlib.control.istio.validity.report import Report
from meshlib.control.istio.virtualservice import VirtualService
from meshlib.control.istio.workloadentry import WorkloadEntry
from meshlib.control.istio.workloadgroup import WorkloadGroup


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind that is read."""

    name: str
    group: str
    versions: tuple[str, ...]
    model: type[Spec]
    check: Callable[[Any, Report], None] = lambda spec, to: None
    root: bool = False
    """Its fields stand beside `metadata`, not in `spec`."""
    deciding: tuple[str, ...] = ()
    """Fields that others are judged by, however deep these lie."""

    @property
    def api_versions(self) -> tuple[str, ...]:
        """Every apiVersion that it may be written under."""
        return tuple(f"{self.group}/{version}" if self.group else version for version in self.versions)


_NET = ("networking.istio.io", ("v1", "v1beta1", "v1alpha3"))
_SEC = ("security.istio.io", ("v1", "v1beta1"))

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("VirtualService", *_NET, VirtualService, rules.virtual_service, deciding=("hosts", "gateways")),
        Kind("DestinationRule", *_NET, DestinationRule, rules.destination_rule),
        Kind("Gateway", *_NET, Gateway, gateway.gateway),
        Kind(
            "ServiceEntry",
            *_NET,
            ServiceEntry,
            services.service_entry,
            deciding=("hosts", "ports", "resolution"),
        ),
        Kind("Sidecar", *_NET, Sidecar, sidecar.sidecar),
        Kind("WorkloadEntry", *_NET, WorkloadEntry, services.workload_entry),
        Kind("WorkloadGroup", *_NET, WorkloadGroup, services.workload_group),
        Kind("ProxyConfig", "networking.istio.io", ("v1beta1",), ProxyConfig, mesh.proxy_config),
        Kind(
            "AuthorizationPolicy",
            *_SEC,
            AuthorizationPolicy,
            security.authorization_policy,
            deciding=("action",),
        ),
        Kind("PeerAuthentication", *_SEC, PeerAuthentication, security.peer_authentication),
        Kind("RequestAuthentication", *_SEC, RequestAuthentication, jwt.request_authentication),
        Kind("Telemetry", "telemetry.istio.io", ("v1", "v1alpha1"), Telemetry, telemetry.telemetry),
        Kind("MeshConfig", "mesh.istio.io", ("v1alpha1",), MeshConfig, mesh.mesh_config, root=True),
        Kind("Service", "", ("v1",), Service, service.service, deciding=("type", "clusterIP")),
        Kind("Secret", "", ("v1",), Secret, secret.secret, root=True),
        Kind("Endpoints", "", ("v1",), Endpoints, endpoints.endpoints, root=True),
        Kind(
            "EndpointSlice",
            "discovery.k8s.io",
            ("v1", "v1beta1"),
            EndpointSlice,
            endpoints.endpoint_slice,
            root=True,
            deciding=("addressType",),
        ),
    )
}

UNUSED = ("EnvoyFilter", "WasmPlugin", "TrafficExtension")
"""Istio's kinds that only an Envoy can carry out."""

ISTIO_GROUPS = (
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "mesh.istio.io",
)

REMOVED: Mapping[str, str] = {
    "authentication.istio.io": "PeerAuthentication and RequestAuthentication of security.istio.io/v1",
    "rbac.istio.io": "AuthorizationPolicy of security.istio.io/v1",
    "config.istio.io": "Telemetry of telemetry.istio.io/v1 (Mixer is gone)",
    "policy.istio.io": "AuthorizationPolicy of security.istio.io/v1 (Mixer is gone)",
}
"""API groups that Istio once had, with what took their place."""


def passed_over(group: str, kind: str) -> bool:
    """Whether a document is someone else's: a kind of Kubernetes or of another project."""
    return group not in ISTIO_GROUPS and group not in REMOVED and kind not in KINDS
