"""A PoolManager whose pools for `http://` send through the mesh.

Rules:

- What urllib3 does around a request stays urllib3's: redirects, Retry for statuses (`status_forcelist`) and
  for the application's own time-outs, `maxsize` with `block`, decoding.
- Retry does not repeat what the mesh says has failed: see `meshlib_urllib3.errors`.
- `https://` goes out as urllib3 sends it, on connections by the mesh's `tls` rules, unless
  outboundTrafficPolicy keeps unknown hosts in.
"""

import functools
from collections.abc import Mapping
from typing import Any

import urllib3
from urllib3.util import Timeout, parse_url
from urllib3.util.url import Url

import meshlib
from meshlib.dataplane.drive import FlightFailed
from meshlib.dataplane.exchange import Request, Sender
from meshlib.dataplane.http.limits import OwnTimeouts, TooSlow
from meshlib.dataplane.http.syntax import Unsendable
from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ControlError
from meshlib_urllib3.errors import of_control, of_failure, of_own
from meshlib_urllib3.request import framed
from meshlib_urllib3.response import Received
from meshlib_urllib3.secure import SecurePool


class PoolManager(urllib3.PoolManager):
    """A urllib3.PoolManager in the mesh. Thread-safe."""

    def __init__(
        self,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        mesh: Mesh | None = None,
        **arguments: Any,
    ) -> None:
        """`mesh` None: the process's own. All other arguments are urllib3.PoolManager's."""
        super().__init__(num_pools, headers, **arguments)
        self._mesh = mesh
        self.sender = Sender(mesh or meshlib.default)
        self.pool_classes_by_scheme = {
            **self.pool_classes_by_scheme,
            "http": functools.partial(Pool, self),  # type: ignore[dict-item]
            "https": functools.partial(SecurePool, lambda: self.sender.mesh),  # type: ignore[dict-item]
        }

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **arguments: Any
    ) -> urllib3.BaseHTTPResponse:
        """As urllib3's. Errors: see `meshlib_urllib3.errors`."""
        if url[:6].lower() == "https:":
            self._admit(parse_url(url), url)
        return super().urlopen(method, url, redirect, **arguments)

    def _admit(self, parsed: Url, url: str) -> None:
        address = parsed.host or "", parsed.port or 443
        try:
            self.sender.admit(Request("GET", "https", address, parsed.netloc or "", "/", ()))
        except FlightFailed as error:
            raise of_failure(error, None, url) from None

    def clear(self) -> None:
        """Closes the connections that nobody uses."""
        super().clear()
        self.sender.close()
        self.sender = Sender(self._mesh or meshlib.default)


class Pool(urllib3.HTTPConnectionPool):
    """The requests to one `http://` host and port. Its connections are places; the sender has real ones."""

    def __init__(self, manager: PoolManager, host: str, port: int | None = None, **arguments: Any) -> None:
        super().__init__(host, port, **arguments)
        self._manager = manager

    def urlopen(self, method: str, url: str, *args: Any, **arguments: Any) -> urllib3.BaseHTTPResponse:
        """As urllib3's. Errors: see `meshlib_urllib3.errors`."""
        try:
            return super().urlopen(method, url, *args, **arguments)
        except FlightFailed as error:
            raise of_failure(error, self, url) from None
        except ControlError as error:
            raise of_control(error, self, url) from error

    def _make_request(
        self,
        conn: Any,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: urllib3.Retry | None = None,
        timeout: Any = None,
        chunked: bool = False,
        response_conn: Any = None,
        preload_content: bool = True,
        decode_content: bool = True,
        enforce_content_length: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        self.num_requests += 1
        found, source = framed(
            method, body, headers or {}, chunked=chunked, blocksize=self.conn_kw.get("blocksize", 16384)
        )
        port = self.port or 80
        netloc = self.host if port == 80 else f"{self.host}:{port}"
        asked = Request(
            method, "http", (self.host, port), netloc, url, found, source, self._own_timeouts(timeout)
        )
        try:
            answer = self._manager.sender.send(asked)
            made = Received(
                answer,
                decode_content=decode_content,
                pool=self,
                connection=response_conn,
                retries=retries,
                enforce_content_length=enforce_content_length,
                request_method=method,
                request_url=url,
            )
            if preload_content:
                made.preload(decode_content)
        except (TooSlow, Unsendable) as error:
            raise of_own(error, self, url) from None
        made.translate = functools.partial(self._translate, url)
        return made

    def _translate(self, url: str, error: FlightFailed | TooSlow) -> Exception:
        if isinstance(error, FlightFailed):
            return of_failure(error, self, url)
        return of_own(error, self, url)

    def _own_timeouts(self, timeout: Any) -> OwnTimeouts:
        """urllib3's `total` bounds each of both; a write may take as long as it takes to connect."""
        found: Timeout = self._get_timeout(timeout)
        connect = Timeout.resolve_default_timeout(found.connect_timeout)
        read, total = Timeout.resolve_default_timeout(found._read), found.total  # noqa: SLF001
        if isinstance(total, int | float):
            read = total if read is None else min(read, total)
        return OwnTimeouts(connect, read, connect, None)
