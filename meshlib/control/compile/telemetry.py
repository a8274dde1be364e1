"""What is told of requests: what a listener says of it, and what an endpoint's metadata says of its workload.

Rule: a workload of which neither labels nor a service account are known has no name, and nothing is said.
"""

import functools
from collections.abc import Mapping
from typing import Any

from meshlib.control.compile.accesslog import put_logs
from meshlib.control.compile.tracing import put_tracing
from meshlib.control.graph.telemetries import Told
from meshlib.control.registry import Endpoint
from meshlib.xds.node import Flavour
from meshlib.xds.workload import to_metadata, workload_of


def put_telemetry(manager: Any, listener: Any, told: Told, flavour: Flavour) -> None:
    """On the HttpConnectionManager of a Listener. gRPC's own clients tell nothing of this."""
    if flavour is not Flavour.GRPC:
        put_logs(manager, listener, told.logs)
        put_tracing(manager, told.spans, envoy=flavour in (Flavour.ENVOY, Flavour.GATEWAY))


def workload(endpoint: Endpoint) -> Mapping[str, str] | None:
    """The endpoint's metadata `istio`; None: the workload is not known."""
    account = endpoint.identity[1] if endpoint.identity is not None else ""
    return _said(endpoint.namespace, account, endpoint.labels)


@functools.lru_cache(maxsize=4096)
def _said(namespace: str, account: str, labels: tuple[tuple[str, str], ...]) -> Mapping[str, str] | None:
    """A workload has many endpoints, and they are compiled often."""
    found = workload_of(namespace, account, dict(labels))
    return to_metadata(found) if found.name else None
