"""A response from bytes: httptools (llhttp) takes its head apart, what that means is decided here.

The peer may be hostile. Rules:

- A head is looked at when it is whole, and then all of it: one status line of HTTP/1.0 or 1.1, one line a
  header, CRLF after each and nowhere else, no control characters, at most `LARGEST_HEAD` bytes and
  `MOST_HEADERS` headers.
- One framing: no body (HEAD, 204, 304, what became of CONNECT), or `Transfer-Encoding: chunked`, or one
  Content-Length, or until the peer closes. Two of them, one twice, or another coding is nobody's answer.
- llhttp is not asked where a message ends (its Python layer can't be told of a HEAD, and it understands some
  headers otherwise): it gets a head to its last byte and not one more, and `chunks` has one of its own.
- Informational responses are passed over, 101 excepted, and that only if it was asked for.
- A response may come before its request was sent (`answered`). RFC 9112, 9.5: "If the client sees a
  response that indicates the server does not wish to receive the message body and is closing the connection,
  the client SHOULD immediately cease transmitting". That is who refuses, redirects, or has answered wholly;
  who has begun a good answer may want to read on.
"""

import math
from enum import Enum, auto

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from meshlib.core.request import Header, ResponseHead
from meshlib.dataplane.http.chunks import Chunks
from meshlib.dataplane.http.habits import kept_for
from meshlib.dataplane.http.syntax import MOST_DIGITS, TEXT, Malformed, says_close

LARGEST_HEAD = 100 * 1024
"""Bytes, as in httpx."""
MOST_HEADERS = 1000
MOST_INFORMED = 100
"""Informational responses before the response."""
_START = b"HTTP/1."
_VERSIONS = (b"HTTP/1.1 ", b"HTTP/1.0 ")


class Need(Enum):
    """What `next` gives when there is no part of a response."""

    DATA = "bytes from the peer"
    NOTHING = "the response has ended"


class _At(Enum):
    """What the next byte is part of."""

    HEAD = auto()
    COUNTED = auto()
    CHUNKED = auto()
    UNCOUNTED = auto()
    END = auto()
    EARLY = auto()


# Every response asks for them several times, and Python 3.11 takes long to find a member of an Enum.
_HEAD, _COUNTED, _CHUNKED, _UNCOUNTED, _END, _EARLY = _At
_DATA, _NOTHING = Need


class _Fields:
    """What llhttp calls."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: list[Header] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))


class Reader:
    """The responses of one connection, one after the other."""

    __slots__ = (
        *("_again", "_at", "_chunks", "_data", "_early", "_informed", "_left", "_method", "_searched"),
        *("_then", "_upgrade"),
        *("ended", "keeps", "reason", "version"),
    )

    def __init__(self) -> None:
        self.ended = False
        """Whether the peer closed its side."""
        self.version = b"HTTP/1.1"
        self.reason = b""
        self.keeps = math.inf
        """Seconds for which the peer keeps the connection, or a bit less."""
        self._data: bytes | bytearray = b""
        """What was received and not looked at."""
        self._chunks: Chunks | None = None
        self.expect("GET", False)

    def expect(self, method: str, upgrade: bool) -> None:
        """The next response answers a request with this method; `upgrade`: it asks for another protocol."""
        self._method, self._upgrade = method, upgrade
        self._at = _HEAD
        self._searched = self._informed = 0
        self._again = False
        self.keeps = math.inf

    def receive(self, data: bytes) -> None:
        """Takes bytes from the peer; none at all: it closed."""
        if not data:
            self.ended = True
        elif not self._data:
            self._data = data
        else:
            if isinstance(self._data, bytes):
                self._data = bytearray(self._data)
            self._data += data

    def next(self) -> ResponseHead | bytes | Need:
        """The next part of the response. Malformed: it is not HTTP, or ended too early."""
        at = self._at
        if at is _HEAD:
            return self._head()
        if at is _COUNTED:
            return self._counted()
        if at is _CHUNKED:
            return self._chunked()
        if at is _EARLY:
            self._at = self._then
            return self._early
        return _NOTHING if at is _END else self._uncounted()

    def answered(self) -> bool:
        """While the request is being sent: whether nobody wants the rest of it any more. Malformed."""
        if self._at is _HEAD:
            head = self._head()
            if not isinstance(head, ResponseHead):
                return False
            self._early, self._then, self._at = head, self._at, _EARLY
        return self._at is not _EARLY or self._early.status >= 300 or self._all_here()

    @property
    def held(self) -> int:
        """Bytes that were received and not looked at."""
        return len(self._data)

    def _all_here(self) -> bool:
        """Whether a response of whose body nothing was taken has come to its end."""
        match self._then:
            case _At.COUNTED:
                return len(self._data) >= self._left
            case _At.CHUNKED:
                probe = Chunks()
                probe.feed(self._data)
                return probe.whole
            case _At.UNCOUNTED:
                return self.ended
            case _:
                return True

    def rest(self) -> bytes | None:
        """The body, if nothing more is to come and it can be had in one piece; None: ask `next` for it."""
        if self._at is _COUNTED and len(self._data) == self._left:
            part, self._data, self._at = bytes(self._data), b"", _END
            return part
        return b"" if self._at is _END and self._again else None

    @property
    def silent(self) -> bool:
        """Whether nothing of a response has come."""
        return self._at is _HEAD and not self._data and not self._informed

    def surplus(self) -> bytes:
        """Takes what was received and not looked at."""
        found, self._data = bytes(self._data), b""
        return found

    @property
    def clean(self) -> bool:
        """Whether the response is whole, nothing came after it, and another may."""
        return self._at is _END and self._again and not self._data and not self.ended

    def _head(self) -> ResponseHead | Need:
        while True:
            end = self._data.find(b"\r\n\r\n", self._searched) + 4
            if end < 4:
                return self._no_head() if self._data or self.ended else _DATA
            if end > LARGEST_HEAD:
                raise Malformed(f"a head of more than {LARGEST_HEAD} bytes")
            head, self._data = bytes(self._data[:end]), self._data[end:]
            self._searched = 0
            found = self._lex(head)
            if found.status >= 200 or found.status == 101:
                self._begin(found)
                return found
            self._informed += 1
            if self._informed > MOST_INFORMED:
                raise Malformed(f"more than {MOST_INFORMED} informational responses")

    def _no_head(self) -> Need:
        """What there is of a head could still become one."""
        data, searched = self._data, self._searched
        if self.ended:
            raise Malformed("the peer closed the connection in the middle of a response's head")
        if not _START.startswith(data[: len(_START)]):
            raise Malformed(f"not HTTP: {bytes(data[:20])!r}")
        if len(data) >= LARGEST_HEAD:
            raise Malformed(f"a head of more than {LARGEST_HEAD} bytes")
        if data.count(b"\n", searched) != data.count(b"\r\n", max(0, searched - 1)):
            raise Malformed("a line of a head that ends without CR")
        self._searched = max(0, len(data) - 3)
        return _DATA

    def _lex(self, head: bytes) -> ResponseHead:
        """A whole head, whose framing is not decided yet."""
        lines = head.count(b"\r\n")
        if lines - 2 > MOST_HEADERS:
            raise Malformed(f"more than {MOST_HEADERS} headers")
        if head.translate(None, TEXT) != b"\r\n" * lines:
            raise Malformed("control characters in a head")
        # A reason may be empty, and many leave out its blank.
        start = head[: head.index(b"\r\n")]
        version, status, blank, self.reason = start[:9], start[9:12], start[12:13], start[13:]
        digits = len(status) == 3 and status.isdigit() and status >= b"100"
        if version not in _VERSIONS or not digits or blank not in (b"", b" "):
            raise Malformed(f"illegal status line: {start[:80]!r}")
        self.version = version[:8]
        fields = _Fields()
        try:
            HttpResponseParser(fields).feed_data(head)
        except (HttpParserError, HttpParserUpgrade) as error:
            # It stops after every 101, whatever the headers say.
            if status != b"101":
                raise Malformed(str(error)) from None
        if len(fields.headers) != lines - 2:
            raise Malformed("a line of a head that is not a header")
        return ResponseHead(int(status), tuple(fields.headers))

    def _begin(self, head: ResponseHead) -> None:
        """Decides where the response ends, and whether the connection may be used after it."""
        length, chunked, close = None, False, self.version == b"HTTP/1.0"
        for name, value in head.headers:
            match name.lower():
                case b"content-length":
                    if length is not None or not value.isdigit() or len(value) > MOST_DIGITS:
                        raise Malformed("illegal or more than one Content-Length")
                    length = int(value)
                case b"transfer-encoding":
                    # HTTP/1.0 has none. RFC 9112, 6.1: "MUST treat the message as if the framing is faulty".
                    if chunked or value.lower() != b"chunked" or self.version == b"HTTP/1.0":
                        raise Malformed("a Transfer-Encoding that is not one `chunked`")
                    chunked = True
                case b"connection":
                    close = close or says_close(value)
                case b"keep-alive":
                    self.keeps = min(self.keeps, kept_for(value))
        if chunked and length is not None:
            raise Malformed("both Transfer-Encoding and Content-Length")
        self._again = not close
        if self._has_no_body(head.status):
            self._at = _END
        elif chunked:
            self._at, self._chunks = _CHUNKED, Chunks()
        elif length is not None:
            self._at, self._left = _COUNTED if length else _END, length
        else:
            self._at, self._again = _UNCOUNTED, False

    def _has_no_body(self, status: int) -> bool:
        if status == 101 and not self._upgrade:
            raise Malformed("101 without having been asked to switch protocols")
        if status == 101 or (self._method == "CONNECT" and status < 300):
            self._again = False
            return True
        return self._method == "HEAD" or status in (204, 304)

    def _counted(self) -> bytes | Need:
        if not self._data:
            return self._more()
        part, self._data = bytes(self._data[: self._left]), self._data[self._left :]
        self._left -= len(part)
        if not self._left:
            self._at = _END
        return part

    def _uncounted(self) -> bytes | Need:
        part, self._data = bytes(self._data), b""
        if part or not self.ended:
            return part or _DATA
        self._at = _END
        return _NOTHING

    def _chunked(self) -> bytes | Need:
        chunks, data = self._chunks, self._data
        if not data or chunks is None:
            return self._more()
        self._data = b""
        part = chunks.feed(data)
        if chunks.whole:
            self._at, self._chunks = _END, None
            self._again = self._again and not chunks.surplus
            return part or _NOTHING
        return part or self._more()

    def _more(self) -> Need:
        if self.ended:
            raise Malformed("the peer closed the connection in the middle of a response's body")
        return _DATA
