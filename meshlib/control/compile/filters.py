"""The HTTP filters that see a request to a served port, in their order (Istio's)."""

from typing import Any

from meshlib.control.compile.listeners import ROUTER
from meshlib.control.compile.security import Security
from meshlib.xds import pb


def http_filters(security: Security) -> list[tuple[str, Any]]:
    """Name and configuration of each filter of a workload's ports; the router is last."""
    return [*security.filters, (ROUTER, pb.Router())]
