"""ASGI middleware: policy, the caller, and what travels on."""

import asyncio
from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import quote

import meshlib
from meshlib.core.actions import Facts, Reply
from meshlib.core.authz.opinion import Told, answered
from meshlib.core.authz.path import beneath, given
from meshlib.core.caller import Caller
from meshlib.core.framing import HTTP2, ambiguous
from meshlib.core.inbound import Admitted
from meshlib.core.request import Header, RequestHead
from meshlib.dataplane import context
from meshlib.dataplane.gate import Gate, Gates
from meshlib.dataplane.telemetry.inbound import Inbound
from meshlib_asgi.body import Body
from meshlib_asgi.peers import Application, Receive, Scope, Send, peer_of
from meshlib_asgi.watching import receiving, sending, until_sent, watch

_SCHEMES = {"ws": "http", "wss": "https"}
CALLER = "meshlib.caller"
"""Where in the scope it is known who was let in."""


class MeshMiddleware:
    """Wraps an ASGI application. Lifespan events pass through, and requests that the mesh let in already."""

    def __init__(self, app: Application, gate: Gate | None = None, *, port: int | None = None) -> None:
        """`gate` None: of the process's own mesh at `port`; that None: the port that the server says.

        The policies are those of the workload's port, so behind a port mapping `port` must be given.
        """
        self.app = app
        self._gates = Gates(gate, port, meshlib.default)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. ValueError: a kind of scope that the mesh has no policies for."""
        kind = scope["type"]
        if kind == "lifespan" or known(scope) is not None:
            await self.app(scope, receive, send)
            return
        if kind not in ("http", "websocket"):
            raise ValueError(
                f"scope type {kind!r}: the mesh judges http and websocket, and lets in nothing else"
            )
        gate = self._gates.at(port_of(scope))
        await gate.aprepare()
        head = gate.identified(head_of(scope))
        peer = peer_of(scope, gate.principal)
        watched = watch(gate.mesh.telemetry, scope, head, peer, gate.port)
        if watched is not None:
            receive = receiving(receive, watched)
        body = Body(scope, receive)
        verdict = unclear(scope, head) or await gate.aadmit(head, peer, body.read)
        if isinstance(verdict, Reply):
            await refuse(verdict, scope, receive, send)
            if watched is not None:
                watched.refused(verdict)
            return
        if not tell(scope, verdict, head):
            outside = Reply(404, Facts(detail="path_outside_of_application"))
            await refuse(outside, scope, receive, send)
            if watched is not None:
                watched.refused(outside)
            return
        if verdict.response_headers:
            send = _adding(verdict.response_headers, send)
        if body.begun:
            receive = body.receive
        handed = gate.handed(verdict, watched)
        if handed.wait is not None:
            send = until_sent(send, handed.wait)
        try:
            with context.entered(handed):
                if watched is None:
                    await self.app(scope, receive, send)
                else:
                    await self._watched(scope, receive, send, watched)
        finally:
            handed.served()

    async def _watched(self, scope: Scope, receive: Receive, send: Send, watched: Inbound) -> None:
        try:
            await self.app(scope, receive, sending(send, watched))
        except asyncio.CancelledError:
            watched.left()
            raise
        finally:
            # After a whole response this does nothing.
            watched.broken()


def head_of(scope: Scope) -> RequestHead:
    """The request as it came. Several hosts are joined with a comma; of HTTP/2 one may stand there twice."""
    hosts: list[bytes] = []
    headers: list[Header] = []
    for header in scope["headers"]:
        if header[0] == b"host":
            hosts.append(header[1])
        else:
            headers.append(header)
    if len(hosts) > 1 and _version(scope) in HTTP2:
        hosts = list(dict.fromkeys(hosts))
    authority = b",".join(hosts).decode("latin-1")
    raw = scope.get("raw_path")
    path: str = raw.decode("latin-1") if raw else quote(scope["path"], safe="/:@!$&'()*+,;=~-._")
    query = scope.get("query_string")
    if query and "?" not in path:
        path = f"{path}?{query.decode('latin-1')}"
    scheme: str = scope.get("scheme", "http")
    return RequestHead(scope.get("method", "GET"), _SCHEMES.get(scheme, scheme), authority, path, headers)


def known(scope: Scope) -> Caller | None:
    """Who was let in already, by a middleware around this one; None: nobody yet."""
    found = scope.get(CALLER)
    return found if isinstance(found, Caller) else None


def unclear(scope: Scope, head: RequestHead) -> Reply | None:
    """The answer to a request that others may read otherwise; None: nobody does."""
    why = ambiguous(_version(scope), head)
    return Reply(400, Facts(detail=why), ((b"connection", b"close"),)) if why else None


def _version(scope: Scope) -> str:
    found: str = scope.get("http_version", "1.1")
    return "1.0" if found == "1" else found  # as granian writes it


def tell(scope: Scope, admitted: Admitted, head: RequestHead) -> bool:
    """Puts into the scope who calls, and path and headers as they were left by the mesh.

    A slash that was escaped was none to the policies, so it is none to the application: it stays escaped.
    False: the path led out of the application's own part of the server, as `/app/../admin` does.
    """
    scope[CALLER] = admitted.caller
    # A state of its own: not every server makes one for each request.
    scope["state"] = {**(scope.get("state") or {}), "mesh": admitted.caller}
    # A list of its own, in each case: uvicorn with httptools adds trailers to its list, whenever they come.
    own = admitted.head
    host: list[Header] = [(b"host", own.authority.encode("latin-1"))] if own.authority else []
    scope["headers"] = [*host, *(own.headers if own is head else _lower(own.headers))]
    path = admitted.head.path
    if path == head.path and "%" not in path:
        return True
    bare, _, query = path.partition("?")
    scope["raw_path"], scope["query_string"] = bare.encode("latin-1"), query.encode("latin-1")
    scope["path"] = _readable(bare)
    root = scope.get("root_path") or ""
    return beneath(scope["path"], root) or not beneath(_readable(head.path.partition("?")[0]), root)


def _readable(path: str) -> str:
    return given(path).decode("utf-8", "replace")


def _lower(headers: Iterable[Header]) -> list[Header]:
    return [(name.lower(), value) for name, value in headers]


async def refuse(reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers for the application."""
    headers = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
    if _version(scope) in HTTP2:
        headers = [header for header in headers if header[0] != b"connection"]  # RFC 9113, 8.2.2
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008})
            return
        kind = "websocket.http.response"
    else:
        kind = "http.response"
    await send({"type": f"{kind}.start", "status": reply.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": reply.body})


def port_of(scope: Scope) -> int:
    """The port at which the request arrived; 0: the server does not say."""
    server = scope.get("server")
    return int(server[1] or 0) if server else 0


def _adding(told: Iterable[Told], send: Send) -> Send:
    async def adding(message: MutableMapping[str, Any]) -> None:
        if message["type"] in ("http.response.start", "websocket.accept"):
            message["headers"] = answered(message.get("headers", ()), told)
        await send(message)

    return adding
