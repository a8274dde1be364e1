"""Connections for https:// URLs: urllib3's own, on sockets that the mesh's `tls` rules lead."""

import functools
import socket
from collections.abc import Callable
from typing import Any

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.util import Timeout

from meshlib.dataplane.mesh import Mesh
from meshlib.errors import ConnectFailed
from meshlib_urllib3.errors import of_connection

FindMesh = Callable[[], Mesh]


class SecurePool(urllib3.HTTPSConnectionPool):
    """The requests to one `https://` host and port."""

    def __init__(self, find: FindMesh, host: str, port: int | None = None, **arguments: Any) -> None:
        """`find` gives the mesh."""
        super().__init__(host, port, **arguments)
        if self.proxy is None:
            self.ConnectionCls = functools.partial(_Connection, find)  # type: ignore[assignment]

    def urlopen(self, method: str, url: str, *args: Any, **arguments: Any) -> urllib3.BaseHTTPResponse:
        """As urllib3's. Errors: see `meshlib_urllib3.errors`."""
        try:
            return super().urlopen(method, url, *args, **arguments)
        except _NotLinked as error:
            raise of_connection(error.why, self, url) from error.why


class _NotLinked(Exception):
    """The mesh made no connection: urllib3's Retry does not begin again."""

    def __init__(self, why: ConnectFailed) -> None:
        super().__init__(str(why))
        self.why = why


class _Connection(HTTPSConnection):
    def __init__(self, find: FindMesh, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._find = find

    def _new_conn(self) -> socket.socket:
        from meshlib.dataplane.tcp.dial import dial, is_ruled

        mesh = self._find()
        if not is_ruled(mesh, self.host, self.port):
            return super()._new_conn()
        name = getattr(self, "server_hostname", None) or self.host
        try:
            return dial(mesh, self.host, self.port, name, Timeout.resolve_default_timeout(self.timeout))
        except ConnectFailed as error:
            raise _NotLinked(error) from error
