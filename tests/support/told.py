"""What the handlers of served test applications answer with."""

import os
from collections.abc import Mapping
from typing import Any

NAMES = ("end-user", "x-request-id", "traceparent")
BACK = "http://back:9080/seen"


def told(caller: Any, headers: Mapping[str, str]) -> dict[str, Any]:
    """Who called, with which headers, and which process answers."""
    return {
        "caller": caller.service_account,
        "headers": {name: headers.get(name) for name in NAMES},
        "process": os.getpid(),
    }
