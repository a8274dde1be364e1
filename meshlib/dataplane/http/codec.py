"""One connection's HTTP/1.1, client side, without I/O: requests to bytes, and bytes to responses.

A connection may be used again only after both sides finished cleanly, and neither wants to close it.
"""

from meshlib.core.request import RequestHead, ResponseHead
from meshlib.dataplane.http.read import Need, Reader
from meshlib.dataplane.http.write import Writer


class Codec:
    """The state of one connection."""

    __slots__ = ("_writer", "reader")

    def __init__(self) -> None:
        self._writer = Writer()
        self.reader = Reader()

    @property
    def ended(self) -> bool:
        """Whether the peer closed its side."""
        return self.reader.ended

    @property
    def version(self) -> bytes:
        """Of the response, such as `HTTP/1.1`."""
        return self.reader.version

    @property
    def reason(self) -> bytes:
        """The response's reason phrase."""
        return self.reader.reason

    @property
    def silent(self) -> bool:
        """Whether nothing of a response has come."""
        return self.reader.silent

    def request(self, head: RequestHead) -> bytes:
        """The bytes of a request's head. Unsendable."""
        written = self._writer.head(head)
        self.reader.expect(head.method, self._writer.upgrade)
        return written

    def whole(self, head: RequestHead, body: bytes) -> bytes:
        """The bytes of a whole request. Unsendable."""
        return self.request(head) + self._writer.data(body) + self._writer.end()

    def data(self, chunk: bytes) -> bytes:
        """The bytes of a part of the body. Unsendable: it is longer than the Content-Length says."""
        return self._writer.data(chunk)

    def end(self) -> bytes:
        """The bytes that end the request. Unsendable: the body is shorter than the Content-Length says."""
        return self._writer.end()

    def answered(self) -> bool:
        """While the request is being sent: whether nobody wants the rest of it any more. Then the connection
        serves no other. Malformed.
        """
        if not self.reader.answered():
            return False
        self._writer.done = False
        return True

    @property
    def held(self) -> int:
        """Bytes from the peer that were not looked at."""
        return self.reader.held

    def receive(self, data: bytes) -> None:
        """Takes bytes from the peer; none at all: it closed."""
        self.reader.receive(data)

    def next(self) -> ResponseHead | bytes | Need:
        """The next part of the response. Malformed: it is not HTTP, or ended too early."""
        return self.reader.next()

    def surplus(self) -> bytes:
        """Takes what came after the response: after a 101 it is of the other protocol."""
        return self.reader.surplus()

    def rest(self) -> bytes | None:
        """After a head: the body, if all of it is here; None: ask `next` for it."""
        return self.reader.rest()

    def reuse(self) -> bool:
        """Whether this connection can serve another request."""
        return self._writer.done and not self._writer.close and self.reader.clean
