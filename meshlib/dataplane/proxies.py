"""HTTP proxies: which requests of a client may be given to one.

Rules:

- A proxy takes requests to hosts that the mesh does not know and lets pass to wherever they go. It is the
  client library's own, with all that this library knows of proxies.
- A host of the mesh is never asked by a proxy: by which endpoint, certificate and rule it is reached, the
  mesh knows. Who wants that by name (`proxy=`) is told once a host.
- Where the mesh has a way out of its own (`egressProxy`), or none (REGISTRY_ONLY), that holds.
"""

import logging
from urllib.request import getproxies, proxy_bypass

from meshlib.core.route.rule import Forward
from meshlib.core.route.table import VirtualHost
from meshlib.core.view import View
from meshlib.xds.names import ALLOW_ANY, PASSTHROUGH_CLUSTER

log = logging.getLogger(__name__)
_told: set[str] = set()
MOST_TOLD = 1000


def is_outside(view: View, name: str, authority: str) -> bool:
    """Whether requests to `name` (`host:port`) pass through the mesh, or nothing is known of it."""
    table = view.tables.get(name)
    host = None if table is None else table.find_host(authority)
    return table is None or (host is not None and _passes(host))


def _passes(host: VirtualHost) -> bool:
    return host.name == ALLOW_ANY and all(
        isinstance(route.action, Forward)
        and all(one.name == PASSTHROUGH_CLUSTER for one in route.action.clusters)
        for route in host.routes
    )


def tell(name: str) -> None:
    """Says that a host is not asked by the proxy that the application named."""
    if name not in _told and len(_told) < MOST_TOLD:
        _told.add(name)
        log.warning("%s is a host of the mesh: its requests do not go through the client's proxy", name)


def of_environment(scheme: str, host: str, port: int) -> str | None:
    """The URL of the proxy that the environment (HTTP_PROXY, ALL_PROXY, NO_PROXY, …) names for a host."""
    found = getproxies()
    proxy = found.get(scheme) or found.get("all")
    if not proxy or proxy_bypass(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
