"""Which header fields a message of HTTP/2 may have, both ways (RFC 9113, 8.2 and 8.3).

Rules:

- What goes out is the application's request: names in lower case, values as they came, order kept. What
  speaks of a connection stays behind, and so does what `Connection` names; `TE` says `trailers` or nothing.
- The same characters as in HTTP/1.1, and the same refusals (`write.py`).
- What comes in is a response only if it begins with one `:status` of three digits and has no other
  pseudo-header field, no upper case, no control characters, and nothing that speaks of a connection.
- Credentials are never indexed: nobody is to guess them by the size of what is compressed (RFC 7541, 7.1.3).
"""

from collections.abc import Sequence

from hpack.struct import HeaderTuple, NeverIndexedHeaderTuple

from meshlib.core.request import Header, RequestHead, ResponseHead
from meshlib.dataplane.http.read import MOST_HEADERS
from meshlib.dataplane.http.syntax import MOST_DIGITS, TEXT, TOKEN, VISIBLE, Malformed, Unsendable

OF_A_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"http2-settings")
)
_SPECIAL = OF_A_CONNECTION | {b"host", b"te", b"content-length", b"authorization", b"proxy-authorization"}
_LOWER = TOKEN.translate(None, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""The bytes of a header's name."""
_NOT_RECEIVED = OF_A_CONNECTION - {b"http2-settings"}


def request_fields(head: RequestHead) -> tuple[list[HeaderTuple], int | None]:
    """The fields of a request, and the length of its body if it says one. Unsendable."""
    said = _Said()
    fields = _pseudo(head)
    for name, value in head.headers:
        lower = name.lower()
        if not lower or lower.translate(None, _LOWER):
            raise Unsendable(f"illegal header name: {name!r}")
        if value != value.strip() or value.translate(None, TEXT):
            raise Unsendable(f"illegal header value: {name!r}: {value!r}")
        field = HeaderTuple(lower, value) if lower not in _SPECIAL else said.field(lower, value)
        if field is not None:
            fields.append(field)
    if said.dropped:
        fields = [field for field in fields if field[0] not in said.dropped]
    return fields, said.length


class _Said:
    """What the headers of a request mean for its message."""

    __slots__ = ("_chunked", "_length", "dropped")

    def __init__(self) -> None:
        self._chunked = False
        self._length: int | None = None
        self.dropped: frozenset[bytes] = frozenset()
        """Fields that stay behind."""

    @property
    def length(self) -> int | None:
        """Of the body. As in HTTP/1.1, a body in chunks has none."""
        return None if self._chunked else self._length

    def field(self, lower: bytes, value: bytes) -> HeaderTuple | None:
        """What goes out of such a header. Unsendable."""
        match lower:
            case b"connection":
                self.dropped |= {option.strip() for option in value.lower().split(b",")} - {b"te"}
            case b"transfer-encoding":
                if self._chunked or value.lower() != b"chunked":
                    raise Unsendable("the only Transfer-Encoding that can be sent is one `chunked`")
                self._chunked = True
                self.dropped |= {b"content-length"}
            case b"content-length":
                if self._length is not None or not value.isdigit() or len(value) > MOST_DIGITS:
                    raise Unsendable("illegal or more than one Content-Length")
                self._length = int(value)
                return HeaderTuple(lower, value)
            case b"te":
                options = [option.strip() for option in value.lower().split(b",")]
                return HeaderTuple(lower, b"trailers") if b"trailers" in options else None
            case b"authorization" | b"proxy-authorization":
                return NeverIndexedHeaderTuple(lower, value)
            case b"host":
                raise Unsendable("more than one Host")
            case _:
                pass
        return None


def _pseudo(head: RequestHead) -> list[HeaderTuple]:
    try:
        method, path = head.method.encode("ascii"), head.path.encode("ascii")
        authority, scheme = head.authority.encode("latin-1"), head.scheme.encode("ascii")
    except UnicodeEncodeError as error:
        raise Unsendable(str(error)) from None
    if not method or method.translate(None, TOKEN):
        raise Unsendable(f"illegal method: {head.method!r}")
    if method == b"CONNECT":
        raise Unsendable("CONNECT is not sent over HTTP/2")
    if not path or path.translate(None, VISIBLE):
        raise Unsendable(f"illegal target: {head.path!r}")
    if authority != authority.strip() or authority.translate(None, TEXT):
        raise Unsendable(f"illegal host: {head.authority!r}")
    return [
        HeaderTuple(b":method", method),
        HeaderTuple(b":scheme", scheme),
        HeaderTuple(b":authority", authority),
        HeaderTuple(b":path", path),
    ]


def response_head(fields: Sequence[Header]) -> ResponseHead:
    """The head of a response, an informational one too. Malformed."""
    if not fields or fields[0][0] != b":status":
        raise Malformed("a response without a :status at its beginning")
    status = fields[0][1]
    if len(status) != 3 or not status.isdigit() or status < b"100":
        raise Malformed(f"illegal :status: {status[:20]!r}")
    return ResponseHead(int(status), trailers(fields[1:]))


def trailers(fields: Sequence[Header]) -> tuple[Header, ...]:
    """The fields of a trailer section; what follows a `:status` keeps to the same rules. Malformed."""
    if len(fields) > MOST_HEADERS:
        raise Malformed(f"more than {MOST_HEADERS} headers")
    found = []
    for name, value in fields:
        if not name or name.translate(None, _LOWER):
            raise Malformed(f"illegal header name: {name[:80]!r}")
        if value.translate(None, TEXT) or value != value.strip(b" \t"):
            raise Malformed(f"illegal header value: {name[:80]!r}")
        if name in _NOT_RECEIVED:
            raise Malformed(f"{name.decode()} in HTTP/2")
        found.append((bytes(name), bytes(value)))
    return tuple(found)


def body_length(head: ResponseHead, method: str) -> int | None:
    """How many bytes the body of a final response has; None: as many as come. Malformed."""
    length = None
    for name, value in head.headers:
        if name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > MOST_DIGITS:
                raise Malformed("illegal or more than one Content-Length")
            length = int(value)
    return 0 if method == "HEAD" or head.status in (204, 304) else length
