"""The reply that a rule gives by itself: a redirect or a direct response, with its headers edited.

Rules (Envoy): a direct response with a body is `text/plain` unless an edit says otherwise; one of status
201 or 3xx names the request's own address in `location`. Templates in a redirect's response edits see the
path as the redirect rewrote it. Neither has a response flag; why it was given is told in words.
"""

from meshlib.core.request import Header, RequestHead
from meshlib.core.route.forward import incoming
from meshlib.core.route.redirect import location
from meshlib.core.route.rule import DirectResponse, Redirect, Route
from meshlib.core.route.table import without_port
from meshlib.values import dataclass


@dataclass(frozen=True, slots=True)
class OwnReply:
    """Status, why in one sentence, headers (no content-length) and body."""

    status: int
    detail: str
    headers: tuple[Header, ...]
    body: bytes = b""


def own_reply(route: Route, action: Redirect | DirectResponse, head: RequestHead) -> OwnReply:
    """What `route`, whose action this is, answers to `head`."""
    if isinstance(action, DirectResponse):
        plain = [(b"content-type", b"text/plain")] if action.body else []
        if action.status == 201 or 300 <= action.status < 400:
            plain.append((b"location", location(Redirect(), head).encode("latin-1")))
        headers = incoming(plain, action.status, head, route, None)
        return OwnReply(action.status, _why(route, action, head), headers, action.body)
    target = ((b"location", location(action, head).encode("latin-1")),)
    if action.rewrite is not None and (path := action.rewrite(head)):
        head = RequestHead(head.method, head.scheme, head.authority, path, head.headers)
    return OwnReply(
        action.status, _why(route, action, head), incoming(target, action.status, head, route, None)
    )


def _why(route: Route, action: Redirect | DirectResponse, head: RequestHead) -> str:
    if isinstance(action, DirectResponse) and action.blocks:
        return f"outboundTrafficPolicy REGISTRY_ONLY: {without_port(head.authority)} is not in the mesh"
    kind = "redirect" if isinstance(action, Redirect) else "direct response"
    name = f"route {route.name}" if route.name else "a route without a name"
    return f"{kind} of {str(route.origin) or name}"
