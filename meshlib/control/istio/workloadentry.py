"""WorkloadEntry: one endpoint that is written down, for a machine that does not register itself."""

from collections.abc import Mapping

from pydantic import Field

from meshlib.control.istio.fields import Labels, Spec, Text, UInt32


class WorkloadEntry(Spec):
    """The spec of a WorkloadEntry, and an endpoint of a ServiceEntry."""

    address: Text = ""
    """An IP address, a host name (with DNS resolution) or `unix:///path`."""
    ports: Mapping[Text, UInt32] = Field(default_factory=dict)
    labels: Labels = Field(default_factory=dict)
    network: Text = ""
    locality: Text = ""
    """`region/zone/subzone`."""
    weight: UInt32 = 0
    """0 is 1."""
    service_account: Text = ""
