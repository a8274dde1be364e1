"""An ASGI application that tells what it was given: who called, the path and the headers."""

import json
import os
from typing import Any

from meshlib_asgi import MeshMiddleware


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body whole; answers in JSON."""
    if scope["type"] != "http":
        return
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        size += len(event.get("body", b""))
        if not event.get("more_body"):
            break
    caller = scope.get("state", {}).get("mesh")
    told = {
        "principal": caller.principal if caller else None,
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode("latin-1"),
        "size": size,
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
    }
    body = json.dumps(told).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


met = MeshMiddleware(app, port=int(os.environ.get("PORT", "0")))
