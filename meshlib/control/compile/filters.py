"""The HTTP filters that see a request to a served port, in their order (Istio's)."""

from typing import Any

from meshlib.control.compile.listeners import ROUTER
from meshlib.control.graph.graph import Graph
from meshlib.xds import pb
from meshlib.xds.node import Client


def http_filters(graph: Graph, workload: Client, port: int) -> list[tuple[str, Any]]:
    """Name and configuration of each filter at `port` of the workload; the router is last."""
    return [(ROUTER, pb.Router())]
