"""`Session`: requests' own, whose http:// requests the mesh routes."""

import os
from typing import Any

import requests

import meshlib
from meshlib.dataplane.mesh import Mesh
from meshlib_requests.adapter import Adapter
from meshlib_requests.prepare import prepared

_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


class Session(requests.Session):
    """A requests.Session in the mesh."""

    def __init__(self, *, mesh: Mesh | None = None, **settings: Any) -> None:
        """`mesh`: one of your own (you close it). Else settings of `meshlib.connect` (`control`,
        `namespace`, …) give this session a mesh of its own, and without any it is the process's.
        """
        if mesh is not None and settings:
            raise TypeError(f"mesh and {min(settings)} can't be given both")
        self._own_mesh = meshlib.connect(**settings) if settings else None
        super().__init__()
        adapter = Adapter(mesh or self._own_mesh)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """As requests', in a fraction of its time."""
        return prepared(request, self)

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """As requests', which looks for a proxy and a CA bundle, and takes longer for that than the mesh."""
        if self.proxies or str(url)[:5].lower() != "http:" or (self.trust_env and _are_proxies()):
            return super().merge_environment_settings(url, proxies, stream, verify, cert)
        return {
            "proxies": proxies or {},
            "stream": self.stream if stream is None else stream,
            "verify": self.verify if verify is None else verify,
            "cert": self.cert if cert is None else cert,
        }

    def close(self) -> None:
        """Closes connections, and the mesh if it is this session's own."""
        super().close()
        if self._own_mesh is not None:
            self._own_mesh.close()


def _are_proxies() -> bool:
    """Whether the environment may name a proxy for http://."""
    return any(name in os.environ for name in _PROXIES)
