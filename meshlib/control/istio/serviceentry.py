"""ServiceEntry: a service that Kubernetes does not know, inside the mesh or outside."""

from enum import StrEnum

from meshlib.control.istio.fields import Spec, Text, UInt32, WorkloadSelector
from meshlib.control.istio.workloadentry import WorkloadEntry


class Location(StrEnum):
    """Whether the service's endpoints are part of the mesh."""

    MESH_EXTERNAL = "MESH_EXTERNAL"
    MESH_INTERNAL = "MESH_INTERNAL"


class Resolution(StrEnum):
    """How the endpoints are found."""

    NONE = "NONE"
    STATIC = "STATIC"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"
    DYNAMIC_DNS = "DYNAMIC_DNS"


class ServicePort(Spec):
    """A port of a service."""

    number: UInt32 = 0
    protocol: Text = ""
    name: Text = ""
    target_port: UInt32 = 0
    """0 is `number`."""


class ServiceEntry(Spec):
    """The spec of a ServiceEntry."""

    one_of = (("endpoints", "workload_selector"),)

    hosts: tuple[Text, ...] = ()
    addresses: tuple[Text, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    location: Location = Location.MESH_EXTERNAL
    resolution: Resolution = Resolution.NONE
    endpoints: tuple[WorkloadEntry, ...] = ()
    workload_selector: WorkloadSelector | None = None
    export_to: tuple[Text, ...] = ()
    subject_alt_names: tuple[Text, ...] = ()
