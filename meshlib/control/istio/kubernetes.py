"""Kubernetes' own kinds that name services and endpoints: Service, Endpoints, EndpointSlice.

Only what routing needs is typed. These kinds belong to Kubernetes, which checks them itself and
adds fields from release to release: fields that are not known here are passed over.
"""

from pydantic import ConfigDict, Field

from meshlib.control.istio.fields import Bool, Int32, Labels, Spec, Text


class Known(Spec):
    """A message of which some fields are read."""

    model_config = ConfigDict(extra="ignore")


class ServicePort(Known):
    """A port of a Service."""

    name: Text = ""
    port: Int32 = 0
    protocol: Text = "TCP"
    app_protocol: Text = ""
    target_port: Int32 | Text | None = None
    """A number or the name of a container's port; None is `port`."""
    node_port: Int32 = 0


class Service(Known):
    """The spec of a Service."""

    selector: Labels = Field(default_factory=dict)
    ports: tuple[ServicePort, ...] = ()
    type: Text = "ClusterIP"
    cluster_ip: Text = Field(default="", alias="clusterIP")
    cluster_ips: tuple[Text, ...] = Field(default=(), alias="clusterIPs")
    external_name: Text = ""
    external_ips: tuple[Text, ...] = Field(default=(), alias="externalIPs")
    publish_not_ready_addresses: Bool = False
    traffic_distribution: Text = ""


class ObjectReference(Known):
    """The object behind an address."""

    kind: Text = ""
    name: Text = ""
    namespace: Text = ""


class EndpointAddress(Known):
    """One address of Endpoints."""

    ip: Text = ""
    hostname: Text = ""
    node_name: Text = ""
    target_ref: ObjectReference | None = None


class EndpointPort(Known):
    """A port of Endpoints or of an EndpointSlice."""

    name: Text = ""
    port: Int32 = 0
    protocol: Text = "TCP"
    app_protocol: Text = ""


class EndpointSubset(Known):
    """Addresses that share their ports."""

    addresses: tuple[EndpointAddress, ...] = ()
    not_ready_addresses: tuple[EndpointAddress, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class Endpoints(Known):
    """Endpoints, which belongs to the Service of the same name. It has no `spec` in YAML."""

    subsets: tuple[EndpointSubset, ...] = ()


class EndpointConditions(Known):
    """None is true for `ready` and `serving`."""

    ready: Bool | None = None
    serving: Bool | None = None
    terminating: Bool | None = None


class Endpoint(Known):
    """One endpoint of an EndpointSlice."""

    addresses: tuple[Text, ...] = ()
    conditions: EndpointConditions | None = None
    hostname: Text = ""
    node_name: Text = ""
    zone: Text = ""
    target_ref: ObjectReference | None = None


class EndpointSlice(Known):
    """EndpointSlice, which belongs to the Service that its label `kubernetes.io/service-name` names."""

    address_type: Text = ""
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
