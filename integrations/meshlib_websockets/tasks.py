"""`connect` for asyncio: `websockets.asyncio.client.connect`, whose ws:// connections the mesh makes.

`wss://` is the application's own encryption: it goes out as `websockets` does it, on a connection by the
mesh's `tls` rules. A connection of the application's own (`sock`, `host`, `port`, `unix`) is left to it. A
proxy (`proxy`, or of the environment) takes what goes to hosts that the mesh does not know, and nothing else.
"""

import weakref
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as _connect
from websockets.datastructures import HeadersLike
from websockets.http11 import USER_AGENT
from websockets.proxy import get_proxy

import meshlib
from meshlib.core.actions import Facts
from meshlib.dataplane.drive import Answer, AsyncBody, FlightFailed
from meshlib.dataplane.exchange import AsyncSender
from meshlib.dataplane.http.syntax import SWITCHING
from meshlib.dataplane.mesh import Mesh
from meshlib.dataplane.tcp.dial import adial, ais_ruled
from meshlib.dataplane.tcp.errors import of_mesh
from meshlib.errors import Closed, ControlError
from meshlib_websockets.errors import of_failure
from meshlib_websockets.handshake import LONGEST, addressed, answered, request_of

_OWN = ("sock", "host", "port", "unix")
_of_process = AsyncSender(meshlib.default, 0.0)
_senders: "weakref.WeakKeyDictionary[Mesh, AsyncSender]" = weakref.WeakKeyDictionary()


def sender_of(mesh: Mesh | None) -> AsyncSender:
    """One a mesh: all connections to a cluster count together."""
    if mesh is None:
        return _of_process
    return _senders.get(mesh) or _senders.setdefault(mesh, AsyncSender(mesh, 0.0))


class connect(_connect):  # noqa: N801 - its name there
    """As `websockets.asyncio.client.connect`, with all of its arguments."""

    def __init__(self, uri: str, *, mesh: Mesh | None = None, **arguments: Any) -> None:
        """`mesh`: None is the process's own."""
        self._sender = sender_of(mesh)
        self._own = any(arguments.get(name) for name in _OWN)
        kind = arguments.pop("create_connection", None) or ClientConnection
        arguments["create_connection"] = type("MeshConnection", (_Routed, kind), {})
        super().__init__(uri, **arguments)

    async def open_tcp_connection(self) -> ClientConnection:
        """Nothing yet, where the mesh makes it: that depends on the request."""
        if self._own:
            return await super().open_tcp_connection()
        leaves, proxy = await self._leaves(), self.proxy
        if self.ws_uri.secure or leaves:
            self.proxy = proxy if leaves else None
            try:
                if leaves:
                    return await super().open_tcp_connection()
                return await self._open_secure()
            finally:
                self.proxy = proxy
        made: Any = self.factory(self.ws_uri)
        made.transport, made.sender = _NONE, self._sender
        return made  # type: ignore[no-any-return]

    async def _open_secure(self) -> ClientConnection:
        """A connection that is encrypted, by the mesh's `tls` rules."""
        uri, given = self.ws_uri, self.create_connection_kwargs
        try:
            mesh = self._sender.mesh
            if not await ais_ruled(mesh, uri.host, uri.port):
                return await super().open_tcp_connection()
            made = await adial(mesh, uri.host, uri.port, given.get("server_hostname") or uri.host)
        except (ControlError, Closed) as error:
            raise of_mesh(error) from error
        self.create_connection_kwargs = {**given, "sock": made}
        try:
            return await super().open_tcp_connection()
        except BaseException:
            made.close()
            raise
        finally:
            self.create_connection_kwargs = given

    async def _leaves(self) -> bool:
        """Whether there is a proxy, which may take it."""
        if (get_proxy(self.ws_uri) if self.proxy is True else self.proxy) is None:
            return False
        try:
            return await self._sender.leaves(addressed(self.ws_uri), told=self.proxy is not True)
        except (ControlError, Closed) as error:
            raise of_mesh(error) from error


class _NoTransport:
    """Of a connection that is not made."""

    def abort(self) -> None:
        """Nothing is there."""


_NONE: Any = _NoTransport()


class _Routed(ClientConnection):
    sender: AsyncSender | None = None
    facts: Facts | None = None
    """What the mesh decided; None: it was not asked."""

    async def handshake(
        self, additional_headers: HeadersLike | None = None, user_agent_header: str | None = USER_AGENT
    ) -> None:
        """Sends the request through the mesh. Errors: see `meshlib_websockets.errors`."""
        if self.sender is None:
            await super().handshake(additional_headers, user_agent_header)
            return
        self.request, asked = request_of(self.protocol, additional_headers, user_agent_header)
        try:
            answer = await self.sender.send(asked)
            body = await _body_of(answer)
        except FlightFailed as error:
            raise of_failure(error) from None
        except (ControlError, Closed) as error:
            raise of_mesh(error) from error
        self.facts = answer.facts
        try:
            for event in answered(self.protocol, answer, body):
                self.process_event(event)
            assert isinstance(answer.body, AsyncBody)  # noqa: S101 - a 101 is never the mesh's own
            answer.body.upgraded().hand_over(self)
        except BaseException:
            if isinstance(answer.body, AsyncBody):
                answer.body.close()
            raise


async def _body_of(answer: Answer) -> bytes:
    body = answer.body
    if isinstance(body, bytes):
        return body
    found = b""
    if answer.status != SWITCHING and isinstance(body, AsyncBody):
        try:
            async for part in body:
                found += part
                if len(found) > LONGEST:
                    break
        finally:
            body.close()
    return found[:LONGEST]
