"""A chunked body from bytes: httptools (llhttp) decodes it.

Rules:

- Whether a body is chunked is not llhttp's to say: it gets a head of ours, then the peer's bytes.
- Nothing is kept that the peer can make grow: no chunk extensions, no trailers, and there is an end to both.
- Bytes after the body are noticed, but not understood.
"""

from httptools import HttpParserError, HttpResponseParser

from meshlib.dataplane.http.syntax import Malformed

MOST_BETWEEN = 100 * 1024
"""Bytes of extensions or trailers without a byte of the body."""
_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class _Told:
    """What llhttp calls."""

    __slots__ = ("parts", "whole")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.whole = False

    def on_message_begin(self) -> None:
        if self.whole:
            raise Malformed("a response that nobody asked for")

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.whole = True


class Chunks:
    """The body of one response."""

    __slots__ = ("_between", "_parser", "_tail", "_told", "surplus")

    def __init__(self) -> None:
        self._told = _Told()
        self._parser = HttpResponseParser(self._told)
        self._parser.feed_data(_HEAD)
        self._between = 0
        self._tail = b""
        self.surplus = False
        """Whether something came after the body."""

    @property
    def whole(self) -> bool:
        """Whether the body has ended."""
        return self._told.whole

    def feed(self, data: bytes | bytearray) -> bytes:
        """What `data` adds to the body, perhaps nothing. Malformed."""
        told = self._told
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            if not told.whole:
                raise Malformed(str(error)) from None
            self.surplus = True  # it is about what came after
        part = b"".join(told.parts)
        told.parts.clear()
        self._between = 0 if part else self._between + len(data)
        if self._between > MOST_BETWEEN:
            raise Malformed(f"more than {MOST_BETWEEN} bytes of chunk extensions or trailers")
        self._tail = bytes((self._tail + data[-5:])[-5:])
        if told.whole and len(self._tail.rstrip(b"\r\n")) != 1:
            # A body ends with two line breaks, and llhttp passes over further ones.
            self.surplus = True
        return part
