"""A reply that the mesh makes of its own, in the language of who asks.

Rules (Envoy, Utility::prepareLocalReply):

- A gRPC request is answered with status 200 and, without a body, grpc-status and grpc-message.
- Everybody else is given the text, `text/plain` unless an edit of the headers says otherwise; without a text
  there is no type either. After HEAD, and with a status that has no body, nothing is sent of it.
"""

from collections.abc import Callable, Iterable
from urllib.parse import quote

from meshlib.core.actions import Facts, Reply
from meshlib.core.request import Header, RequestHead
from meshlib.core.route.forward import is_grpc

_TYPE = b"content-type"
_PLAIN = (_TYPE, b"text/plain")
_GRPC = (_TYPE, b"application/grpc")
_GRPC_STATUSES = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
"""Of HTTP statuses; any other is 2, UNKNOWN."""
_WITHOUT_BODY = (204, 304)
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""What stays as it is in a grpc-message (gRPC over HTTP/2, Responses)."""

Edit = Callable[[Iterable[Header]], Iterable[Header]]


def grpc_status_of(status: int) -> int:
    """What an HTTP status reads as (gRPC, "HTTP to gRPC Status Code Mapping")."""
    return _GRPC_STATUSES.get(status, 2)


def local_reply(
    head: RequestHead,
    status: int,
    facts: Facts,
    body: bytes = b"",
    headers: tuple[Header, ...] = (),
    edit: Edit | None = None,
    grpc: int | None = None,
) -> Reply:
    """The reply to `head`. `edit` works on the headers; `grpc` None: what `status` reads as in gRPC."""
    made = tuple(headers if edit is None else edit(headers))
    if is_grpc(head):
        number = grpc_status_of(status) if grpc is None else grpc
        told = [_GRPC, (b"grpc-status", b"%d" % number)]
        if body and head.method != "HEAD":
            told.append((b"grpc-message", quote(body, safe=_PRINTABLE).encode()))
        return Reply(200, facts, (*_without_type(made), *told))
    if not body:
        made = _without_type(made)
    elif all(name.lower() != _TYPE for name, _ in made):
        made = (*made, _PLAIN)
    silent = head.method == "HEAD" or status in _WITHOUT_BODY
    return Reply(status, facts, made, b"" if silent else body)


def _without_type(headers: tuple[Header, ...]) -> tuple[Header, ...]:
    return tuple(header for header in headers if header[0].lower() != _TYPE)
