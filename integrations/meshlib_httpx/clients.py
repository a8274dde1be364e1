"""`Client` and `AsyncClient`: httpx's own, whose http:// requests the mesh routes.

Every argument of httpx is taken. `transport` and `mounts` given by the application win.
`verify`, `cert`, `http1`, `http2` are for https:// hosts, which go out as httpx sends them; what is wrong
with a certificate is told at once. `limits` hold for all requests if they are given, and the mesh's always.
`proxy`, and those of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), take what goes to hosts
that the mesh does not know, and nothing else.
"""

import functools
import math
from http.cookiejar import CookieJar
from typing import Any

import httpx

import meshlib
from meshlib.bootstrap import SETTINGS
from meshlib.dataplane.mesh import Mesh
from meshlib_httpx.proxies import AsyncProxies, Proxies, are_wanted
from meshlib_httpx.transports import AsyncTransport, Transport

_LONGEST_KEPT = 256
"""Characters of a URL that is kept parsed."""
_READ = httpx.ByteStream(b"")
"""In place of a stream that was read."""
_FOR_HTTPS = ("verify", "cert", "http1", "http2", "limits", "trust_env")


class Client(httpx.Client):
    """An httpx.Client in the mesh."""

    def __init__(self, *, mesh: Mesh | None = None, **arguments: Any) -> None:
        """`mesh`: one of your own (you close it). Else settings of `meshlib.connect` (`control`,
        `namespace`, …) give this client a mesh of its own, and without any it is the process's.
        All other arguments are httpx.Client's.
        """
        self._own_mesh = _own_mesh(mesh, arguments)
        if arguments.get("transport") is None:
            limits, secure = arguments.get("limits"), _for_https(arguments)
            proxy = arguments.pop("proxy", None)
            proxies = Proxies(proxy, secure) if are_wanted(proxy, secure) else None
            transport = Transport(mesh or self._own_mesh, secure, _keepalive(limits), proxies)
            arguments["transport"] = transport
            if limits is not None and limits.max_connections is not None:
                from meshlib_httpx.bounds import Bounded

                arguments["transport"] = Bounded(transport, limits.max_connections)
        super().__init__(**arguments)
        self._cookies = _jar(self._cookies, arguments)

    def build_request(self, method: str, url: httpx.URL | str, **arguments: Any) -> httpx.Request:
        """As httpx's."""
        return super().build_request(method, _parsed(url), **arguments)

    def send(self, request: httpx.Request, **arguments: Any) -> httpx.Response:
        """As httpx's."""
        return _untied(super().send(request, **arguments))

    def close(self) -> None:
        """Closes connections, and the mesh if it is this client's own."""
        super().close()
        if self._own_mesh is not None:
            self._own_mesh.close()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._own_mesh is not None:
            self._own_mesh.close()


class AsyncClient(httpx.AsyncClient):
    """An httpx.AsyncClient in the mesh, on asyncio."""

    def __init__(self, *, mesh: Mesh | None = None, **arguments: Any) -> None:
        """As `Client`."""
        self._own_mesh = _own_mesh(mesh, arguments)
        if arguments.get("transport") is None:
            limits, secure = arguments.get("limits"), _for_https(arguments)
            proxy = arguments.pop("proxy", None)
            proxies = AsyncProxies(proxy, secure) if are_wanted(proxy, secure) else None
            transport = AsyncTransport(mesh or self._own_mesh, secure, _keepalive(limits), proxies)
            arguments["transport"] = transport
            if limits is not None and limits.max_connections is not None:
                from meshlib_httpx.bounds import AsyncBounded

                arguments["transport"] = AsyncBounded(transport, limits.max_connections)
        super().__init__(**arguments)
        self._cookies = _jar(self._cookies, arguments)

    def build_request(self, method: str, url: httpx.URL | str, **arguments: Any) -> httpx.Request:
        """As httpx's."""
        return super().build_request(method, _parsed(url), **arguments)

    async def send(self, request: httpx.Request, **arguments: Any) -> httpx.Response:
        """As httpx's."""
        return _untied(await super().send(request, **arguments))

    async def aclose(self) -> None:
        """Closes connections, and the mesh if it is this client's own."""
        await super().aclose()
        if self._own_mesh is not None:
            await self._own_mesh.aclose()

    async def __aexit__(self, *raised: Any) -> None:
        await super().__aexit__(*raised)
        if self._own_mesh is not None:
            await self._own_mesh.aclose()


def _parsed(url: httpx.URL | str) -> httpx.URL | str:
    """An application asks for the same ones again, and to parse one takes a sixth of httpx's own time."""
    return _parse(url) if type(url) is str and len(url) <= _LONGEST_KEPT else url


@functools.lru_cache(maxsize=512)
def _parse(url: str) -> httpx.URL:
    return httpx.URL(url)


def _untied(response: httpx.Response) -> httpx.Response:
    """One whose body was read goes when nobody holds it any more: its stream, which is of no more use, holds
    it too, and only the garbage collector would find both.
    """
    if response.is_closed:
        response.stream = _READ
    return response


class _Cookies(httpx.Cookies):
    """A response that sets no cookie is not searched for one: that takes a third of httpx's own time."""

    def extract_cookies(self, response: httpx.Response) -> None:
        headers = response.headers
        if "set-cookie" in headers or "set-cookie2" in headers:
            super().extract_cookies(response)


def _jar(cookies: httpx.Cookies, arguments: dict[str, Any]) -> httpx.Cookies:
    """The application's own jar stays as it is."""
    return cookies if isinstance(arguments.get("cookies"), CookieJar) else _Cookies(cookies)


def _own_mesh(mesh: Mesh | None, arguments: dict[str, Any]) -> Mesh | None:
    given = {name: arguments.pop(name) for name in SETTINGS & arguments.keys()}
    if mesh is not None and given:
        raise TypeError(f"mesh and {min(given)} can't be given both")
    return meshlib.connect(**given) if given else None


def _for_https(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that concern https://; raises as httpx does for a certificate that can't be read."""
    found = {name: arguments[name] for name in _FOR_HTTPS if name in arguments}
    if found.get("cert") is not None or isinstance(found.get("verify"), str):
        # Only then: to load a CA bundle takes long.
        trust_env, cert = found.get("trust_env", True), found.pop("cert", None)
        found["verify"] = httpx.create_ssl_context(found.get("verify", True), cert, trust_env)
    return found


def _keepalive(limits: httpx.Limits | None) -> float:
    """For how many seconds a connection may be idle."""
    if limits is None:
        return math.inf
    if limits.max_keepalive_connections == 0:
        return 0.0
    return math.inf if limits.keepalive_expiry is None else limits.keepalive_expiry
