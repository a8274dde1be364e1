"""What a WSGI application is sent and answers, counted for telemetry."""

from collections.abc import Callable
from typing import Any

from meshlib.core.request import Peer, RequestHead
from meshlib.dataplane.telemetry.inbound import Inbound
from meshlib.dataplane.telemetry.watch import Telemetry
from meshlib_wsgi.peers import Environ


def watch(
    telemetry: Telemetry,
    environ: Environ,
    head: RequestHead,
    peer: Peer,
    port: int,
    protocol: str | None = None,
) -> Inbound | None:
    """What watches a request; None: nobody wants to be told. `protocol` None: what the environ says.

    Of its body is known what the caller announced: what the application has read of it, only the server
    knows.
    """
    if not telemetry.wants(port):
        return None
    made = Inbound(telemetry, head, peer, port, protocol or str(environ.get("SERVER_PROTOCOL", "HTTP/1.1")))
    length = str(environ.get("CONTENT_LENGTH") or "0")
    made.received = int(length) if length.isascii() and length.isdecimal() else 0
    return made


def starting(start_response: Callable[..., Any], watched: Inbound) -> Callable[..., Any]:
    """`start_response`, and what it is given is told."""

    def start(status: str, given: list[tuple[str, str]], *rest: Any) -> Any:
        code = status[:3]
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given]
        watched.answered(int(code) if code.isdecimal() else 0, encoded)
        return start_response(status, given, *rest)

    return start


def whole(body: Any, watched: Inbound) -> None:
    """A body that the server sends as it is: a list is counted, of a file its announced length is."""
    if isinstance(body, (list, tuple)):
        watched.sent = sum(len(chunk) for chunk in body)
    else:
        watched.sent = watched.announced
    watched.end()
