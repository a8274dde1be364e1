"""The proxies of a client: `proxy=`, or those of the environment where `trust_env` is on.

A proxied request is httpx's own from here on. Whether the environment names any is found out when the client
is made, as in httpx.
"""

import os
from typing import Any
from urllib.request import getproxies

import httpx

from meshlib.dataplane.proxies import of_environment

_DEFAULT_PORTS = {"http": 80, "https": 443}


class _Wanted:
    """Which proxy a URL is to go by."""

    def __init__(self, proxy: Any, arguments: dict[str, Any]) -> None:
        """`proxy` None: the environment's. `arguments` are those of httpx's transports."""
        self.named = proxy is not None
        """Whether it is the application that wants it."""
        self._proxy = httpx.Proxy(proxy) if isinstance(proxy, str | httpx.URL) else proxy
        self._arguments = arguments

    def wants(self, url: httpx.URL) -> bool:
        """Whether a proxy is to take a request to that URL."""
        return self.named or self._of(url) is not None

    def _of(self, url: httpx.URL) -> Any:
        if self.named:
            return self._proxy
        return of_environment(url.scheme, url.host, url.port or _DEFAULT_PORTS.get(url.scheme, 0))


class Proxies(_Wanted, httpx.BaseTransport):
    """For threads. A child of a fork makes connections of its own."""

    def __init__(self, proxy: Any, arguments: dict[str, Any]) -> None:
        super().__init__(proxy, arguments)
        self._made: dict[tuple[int, Any], httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request by its proxy."""
        proxy = self._of(request.url)
        key = os.getpid(), proxy
        made = self._made.get(key)
        if made is None:
            # Of two threads that come first, one's is used; the other's has no connections.
            made = self._made.setdefault(key, httpx.HTTPTransport(proxy=proxy, **self._arguments))
        return made.handle_request(request)

    def close(self) -> None:
        """Closes the connections."""
        for (process, _), made in self._made.items():
            if process == os.getpid():
                made.close()


class AsyncProxies(_Wanted, httpx.AsyncBaseTransport):
    """For tasks."""

    def __init__(self, proxy: Any, arguments: dict[str, Any]) -> None:
        super().__init__(proxy, arguments)
        self._made: dict[Any, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request by its proxy."""
        proxy = self._of(request.url)
        if proxy not in self._made:
            self._made[proxy] = httpx.AsyncHTTPTransport(proxy=proxy, **self._arguments)
        return await self._made[proxy].handle_async_request(request)

    async def aclose(self) -> None:
        """Closes the connections."""
        for made in self._made.values():
            await made.aclose()


def are_wanted(proxy: Any, arguments: dict[str, Any]) -> bool:
    """Whether a client with that `proxy` has any."""
    if proxy is not None:
        return True
    return bool(arguments.get("trust_env", True)) and any(
        getproxies().get(scheme) for scheme in ("http", "https", "all")
    )
