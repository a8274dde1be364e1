"""uvicorn's protocols with a bound for what comes before and after a request's body.

httptools has none of its own, and puts a header together anew for each piece of it that comes; h11's is for
heads that come in several pieces.

Rules (Envoy):

- A head has at most 100 headers, and at most 60 KiB of URL, names and values. A larger one is answered with
  431, and the connection is closed.
- What is no body (a head, trailers, what stands between two chunks) is read to 192 KiB at most.
- Trailers are not the request's headers: they come after it was judged. httptools makes no difference.
"""

from typing import Any

import h11
import httptools
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from meshlib.errors import ConfigError

MOST_BYTES = 60 * 1024
MOST_HEADERS = 100
_UNREAD = 64 * 1024
"""Bytes that a parser is fed before it is looked at: a whole head, with all that separates its parts."""
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def _too_large(url: bytes, headers: Any) -> bool:
    size = len(url) + sum(len(name) + len(value) for name, value in headers)
    return size > MOST_BYTES or len(headers) > MOST_HEADERS


class _Sized:
    """Stands before uvicorn's protocol among the bases."""

    transport: Any
    too_large = False

    def data_received(self, data: bytes) -> None:
        """In pieces, so that no more is kept than what is looked at."""
        for start in range(0, len(data), _UNREAD):
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            self.feed(data[start : start + _UNREAD] if len(data) > _UNREAD else data)

    def feed(self, data: bytes) -> None:
        """To uvicorn."""
        super().data_received(data)  # type: ignore[misc]

    def send_400_response(self, msg: str) -> None:
        """The answer to what can't be parsed, or not any more."""
        if self.too_large:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        else:
            super().send_400_response(msg)  # type: ignore[misc]


class _SizedHttpTools(_Sized, HttpToolsProtocol):
    _fed = 0
    """Bytes since the parser told of something that is kept elsewhere, with all of the piece that has it."""
    _piece = 0
    _head = True

    def feed(self, data: bytes) -> None:
        self._piece = len(data)
        self._fed += self._piece
        super().feed(data)
        if self._fed > 2 * _UNREAD and not self.transport.is_closing():
            self.too_large = True
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._fed, self._head = self._piece, True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        fed, self._fed, self._head = self._fed, 0, False
        if len(self.headers) > MOST_HEADERS or (fed > MOST_BYTES and _too_large(self.url, self.headers)):
            self.too_large = True
            raise httptools.HttpParserError("too large")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._fed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._fed = 0
        super().on_message_complete()


class _SizedH11(_Sized, H11Protocol):
    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.conn = _Connection(self)


class _Connection(h11.Connection):
    """Says of a head that it is too large."""

    def __init__(self, protocol: _Sized) -> None:
        super().__init__(h11.SERVER, _UNREAD)
        self._protocol = protocol

    def next_event(self) -> Any:
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self._protocol.too_large = error.error_status_hint == 431
            raise
        if isinstance(event, h11.Request) and _too_large(event.target, event.headers):
            self._protocol.too_large = True
            raise h11.RemoteProtocolError("too large", error_status_hint=431)
        return event


_SIZED: dict[type, type] = {HttpToolsProtocol: _SizedHttpTools, H11Protocol: _SizedH11}


def sized(protocol: type) -> Any:
    """uvicorn's protocol for HTTP, with a bound. ConfigError: it is not known how to set it one."""
    found = _SIZED.get(protocol)
    if found is None:
        raise ConfigError(f"http: {protocol.__qualname__} can't be bounded; needed is httptools or h11")
    return found
