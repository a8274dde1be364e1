"""PeerAuthentication: whether a workload takes plain text, mutual TLS or both."""

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from meshlib.control.istio.fields import LabelSelector, PortKey, Spec


class MutualTLSMode(StrEnum):
    """UNSET inherits."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class MutualTLS(Spec):
    """Settings of mutual TLS."""

    mode: MutualTLSMode = MutualTLSMode.UNSET


class PeerAuthentication(Spec):
    """The spec of a PeerAuthentication."""

    selector: LabelSelector | None = None
    mtls: MutualTLS | None = None
    port_level_mtls: Mapping[PortKey, MutualTLS] = Field(default_factory=dict)
    """By the workload's port, not the service's."""
