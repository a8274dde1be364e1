"""HTTPDirectResponse as Envoy's DirectResponseAction."""

import base64
from typing import Any

from meshlib.control.istio.virtualservice import HTTPDirectResponse

MAX_BODY = 1024 * 1024
"""Bytes that a route configuration allows (Istio)."""


def direct_response(action: Any, said: HTTPDirectResponse) -> None:
    """Fills an envoy.config.route.v3.DirectResponseAction."""
    action.status = said.status
    if said.body is None:
        return
    if said.body.bytes is not None:
        action.body.inline_bytes = base64.b64decode(said.body.bytes)
    elif said.body.string:
        action.body.inline_string = said.body.string
