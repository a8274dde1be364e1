"""An opening handshake of `websockets` as a request of the mesh, and what came of it for `websockets`.

- The mesh sends the request by its HTTP rules; the library sees the response that came in the end.
- A response that is no 101 is given to the library with its body, up to `LONGEST` bytes.
"""

from websockets.client import ClientProtocol
from websockets.datastructures import HeadersLike
from websockets.http11 import Request
from websockets.protocol import Event
from websockets.uri import WebSocketURI

from meshlib.dataplane import exchange
from meshlib.dataplane.drive import Answer
from meshlib.dataplane.http.syntax import SWITCHING
from meshlib_websockets.errors import flight_of

LONGEST = 1024 * 1024
"""Bytes of a body, as in `websockets`."""
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))


def request_of(
    protocol: ClientProtocol, additional: HeadersLike | None, user_agent: str | None
) -> tuple[Request, exchange.Request]:
    """What `websockets` would send, and the same for the mesh."""
    made = protocol.connect()
    if additional is not None:
        made.headers.update(additional)
    if user_agent is not None:
        made.headers.setdefault("User-Agent", user_agent)
    uri = protocol.uri
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in made.headers.raw_items()]
    netloc = f"[{uri.host}]" if ":" in uri.host else uri.host
    return made, exchange.Request("GET", "http", (uri.host, uri.port), netloc, made.path, headers)


def addressed(uri: WebSocketURI) -> exchange.Request:
    """A request to the same host, of which nothing else is known yet."""
    netloc = f"[{uri.host}]" if ":" in uri.host else uri.host
    scheme = "https" if uri.secure else "http"
    return exchange.Request("GET", scheme, (uri.host, uri.port), netloc, uri.resource_name, ())


def answered(protocol: ClientProtocol, answer: Answer, body: bytes) -> list[Event]:
    """Tells `websockets` of the response; the events that it makes of it. InvalidHandshake, with `flight`."""
    headers = list(answer.headers)
    if answer.status != SWITCHING:
        headers = [header for header in headers if header[0].lower() not in _FRAMING]
        headers.append((b"Content-Length", b"%d" % len(body)))
    lines = [b"HTTP/1.1 %d %b" % (answer.status, answer.reason), *(b"%b: %b" % header for header in headers)]
    protocol.receive_data(b"\r\n".join((*lines, b"", b"")) + body)
    events = protocol.events_received()
    if protocol.handshake_exc is not None:
        protocol.handshake_exc.flight = flight_of(answer.facts)  # type: ignore[attr-defined]
        raise protocol.handshake_exc
    return events
