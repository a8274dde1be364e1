"""Asking an HTTP proxy for a tunnel, without I/O.

Rules (Envoy, RFC 9110 9.3.6): any 2xx opens it, and what follows its head is the connection. What the head
says of a length counts for nothing. Of a POST the chunks of both bodies are the connection.

A proxy is spoken to in HTTP/1.1. One that says anything else is not waited for: HTTP/2 has no line's end.
"""

from meshlib.core.tunnel import Tunnel
from meshlib.dataplane.http.chunks import Chunks
from meshlib.dataplane.http.syntax import Malformed

_CHUNKED = b"transfer-encoding:chunked"
_BEGINS = b"HTTP/1."
LONGEST = 64 * 1024
"""Bytes of the answer's head."""


class NoTunnel(OSError):
    """The proxy opens none."""


def asking(tunnel: Tunnel) -> bytes:
    """The request."""
    if tunnel.post:
        lines = ("POST / HTTP/1.1", f"host: {tunnel.target}", "transfer-encoding: chunked", "", "")
        return "\r\n".join(lines).encode("ascii")
    return f"CONNECT {tunnel.target} HTTP/1.1\r\nhost: {tunnel.target}\r\n\r\n".encode("ascii")


class Answer:
    """The answer, as it comes."""

    def __init__(self) -> None:
        self._head = bytearray()
        self.rest = b""
        """What came behind the head."""
        self.chunked = False
        """Whether the head says that chunks follow."""

    def receive(self, data: bytes) -> bool:
        """Takes what came; whether the tunnel is open. NoTunnel: it is not, and will not be."""
        self._head += data
        while True:
            if not _BEGINS.startswith(self._head[: len(_BEGINS)]):
                perhaps = "; it may be HTTP/2" if self._head[0] == 0 else ""
                raise NoTunnel(f"the proxy's answer is no HTTP/1.1{perhaps}")
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                if not data:
                    raise NoTunnel("the proxy closed the connection before it answered")
                if len(self._head) > LONGEST:
                    raise NoTunnel("the head of the proxy's answer is too long")
                return False
            line, *fields = bytes(self._head[:end]).split(b"\r\n")
            self.rest = bytes(self._head[end + 4 :])
            status = _status(line)
            self.chunked = _CHUNKED in (field.lower().replace(b" ", b"") for field in fields)
            if status >= 200:
                break
            self._head = bytearray(self.rest)  # 100 Continue and the like
        if status >= 300:
            raise NoTunnel(f"the proxy answered {status}")
        return True


class Posted:
    """The bodies of a POST and its answer, both ways."""

    def __init__(self, chunked: bool) -> None:
        """`chunked`: so is the answer's; else it ends with the connection."""
        self._chunks = Chunks() if chunked else None
        self.ended = False
        """Whether the answer's has ended."""

    def encode(self, data: bytes) -> bytes:
        """A chunk; of nothing the end of the body."""
        return b"%x\r\n%b\r\n" % (len(data), data)

    def decode(self, data: bytes) -> bytes:
        """What is in the chunks. OSError: they are none."""
        if self._chunks is None or not data:
            return data
        try:
            found = self._chunks.feed(data)
        except Malformed as error:
            raise OSError(str(error)) from None
        self.ended = self._chunks.whole
        return found


def _status(line: bytes) -> int:
    version, _, rest = line.partition(b" ")
    number = rest.split(b" ", 1)[0]
    known = version in (b"HTTP/1.1", b"HTTP/1.0") and number.isdigit() and len(number) == 3
    if not known or number < b"100":
        raise NoTunnel("the proxy's answer is no HTTP/1.1")
    return int(number)
