"""The adapter: where a session asks for a request to be sent, the mesh sends those to `http://`.

Rules:

- What the session does around it stays requests': redirects, cookies, auth, hooks, decoding.
- A proxy (`proxies`, HTTP_PROXY, HTTPS_PROXY) takes what goes to hosts that the mesh does not know, as
  requests sends it, and nothing else.
- `https://` goes out as requests sends it, on connections by the mesh's `tls` rules, unless
  outboundTrafficPolicy keeps unknown hosts in.
"""

import functools
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import requests
from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import select_proxy
from urllib3.util import Timeout

import meshlib
from meshlib.core.actions import Facts
from meshlib.dataplane.body import Source
from meshlib.dataplane.drive import FlightFailed
from meshlib.dataplane.exchange import DEFAULT_PORTS, Request, Sender
from meshlib.dataplane.http.limits import NO_TIMEOUTS, OwnTimeouts, TooSlow
from meshlib.dataplane.http.syntax import Unsendable
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ControlError
from meshlib_requests.errors import of_connection, of_control, of_failure, of_own
from meshlib_requests.prepare import NORMAL
from meshlib_requests.response import Response
from meshlib_urllib3.request import bytes_of, source_of
from meshlib_urllib3.response import Received
from meshlib_urllib3.response import facts as facts_of_raw
from meshlib_urllib3.secure import SecurePool

BLOCK = 16 * 1024
"""Bytes of a file that are read at a time, as urllib3 does."""


class Adapter(HTTPAdapter):
    """For `session.mount("http://", …)`, and for `https://` too, where outboundTrafficPolicy is to hold."""

    def __init__(self, mesh: Mesh | None = None, **arguments: Any) -> None:
        """`mesh` None: the process's own. Other arguments are HTTPAdapter's and for what does not go through
        the mesh: that has its own retries and pools.
        """
        super().__init__(**arguments)
        self.sender = Sender(mesh or meshlib.default)

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        """Sends one request. Errors: see `meshlib_requests.errors`."""
        url = request.url or ""
        if proxies and (proxy := select_proxy(url, proxies)) and not self._leaves(request, url, proxy):
            proxies = None
        if url[:5].lower() == "http:" and not (proxies and select_proxy(url, proxies)):
            self.add_headers(
                request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
            )
            return self._send(request, url, timeout)
        try:
            self.sender.admit(_asked(request, url, b"", NO_TIMEOUTS))
        except FlightFailed as error:
            raise of_failure(error, request) from None
        try:
            return super().send(request, stream, timeout, verify, cert, proxies)
        except requests.ConnectionError as error:
            raise of_connection(error, request) from None

    def init_poolmanager(self, *args: Any, **arguments: Any) -> None:
        """As HTTPAdapter's; connections for https:// follow the mesh's `tls` rules."""
        super().init_poolmanager(*args, **arguments)
        self.poolmanager.pool_classes_by_scheme = {
            **self.poolmanager.pool_classes_by_scheme,
            "https": functools.partial(SecurePool, lambda: self.sender.mesh),  # type: ignore[dict-item]
        }

    def _leaves(self, request: PreparedRequest, url: str, proxy: str) -> bool:
        try:
            return self.sender.leaves(_asked(request, url, b"", NO_TIMEOUTS), told=_is_named(proxy))
        except ControlError as error:
            raise of_control(error, request) from error

    def _send(self, request: PreparedRequest, url: str, timeout: Any) -> requests.Response:
        def translate(error: FlightFailed | TooSlow) -> Exception:
            return of_failure(error, request) if isinstance(error, FlightFailed) else of_own(error, request)

        try:
            answer = self.sender.send(_asked(request, url, _source(request.body), _own_timeouts(timeout)))
        except (FlightFailed, TooSlow) as error:
            raise translate(error) from None
        except Unsendable as error:
            raise of_own(error, request) from None
        except ControlError as error:
            raise of_control(error, request) from error
        except OSError as error:  # of the application's body
            raise requests.ConnectionError(error, request=request) from error
        raw = Received(
            answer, translate, decode_content=False, request_method=request.method, request_url=url
        )
        return self.build_response(request, raw)

    def build_response(self, req: PreparedRequest, resp: Any) -> requests.Response:
        """A response of what was received."""
        return Response(req, resp, self) if isinstance(resp, Received) else super().build_response(req, resp)

    def close(self) -> None:
        """Closes the connections; the mesh stays."""
        self.sender.close()
        super().close()


def _asked(request: PreparedRequest, url: str, source: Source, own: OwnTimeouts) -> Request:
    if (found := NORMAL.fullmatch(url)) is not None:
        host, number, target = found.groups()
        scheme, port = "http", int(number or 80)
        netloc = f"{host}:{number}" if number else host
    else:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname or ""
        port, netloc = parts.port or DEFAULT_PORTS.get(scheme, 80), parts.netloc.rpartition("@")[2]
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    said = request.headers
    # Its own iterator takes many times as long.
    headers = said._store.values() if type(said) is CaseInsensitiveDict else said.items()  # noqa: SLF001
    return Request(
        request.method or "GET",
        scheme,
        (host, port),
        netloc,
        target,
        [(bytes_of(name), bytes_of(value)) for name, value in headers],
        source,
        own,
    )


def _source(body: Any) -> Source:
    if body is None:
        return b""
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    if hasattr(body, "read"):
        return source_of(iter(lambda: body.read(BLOCK), type(body.read(0))()))
    return source_of(body)


def _own_timeouts(timeout: Any) -> OwnTimeouts:
    """A write may take as long as it takes to connect."""
    if timeout is None:
        return NO_TIMEOUTS
    if isinstance(timeout, Timeout):
        connect, read = timeout.connect_timeout, timeout._read  # noqa: SLF001
        connect = Timeout.resolve_default_timeout(connect)
        read = Timeout.resolve_default_timeout(read)
        if isinstance(timeout.total, int | float):
            read = timeout.total if read is None else min(read, timeout.total)
    elif isinstance(timeout, tuple):
        try:
            connect, read = timeout
        except ValueError:
            raise ValueError(
                f"Invalid timeout {timeout}. Pass a (connect, read) timeout tuple, "
                "or a single float to set both timeouts to the same value."
            ) from None
    else:
        connect = read = timeout
    return OwnTimeouts(connect, read, connect, None)


def _is_named(proxy: str) -> bool:
    """Whether it is the application that wants this proxy, and not the environment."""
    return proxy not in getproxies().values()


def facts(response: requests.Response) -> Facts | None:
    """What the mesh knows of a response; None: it did not route it."""
    return facts_of_raw(response.raw)
