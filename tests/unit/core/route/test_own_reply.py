"""Headers of replies that a rule gives by itself."""

import pytest

from meshlib.core.request import RequestHead
from meshlib.core.route.reply import OwnReply, own_reply
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.xds import pb


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, "hello", [(b"content-type", b"text/plain")]),
        (200, "", []),
        (201, "hi", [(b"content-type", b"text/plain"), (b"location", b"http://h.example/a?q=1")]),
        (304, "", [(b"location", b"http://h.example/a?q=1")]),
        (403, "", []),
    ],
)
def test_direct_responses(status: int, body: str, headers: list[tuple[bytes, bytes]]) -> None:
    action = {"status": status, "body": {"inline_string": body}}
    host = {"name": "h", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": action}]}
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, {"name": "r", "virtual_hosts": [host]}))
    route = table.hosts[0].routes[0]
    head = RequestHead("GET", "http", "h.example", "/a?q=1", [])
    assert own_reply(route, route.action, head) == OwnReply(
        status, "direct response of a route without a name", tuple(headers), body.encode()
    )
