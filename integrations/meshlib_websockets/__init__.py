"""The `websockets` library in the mesh: its own connections, whose opening handshake the mesh routes.

async with meshlib_websockets.connect("ws://reviews:9080/live") as websocket:
    await websocket.send("hello")

For threads there is `meshlib_websockets.sync`.
"""

from meshlib_websockets.tasks import connect

__all__ = ["connect"]
