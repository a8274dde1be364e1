"""The bytes of a request: written here, as it came, and only if nobody can take them for something else.

Rules:

- Header bytes, their case and order go out as they came, Host first.
- Method and header names are tokens, a target has no blanks, nothing has control characters: no CR, LF, NUL.
- One framing: `Transfer-Encoding: chunked` or one Content-Length, and a body that keeps to it. Of both the
  length is left out. RFC 9112, 6.2: "A sender MUST NOT send a Content-Length header field in any message that
  contains a Transfer-Encoding header field."
- A body does not wait for a `100 Continue`.
"""

from meshlib.core.request import RequestHead
from meshlib.dataplane.http.syntax import MOST_DIGITS, TEXT, TOKEN, VISIBLE, Unsendable, says_close

_MEANING = frozenset((b"connection", b"content-length", b"host", b"transfer-encoding", b"upgrade"))


class Writer:
    """One request at a time: `head`, `data` as often as needed, `end`."""

    __slots__ = ("_chunked", "_left", "close", "done", "upgrade")

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._chunked = False
        self._left: int | None = None
        """Bytes of the body that are to come; None: no Content-Length, so none."""
        self.done = False
        """Whether the request is whole."""
        self.close = False
        """Whether it says that the connection ends with it."""
        self.upgrade = False
        """Whether it names another protocol."""

    def head(self, head: RequestHead) -> bytes:
        """Begins a request. Unsendable."""
        self._begin()
        parts = [_start(head)]
        for name, value in head.headers:
            if not name or value != value.strip():
                raise Unsendable(f"illegal header: {name!r}: {value!r}")
            lower = name.lower()
            if lower in _MEANING:
                self._heed(lower, value)
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n")
        written = b"".join(parts)
        names = b"".join(parts[1:-1:4])
        # Two more for what begins and one for what ends it.
        if names.translate(None, TOKEN) or written.translate(None, TEXT) != b"\r\n" * (len(head.headers) + 3):
            raise Unsendable("illegal characters in a header")
        if self._chunked and self._left is not None:
            headers = [header for header in head.headers if header[0].lower() != b"content-length"]
            return self.head(RequestHead(head.method, head.scheme, head.authority, head.path, headers))
        return written

    def _heed(self, lower: bytes, value: bytes) -> None:
        match lower:
            case b"content-length":
                if self._left is not None or not value.isdigit() or len(value) > MOST_DIGITS:
                    raise Unsendable("illegal or more than one Content-Length")
                self._left = int(value)
            case b"transfer-encoding":
                if self._chunked or value.lower() != b"chunked":
                    raise Unsendable("the only Transfer-Encoding that can be sent is one `chunked`")
                self._chunked = True
            case b"connection":
                self.close = self.close or says_close(value)
            case b"upgrade":
                self.upgrade = True
            case _:
                raise Unsendable("more than one Host")

    def data(self, chunk: bytes) -> bytes:
        """The bytes of a part of the body. Unsendable: it is longer than the Content-Length says."""
        if self._chunked:
            # An empty chunk would be the last.
            return b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunk else b""
        self._left = (self._left or 0) - len(chunk)
        if self._left < 0:
            raise Unsendable("the body is longer than its declared Content-Length")
        return chunk

    def end(self) -> bytes:
        """The bytes that end the request. Unsendable: the body is shorter than the Content-Length says."""
        if self._chunked:
            self.done = True
            return b"0\r\n\r\n"
        if self._left:
            raise Unsendable("the body is shorter than its declared Content-Length")
        self.done = True
        return b""


def _start(head: RequestHead) -> bytes:
    """The request line and Host."""
    try:
        method, target, host = (
            head.method.encode("ascii"),
            head.path.encode("ascii"),
            head.authority.encode("latin-1"),
        )
    except UnicodeEncodeError as error:
        raise Unsendable(str(error)) from None
    if not method or method.translate(None, TOKEN):
        raise Unsendable(f"illegal method: {head.method!r}")
    if not target or target.translate(None, VISIBLE):
        raise Unsendable(f"illegal target: {head.path!r}")
    if host != host.strip():
        raise Unsendable(f"illegal host: {head.authority!r}")
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, host)
