"""The HTTP filters that see a request to a served port, in their order (Istio's).

CORS is a filter of the caller's side in Istio; where it is the server's, it comes first as it does there.
"""

from typing import Any

from meshlib.control.compile.cors import CORS
from meshlib.control.compile.listeners import ROUTER
from meshlib.control.compile.security import Security
from meshlib.xds import pb


def http_filters(security: Security, *, cors: bool = False) -> list[tuple[str, Any]]:
    """Name and configuration of each filter of a workload's ports; the router is last."""
    first = [(CORS, pb.Cors())] if cors else []
    return [*first, *security.filters, (ROUTER, pb.Router())]
