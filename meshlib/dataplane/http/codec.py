"""One connection's HTTP/1.1, client side, without I/O: bytes in, events out. h11 parses.

Rules: header bytes, their case and order go out as they came, Host first. Informational responses
are passed over, 101 excepted. A connection may be used again only after both sides finished cleanly.
"""

from enum import Enum

import h11

from meshlib.core.request import RequestHead, ResponseHead

LARGEST_HEAD = 100 * 1024


class Need(Enum):
    """What `next` gives when there is no part of a response."""

    DATA = "bytes from the peer"
    NOTHING = "the response has ended"


class Malformed(Exception):
    """The peer's bytes are not HTTP, or they ended too early."""


class Unsendable(Exception):
    """The application's request can't be written as HTTP: it is the application that is told."""


class Codec:
    """The state of one connection."""

    __slots__ = ("_h11", "_switched", "ended", "reason", "version")

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD)
        self._switched = False
        self.ended = False
        """Whether the peer closed its side."""
        self.version = b"HTTP/1.1"
        self.reason = b""

    def request(self, head: RequestHead) -> bytes:
        """The bytes of a request's head. Unsendable."""
        headers = [(b"Host", head.authority.encode("latin-1")), *head.headers]
        try:
            event = h11.Request(method=head.method, target=head.path.encode("latin-1"), headers=headers)
            return self._h11.send(event) or b""
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise Unsendable(str(error)) from None

    def whole(self, head: RequestHead, body: bytes) -> bytes:
        """The bytes of a whole request. Unsendable."""
        start = self.request(head)
        return start + (self.data(body) if body else b"") + self.end()

    def data(self, chunk: bytes) -> bytes:
        """The bytes of a part of the body. Unsendable: it is longer than the content-length says."""
        return self._send(h11.Data(data=chunk))

    def end(self) -> bytes:
        """The bytes that end the request. Unsendable: the body is shorter than the content-length says."""
        return self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> bytes:
        try:
            return self._h11.send(event) or b""
        except h11.LocalProtocolError as error:
            raise Unsendable(str(error)) from None

    def receive(self, data: bytes) -> None:
        """Takes bytes from the peer; none at all: it closed."""
        self.ended = not data
        try:
            self._h11.receive_data(data)
        except (h11.RemoteProtocolError, RuntimeError) as error:
            raise Malformed(str(error)) from None

    def next(self) -> ResponseHead | bytes | Need:
        """The next part of the response. Malformed: it is not HTTP, or ended too early."""
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise Malformed(str(error)) from None
            if event is h11.NEED_DATA:
                return Need.DATA
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.Response):
                return self._head(event)
            if isinstance(event, h11.InformationalResponse):
                if event.status_code != 101:
                    continue
                self._switched = True
                return self._head(event)
            return Need.NOTHING

    def _head(self, event: h11.Response | h11.InformationalResponse) -> ResponseHead:
        self.version = b"HTTP/" + event.http_version
        self.reason = bytes(event.reason)
        return ResponseHead(event.status_code, tuple(event.headers.raw_items()))

    def reuse(self) -> bool:
        """Begins anew if this connection can serve another request."""
        if (
            self._switched
            or self.ended
            or self._h11.our_state is not h11.DONE
            or self._h11.their_state is not h11.DONE
        ):
            return False
        if self._h11.trailing_data[0]:
            # Bytes that nobody asked for: whose answer they are can't be known.
            return False
        self._h11.start_next_cycle()
        return True
