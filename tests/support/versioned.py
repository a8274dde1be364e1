"""A WSGI application that says which version of a service it is, who called and what it was sent.

`x-fail: 2` has the first two requests of an `x-id` fail; `x-slow: 1` takes a second. What it hears is written
down in a file (HEARD), a line a request: `version id host`.
"""

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshlib_wsgi import CALLER


def versioned(version: str, heard: Path) -> Callable[[dict[str, Any], Any], list[bytes]]:
    """The application of one version."""
    counts: Counter[str] = Counter()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        which = environ.get("HTTP_X_ID", "")
        counts[which] += 1
        with heard.open("a") as file:
            file.write(f"{version} {which} {environ.get('HTTP_HOST', '')}\n")
        if slow := environ.get("HTTP_X_SLOW"):
            threading.Event().wait(float(slow))
        failing = counts[which] <= int(environ.get("HTTP_X_FAIL", "0"))
        caller = environ.get(CALLER)
        certificate = environ.get("HTTP_X_FORWARDED_CLIENT_CERT", "")
        told = {
            "version": version,
            # In the process the mesh says it, behind a node a header.
            "caller": caller.principal if caller else "".join(re.findall("URI=([^;,]*)", certificate)),
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "headers": {
                name.removeprefix("HTTP_").replace("_", "-").lower(): value
                for name, value in environ.items()
                if name.startswith("HTTP_")
            },
        }
        body = json.dumps(told).encode()
        status = "500 Internal Server Error" if failing else "200 OK"
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return app


def _own() -> Callable[[dict[str, Any], Any], list[bytes]]:
    labels = dict(one.split("=") for one in os.environ["MESHLIB_LABELS"].split(","))
    return versioned(labels["version"], Path(os.environ["HEARD"]))


app = _own() if "HEARD" in os.environ else None
