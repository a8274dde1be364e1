"""An ASGI application of WebSockets: it says who calls, then gives back what it is sent."""

from typing import Any


async def app(scope: Any, receive: Any, send: Any) -> None:
    """For `meshlib serve`."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": scope["state"]["mesh"].principal})
    while (message := await receive())["type"] == "websocket.receive":
        told = {name: message[name] for name in ("text", "bytes") if message.get(name) is not None}
        await send({"type": "websocket.send", **told})
