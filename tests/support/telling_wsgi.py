"""`support.telling` for WSGI."""

import json
import os
from typing import Any

from meshlib_wsgi import CALLER, MeshMiddleware


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Reads the body whole; answers in JSON."""
    size = len(environ["wsgi.input"].read())
    caller = environ.get(CALLER)
    headers = [
        [key.removeprefix("HTTP_").replace("_", "-").lower(), value]
        for key, value in environ.items()
        if key.startswith("HTTP_") or (key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    ]
    path, target = environ["PATH_INFO"], environ.get("RAW_URI")
    told = {
        "principal": caller.principal if caller else None,
        "method": environ["REQUEST_METHOD"],
        "path": path,
        "raw_path": path if target is None else target.partition("?")[0],
        "size": size,
        "headers": headers,
    }
    body = json.dumps(told).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


met = MeshMiddleware(app, port=int(os.environ.get("PORT", "0")))
