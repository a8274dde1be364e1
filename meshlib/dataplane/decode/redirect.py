"""Envoy's RedirectAction and DirectResponseAction as core's."""

from typing import Any

from meshlib.core.route.match import PathMatch
from meshlib.core.route.rule import DirectResponse, Redirect
from meshlib.dataplane.decode.errors import Refused
from meshlib.dataplane.decode.rewrite import decode_rewrite

DEFAULT_MAX_BODY = 4096
"""Bytes of a direct response, unless the route configuration allows more (Envoy)."""
_STATUSES = (301, 302, 303, 307, 308)


def decode_redirect(message: Any, matched: PathMatch) -> Redirect:
    """An envoy.config.route.v3.RedirectAction."""
    if not 0 <= message.response_code < len(_STATUSES):
        raise Refused("response_code", f"{message.response_code} is unknown")
    if message.port_redirect > 65_535:
        raise Refused("port_redirect", f"{message.port_redirect} is no port")
    rewrite, words = decode_rewrite(message, matched)
    return Redirect(
        status=_STATUSES[message.response_code],
        scheme=message.scheme_redirect,
        https=message.https_redirect,
        host=message.host_redirect,
        port=message.port_redirect,
        path=message.path_redirect,
        rewrite=rewrite,
        rewrite_text=words,
        strip_query=message.strip_query,
    )


def decode_direct_response(message: Any, max_body: int, blocks: bool = False) -> DirectResponse:
    """An envoy.config.route.v3.DirectResponseAction with a body of at most `max_body` bytes.

    `blocks`: it is the one for hosts that the mesh does not know.
    """
    if not 200 <= message.status < 600:
        raise Refused("status", f"{message.status} is not from 200 to 599")
    if message.HasField("body_format"):
        raise Refused("body_format", "is not supported")
    which = message.body.WhichOneof("specifier")
    if which not in (None, "inline_bytes", "inline_string"):
        raise Refused(f"body.{which}", "is not supported: the body must be inline")
    body = message.body.inline_bytes or message.body.inline_string.encode()
    if len(body) > max_body:
        raise Refused("body", f"has {len(body)} bytes, at most {max_body} are allowed")
    return DirectResponse(message.status, body, blocks)
