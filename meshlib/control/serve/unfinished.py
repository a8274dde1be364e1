"""What a connection holds in messages that are not whole: counted from the frames that pass by. Sans-IO.

gRPC keeps what it reads until a message is whole, and says to nobody how much that is. So the bytes of HTTP/2
(RFC 9113) are looked at on their way, in both directions. Rules:

- Of a stream counts what came of the message under way (gRPC: a prefix of five bytes, then so many); a whole
  message is handled at once and counts no more. Padding is no part of a message.
- Each frame, however small, and each open stream counts some bytes on top: that is what they cost.
- A stream that is over, by whichever side, holds nothing. What comes for it later is dropped by gRPC.
- What is no HTTP/2 is not judged here; gRPC ends the connection.
"""

from collections.abc import Iterator
from dataclasses import dataclass

PREFACE = 24
"""The bytes with which a client begins."""
COST_OF_STREAM = 128
COST_OF_FRAME = 64
_HEAD = 9
_PREFIX = 5
_DATA, _HEADERS, _RESET = 0, 1, 3
_END_STREAM, _PADDED = 0x1, 0x8
_NOTHING = memoryview(b"")


@dataclass(slots=True)
class _Frame:
    """One frame, and the piece of its payload that is there now."""

    kind: int
    flags: int
    stream: int
    length: int
    done: int = 0
    """How many bytes of the payload there were before this piece."""
    piece: memoryview = _NOTHING

    @property
    def first(self) -> bool:
        """Whether the frame begins."""
        return self.done == 0

    @property
    def last(self) -> bool:
        """Whether the frame ends."""
        return self.done + len(self.piece) == self.length


class _Frames:
    """Cuts one direction of a connection."""

    def __init__(self, skip: int = 0) -> None:
        self._skip = skip
        self._head = b""
        self._frame: _Frame | None = None

    def cut(self, data: bytes) -> Iterator[_Frame]:
        """Each piece of each frame, in order. The same object comes again for a frame's next piece."""
        view = memoryview(data)
        if self._skip:
            skipped = min(self._skip, len(view))
            self._skip, view = self._skip - skipped, view[skipped:]
        while view:
            frame = self._frame
            if frame is None:
                head = self._head + view[: _HEAD - len(self._head)].tobytes()
                view = view[len(head) - len(self._head) :]
                self._head = head if len(head) < _HEAD else b""
                if self._head:
                    return
                frame = _Frame(
                    head[3], head[4], int.from_bytes(head[5:9]) & 0x7FFFFFFF, int.from_bytes(head[:3])
                )
            frame.piece, view = view[: frame.length - frame.done], view[frame.length - frame.done :]
            self._frame = None if frame.last else frame
            if frame.piece or not frame.length:
                yield frame
            frame.done += len(frame.piece)
            frame.piece = _NOTHING  # else all that came with it would stay


@dataclass(slots=True)
class _Message:
    """The message under way on one stream."""

    held: int = 0
    need: int = 0
    """Bytes of its body that are still to come."""
    prefix: bytes = b""
    padding: int = 0
    """Of the frame that is read now; at its end."""
    over: bool = False
    """The client says nothing more."""

    def take(self, piece: memoryview) -> None:
        """These bytes came."""
        while piece:
            if self.need:
                taken = min(self.need, len(piece))
                self.need -= taken
                self.held += taken
            else:
                taken = min(_PREFIX - len(self.prefix), len(piece))
                self.prefix += piece[:taken].tobytes()
                self.held += taken
                if len(self.prefix) < _PREFIX:
                    return
                self.need, self.prefix = int.from_bytes(self.prefix[1:]), b""
            piece = piece[taken:]
            if not self.need:
                self.held = 0


class Unfinished:
    """One connection's."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self._heard, self._told = _Frames(PREFACE), _Frames()
        self._open: dict[int, _Message] = {}
        self._newest = 0
        self.held = 0
        """Bytes that count now."""

    def heard(self, data: bytes) -> int:
        """The client sent these bytes; what is held now."""
        for frame in self._heard.cut(data):
            if frame.kind == _HEADERS and frame.first:
                self._opened(frame.stream)
            message = self._open.get(frame.stream)
            if message is None:
                continue
            if frame.kind == _RESET and frame.first:
                self._closed(frame.stream)
                continue
            before = message.held
            if frame.kind == _DATA and not message.over:
                message.held += COST_OF_FRAME * frame.first
                message.take(_unpadded(frame, message))
            if frame.kind in (_DATA, _HEADERS) and frame.flags & _END_STREAM and frame.last:
                message.over, message.held = True, 0
            self.held += message.held - before
        return self.held

    def told(self, data: bytes) -> int:
        """The server sent these bytes; what is held now."""
        for frame in self._told.cut(data):
            ended = frame.kind in (_DATA, _HEADERS) and frame.flags & _END_STREAM
            if frame.first and (ended or frame.kind == _RESET):
                self._closed(frame.stream)
        return self.held

    def _opened(self, stream: int) -> None:
        if stream > self._newest:
            self._newest = stream
            self._open[stream] = _Message()
            self.held += COST_OF_STREAM

    def _closed(self, stream: int) -> None:
        if (message := self._open.pop(stream, None)) is not None:
            self.held -= message.held + COST_OF_STREAM


def _unpadded(frame: _Frame, message: _Message) -> memoryview:
    """The piece of a DATA frame without its padding."""
    piece, begin = frame.piece, 0
    if frame.first:
        message.padding = 0
        if frame.flags & _PADDED and piece:
            message.padding, begin = piece[0], 1
    end = frame.length - message.padding - frame.done
    return piece[begin : max(end, begin)]
