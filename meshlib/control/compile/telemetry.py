"""What an endpoint's metadata says of the workload behind it, for the telemetry of its callers.

Rule: a workload of which neither labels nor a service account are known has no name, and nothing is said.
"""

import functools
from collections.abc import Mapping

from meshlib.control.registry import Endpoint
from meshlib.xds.workload import to_metadata, workload_of


def workload(endpoint: Endpoint) -> Mapping[str, str] | None:
    """The endpoint's metadata `istio`; None: the workload is not known."""
    account = endpoint.identity[1] if endpoint.identity is not None else ""
    return _said(endpoint.namespace, account, endpoint.labels)


@functools.lru_cache(maxsize=4096)
def _said(namespace: str, account: str, labels: tuple[tuple[str, str], ...]) -> Mapping[str, str] | None:
    """A workload has many endpoints, and they are compiled often."""
    found = workload_of(namespace, account, dict(labels))
    return to_metadata(found) if found.name else None
