"""`connect` and `reconnect` for threads: those of `websockets.sync.client`, through the mesh.

As for asyncio, `wss://` and a socket of the application's own go out as `websockets` does it.
"""

import socket
import threading
import weakref
from typing import Any, cast

from websockets.client import ClientProtocol
from websockets.protocol import Event
from websockets.proxy import get_proxy
from websockets.sync import client
from websockets.sync.client import ClientConnection
from websockets.sync.utils import Deadline

import meshlib
from meshlib.core.actions import Facts
from meshlib.dataplane.drive import Answer, Body, FlightFailed
from meshlib.dataplane.exchange import Sender
from meshlib.dataplane.http.limits import OwnTimeouts, TooSlow
from meshlib.dataplane.http.syntax import SWITCHING
from meshlib.dataplane.http.upgrade import Upgraded
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.tcp.dial import dial, is_ruled
from meshlib.dataplane.tcp.errors import of_mesh
from meshlib.dataplane.tls_session import RECORD
from meshlib.errors import Closed, ControlError
from meshlib_websockets.errors import of_failure
from meshlib_websockets.handshake import LONGEST, addressed, answered, request_of

__all__ = ["connect", "reconnect"]
_of_process = Sender(meshlib.default, 0.0)
_senders: "weakref.WeakKeyDictionary[Mesh, Sender]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def sender_of(mesh: Mesh | None) -> Sender:
    """One a mesh: all connections to a cluster count together."""
    if mesh is None:
        return _of_process
    with _lock:
        return _senders.get(mesh) or _senders.setdefault(mesh, Sender(mesh, 0.0))


class reconnect(client.reconnect):  # noqa: N801 - its name there
    """As `websockets.sync.client.reconnect`, with all of its arguments."""

    def __init__(self, uri: str, *, mesh: Mesh | None = None, **arguments: Any) -> None:
        """`mesh`: None is the process's own."""
        self._sender = sender_of(mesh)
        super().__init__(uri, **arguments)
        self._own = self.sock is not None or bool(self.open_socket_kwargs)

    def open_connection(self, deadline: Deadline) -> ClientConnection:
        """One connection. Errors: see `meshlib_websockets.errors`."""
        if self._own:
            return super().open_connection(deadline)
        leaves, proxy = self._leaves(), self.proxy
        if self.ws_uri.secure or leaves:
            self.proxy = proxy if leaves else None
            try:
                return super().open_connection(deadline)
            finally:
                self.proxy = proxy
        protocol = ClientProtocol(self.ws_uri, **cast("Any", self.protocol_kwargs))
        request, asked = request_of(protocol, self.additional_headers, self.user_agent_header)
        left = deadline.timeout()
        asked.own = OwnTimeouts(left, left, left, left)
        try:
            answer = self._sender.send(asked)
            body = _body_of(answer)
        except FlightFailed as error:
            raise of_failure(error) from None
        except TooSlow as error:
            raise TimeoutError("timed out while waiting for handshake response") from error
        except (ControlError, Closed) as error:
            raise of_mesh(error) from error
        try:
            first = answered(protocol, answer, body)
            assert isinstance(answer.body, Body)  # noqa: S101 - a 101 is never the mesh's own
            made = _Socket(answer.body.upgraded(), first)
            kind = type("MeshConnection", (_Routed, self.create_connection), {})
            connection: _Routed = kind(made, protocol, **self.connection_kwargs)
            connection.request, connection.facts = request, answer.facts
            connection.response_rcvd.wait()
        except BaseException:
            if isinstance(answer.body, Body):
                answer.body.close()
            raise
        return connection

    def open_socket(self, deadline: Deadline) -> socket.socket:
        """A connection that is to be encrypted: by the mesh's `tls` rules, unless a proxy takes it."""
        uri = self.ws_uri
        if not self._own and self.proxy is None:
            try:
                mesh = self._sender.mesh
                if is_ruled(mesh, uri.host, uri.port):
                    made = dial(
                        mesh, uri.host, uri.port, self.server_hostname or uri.host, deadline.timeout()
                    )
                    made.settimeout(None)
                    return made
            except (ControlError, Closed) as error:
                raise of_mesh(error) from error
        return super().open_socket(deadline)

    def _leaves(self) -> bool:
        """Whether there is a proxy, which may take it."""
        if (get_proxy(self.ws_uri) if self.proxy is True else self.proxy) is None:
            return False
        try:
            return self._sender.leaves(addressed(self.ws_uri), told=self.proxy is not True)
        except (ControlError, Closed) as error:
            raise of_mesh(error) from error


def connect(uri: str, *, mesh: Mesh | None = None, legacy: bool | None = None, **arguments: Any) -> Any:
    """As `websockets.sync.client.connect`: a context manager that gives a connection, with all arguments."""
    made = reconnect(uri, mesh=mesh, **arguments)
    return made.connect() if legacy else made


class _Socket:
    """What `websockets` asks of a socket. Its bytes are those of an upgraded connection."""

    family = socket.AF_UNSPEC

    def __init__(self, upgraded: Upgraded, first: list[Event]) -> None:
        self.first = first
        """What the response was to the library."""
        self._upgraded = upgraded
        self._timeout: float | None = None

    def fileno(self) -> int:
        return self._upgraded.socket.fileno()

    def surplus(self) -> bytes:
        return self._upgraded.ready()

    def recv(self, most: int) -> bytes:
        # All that is decrypted, or nobody would wake for the rest.
        return self._upgraded.read(most + RECORD)

    def sendall(self, data: bytes) -> None:
        self._upgraded.write(data, self._timeout)

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def getsockname(self) -> Any:
        return self._upgraded.socket.getsockname()

    def getpeername(self) -> Any:
        return self._upgraded.socket.getpeername()

    def shutdown(self, how: int) -> None:
        self._upgraded.socket.shutdown(how)

    def close(self) -> None:
        self._upgraded.close()


class _Routed(ClientConnection):
    facts: Facts | None = None
    """What the mesh decided."""

    def recv_events(self) -> None:
        """What came with the response goes first."""
        made: Any = self.socket
        with self.protocol_mutex:
            for event in made.first:
                self.process_event(event)
        if surplus := made.surplus():
            with self.protocol_mutex:
                self.protocol.receive_data(surplus)
                for event in self.protocol.events_received():
                    self.process_event(event)
                self.send_data()
        super().recv_events()


def _body_of(answer: Answer) -> bytes:
    body = answer.body
    if isinstance(body, bytes):
        return body
    found = b""
    if answer.status != SWITCHING and isinstance(body, Body):
        try:
            for part in body:
                found += part
                if len(found) > LONGEST:
                    break
        finally:
            body.close()
    return found[:LONGEST]
