"""A ProxyManager whose proxy takes what goes to hosts that the mesh does not know, and nothing else."""

from collections.abc import Mapping
from typing import Any

import urllib3
from urllib3.util import parse_url

from meshlib.dataplane.exchange import DEFAULT_PORTS, Request
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ControlError
from meshlib_urllib3.errors import of_control
from meshlib_urllib3.pools import PoolManager

_PROXY = "proxy_"
_OF_PROXY = "use_forwarding_for_https"


class ProxyManager(PoolManager):
    """A urllib3.ProxyManager in the mesh. Thread-safe."""

    def __init__(
        self,
        proxy_url: str,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        mesh: Mesh | None = None,
        **arguments: Any,
    ) -> None:
        """`mesh` None: the process's own. All other arguments are urllib3.ProxyManager's."""
        self._outside = _Outside(self, proxy_url, num_pools, headers, **arguments)
        own = {k: v for k, v in arguments.items() if not k.startswith(_PROXY) and k != _OF_PROXY}
        super().__init__(num_pools, headers, mesh=mesh, **own)

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **arguments: Any
    ) -> urllib3.BaseHTTPResponse:
        """As urllib3's. Errors: see `meshlib_urllib3.errors`."""
        if self.leaves(url):
            return self._outside.send(method, url, redirect, **arguments)
        return super().urlopen(method, url, redirect, **arguments)

    def leaves(self, url: str) -> bool:
        """Whether the proxy takes a request to that URL."""
        parsed = parse_url(url)
        scheme = (parsed.scheme or "http").lower()
        address = parsed.host or "", parsed.port or DEFAULT_PORTS.get(scheme, 80)
        try:
            return self.sender.leaves(
                Request("GET", scheme, address, parsed.netloc or "", "/", ()), told=True
            )
        except ControlError as error:
            raise of_control(error, None, url) from error

    def clear(self) -> None:
        """Closes the connections that nobody uses."""
        super().clear()
        self._outside.clear()


class _Outside(urllib3.ProxyManager):
    """What the proxy takes. A redirect may lead back into the mesh."""

    def __init__(self, owner: ProxyManager, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._owner = owner

    def send(self, method: str, url: str, redirect: bool, **arguments: Any) -> urllib3.BaseHTTPResponse:
        """As urllib3's `urlopen`."""
        return super().urlopen(method, url, redirect, **arguments)

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **arguments: Any
    ) -> urllib3.BaseHTTPResponse:
        """urllib3 calls this after a redirect."""
        return self._owner.urlopen(method, url, redirect, **arguments)
