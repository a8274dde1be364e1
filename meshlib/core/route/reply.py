"""The reply that a rule gives by itself: a redirect or a direct response, with its headers edited.

Rules (Envoy): a direct response with a body is `text/plain` unless an edit says otherwise; one of status
201 or 3xx names the request's own address in `location`. Templates in a redirect's response edits see the
path as the redirect rewrote it.
"""

from dataclasses import dataclass

from meshlib.core.request import Header, RequestHead
from meshlib.core.route.forward import incoming
from meshlib.core.route.redirect import location
from meshlib.core.route.rule import DirectResponse, Redirect, Route


@dataclass(frozen=True, slots=True)
class OwnReply:
    """Status, headers (no content-length) and body."""

    status: int
    headers: tuple[Header, ...]
    body: bytes = b""


def own_reply(route: Route, action: Redirect | DirectResponse, head: RequestHead) -> OwnReply:
    """What `route`, whose action this is, answers to `head`."""
    if isinstance(action, DirectResponse):
        plain = [(b"content-type", b"text/plain")] if action.body else []
        if action.status == 201 or 300 <= action.status < 400:
            plain.append((b"location", location(Redirect(), head).encode("latin-1")))
        return OwnReply(action.status, incoming(plain, action.status, head, route, None), action.body)
    target = ((b"location", location(action, head).encode("latin-1")),)
    if action.rewrite is not None and (path := action.rewrite(head)):
        head = RequestHead(head.method, head.scheme, head.authority, path, head.headers)
    return OwnReply(action.status, incoming(target, action.status, head, route, None))
