"""A request's body, as far as an external authority is shown it (Envoy's with_request_body).

Rules:

- The request waits until its body has ended, or `most` bytes are there. A longer one is answered with 413;
  or, where that is allowed, its first `most` bytes are shown (Envoy).
- A request that has no body is asked about at once, and so is a WebSocket (Envoy).
- Of a body without a length that has reached `most` and may go on, the authority is told that it is a part.
  Envoy takes it for the whole, so that a caller who pauses there could hide the rest.
- Nobody is waited for longer than `SECONDS`: then the answer is 408.
- What was read is kept; the application reads the body from its beginning.
"""

from collections.abc import Awaitable, Callable
from enum import Enum

from meshlib.core.actions import Facts, Reply
from meshlib.values import dataclass

SECONDS = 60.0
"""For all of a body that is shown."""


@dataclass(frozen=True, slots=True)
class BodyWanted:
    """How much of a body an authority is shown, and how."""

    most: int
    """Bytes."""
    partial: bool = False
    """Whether a beginning will do; else what is longer is refused."""
    raw: bool = False
    """Over gRPC: as bytes, not as text."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a body. A request without one has none."""

    data: bytes
    whole: bool = True
    size: int = 0
    """Bytes that have come."""


class Unread(Enum):
    """Why nobody can be asked: the body is not what it must be. It never means that the request passes."""

    TOO_LARGE = 413, "request_payload_too_large", b"Payload Too Large"
    TOO_SLOW = 408, "request_overall_timeout", b"request timeout"
    NO_LENGTH = 411, "request_body_without_length", b"Length Required"
    """The server can't tell where it ends."""
    GONE = 400, "downstream_remote_disconnect", b""
    """The caller left, or broke off, before its end."""
    NOBODY_READS = 500, "request_body_unreadable", b""
    """Who serves the request can't read bodies."""

    def reply(self, version: str) -> Reply:
        """The answer."""
        status, detail, said = self.value
        flag = "DC" if self is Unread.GONE else "-"
        # The rest of the body may still come: the connection is good for nothing else.
        headers = ((b"content-type", b"text/plain"), (b"connection", b"close"))
        return Reply(status, Facts(flag=flag, detail=detail, config_version=version), headers, said)


Found = Shown | Unread | None
Reading = Callable[[BodyWanted], Found]
"""Reads as much as is wanted; None: the request has no body. A second call begins at the beginning, too."""
AsyncReading = Callable[[BodyWanted], Awaitable[Found]]


class Beginning:
    """What has been read of a body, in one piece: what comes byte by byte costs no more."""

    __slots__ = ("_data", "announced", "last", "size")

    def __init__(self, announced: int | None) -> None:
        """`announced` is its content-length; None: it has none."""
        self.announced = announced
        self.size = 0
        self.last = False
        """Whether the end was read."""
        self._data = bytearray()

    def add(self, chunk: bytes, last: bool = False) -> None:
        """Takes what came next."""
        self._data += chunk
        self.size += len(chunk)
        self.last = last

    @property
    def ended(self) -> bool:
        """Whether all of it is here."""
        return self.last or self.size == self.announced

    def enough(self, wanted: BodyWanted) -> bool:
        """Whether it is known what is shown."""
        if wanted.partial:
            return self.ended or self.size >= wanted.most
        return self.ended or max(self.size, self.announced or 0) > wanted.most

    def shown(self, wanted: BodyWanted) -> Shown | Unread:
        """What the authority is shown, when there is enough."""
        whole = self.ended and self.size <= wanted.most
        if not whole and not wanted.partial:
            return Unread.TOO_LARGE
        return Shown(bytes(self._data[: wanted.most]), whole, self.size)

    def taken(self) -> bytes:
        """All that was read, for the application; it is not kept any longer."""
        data, self._data = bytes(self._data), bytearray()
        return data


def announced(length: str | bytes | None) -> int | None:
    """A content-length; None: there is none, or it is none."""
    text = length.decode("latin-1") if isinstance(length, bytes) else length or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
