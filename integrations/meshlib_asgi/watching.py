"""What an ASGI application receives and sends: counted for telemetry, and looked at for its end."""

from collections.abc import MutableMapping
from typing import Any

from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane.context import Wait
from meshlib.dataplane.telemetry.inbound import Inbound
from meshlib.dataplane.telemetry.watch import Telemetry
from meshlib_asgi.peers import Receive, Scope, Send


def watch(telemetry: Telemetry, scope: Scope, head: RequestHead, peer: Peer, port: int) -> Inbound | None:
    """What watches a request; None: nobody wants to be told, or it is a WebSocket, which is no request."""
    if scope["type"] != "http" or not telemetry.wants(port):
        return None
    version = scope.get("http_version", "1.1")
    return Inbound(telemetry, head, peer, port, f"HTTP/{version}")


def receiving(receive: Receive, watched: Inbound) -> Receive:
    """`receive`, and what it gave is counted."""

    async def counted() -> MutableMapping[str, Any]:
        message = await receive()
        if message["type"] == "http.request":
            watched.received += len(message.get("body", b""))
        elif message["type"] == "http.disconnect":
            watched.left()
        return message

    return counted


def sending(send: Send, watched: Inbound) -> Send:
    """`send`, and what it is given is counted; the last piece ends the request."""
    trailers = False

    async def counted(message: MutableMapping[str, Any]) -> None:
        nonlocal trailers
        kind = message["type"]
        if kind == "http.response.start":
            trailers = bool(message.get("trailers", False))
            watched.answered(message["status"], list(message.get("headers", ())))
        elif kind == "http.response.body":
            watched.sent += len(message.get("body", b""))
        elif kind == "http.response.trailers":
            watched.trailers(message.get("headers", ()))
        await send(message)
        last = kind == "http.response.trailers" if trailers else kind == "http.response.body"
        if last and not message.get("more_trailers" if trailers else "more_body", False):
            watched.end()

    return counted


def until_sent(send: Send, wait: Wait) -> Send:
    """`send`, and with the response's last piece the caller's wait ends, or when a WebSocket is accepted."""

    async def sent(message: MutableMapping[str, Any]) -> None:
        await send(message)
        kind = message["type"]
        if kind == "websocket.accept" or (
            kind == "http.response.body" and not message.get("more_body", False)
        ):
            wait.end()

    return sent
