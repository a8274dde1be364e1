"""One connection's HTTP/2, client side, without I/O: streams to bytes and back. `h2` knows the frames.

The peer may be hostile. Rules:

- A stream holds what its reader has not taken, `WINDOW` bytes at most: that much the peer may send. The
  connection's own window is given back as bytes come, so that a slow reader holds up nobody else.
- A header section is at most `LARGEST_HEAD` bytes, packed and unpacked, with at most `MOST_HEADERS` fields.
- Frames that carry nothing of a message (pings, settings, priorities, windows, empty data, what is for
  streams that are gone) are paid for: `Tolerance` has some, time brings more, and so does each frame of use.
  A peer that spends it all has lost the connection.
- GOAWAY is not given to `h2`, for which it would be the end: streams that the peer will serve go on
  (RFC 9113, 6.8), the others count as refused.
- A malformed response is the end of its stream (RFC 9113, 8.1.1), a malformed frame that of the connection.

Not thread-safe: whoever holds the connection locks.
"""

from collections.abc import Iterator, Sized

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from meshlib.core.request import Failed, Failure, RequestHead, ResponseHead
from meshlib.dataplane.http.h2fields import body_length, request_fields, response_head, trailers
from meshlib.dataplane.http.read import LARGEST_HEAD, MOST_INFORMED, Need
from meshlib.dataplane.http.syntax import Malformed, Unsendable

WINDOW = 256 * 1024
"""Bytes of a response that wait for its reader."""
CONNECTION_WINDOW = 16 * 1024 * 1024
LARGEST_FRAME = 64 * 1024
PIECE = 16 * 1024
"""Bytes of a request's body in a frame."""
AT_ONCE = 64 * 1024
"""Bytes of it that are written without looking whether the peer reads."""
LEAST_UNCOUNTED = 16
"""Requests."""
TABLE = 4096
"""Bytes of the table by which headers are packed, however much the peer offers to remember."""
LAST_ID = 2**30
_PING = b"meshlib\0"
_DATA, _HEADERS, _SETTINGS, _GOAWAY, _CONTINUATION = 0, 1, 4, 7, 9
_FRAME_HEAD = 9
_NAMES = {int(code): code.name for code in h2.errors.ErrorCodes}
_BROKEN = (h2.exceptions.H2Error, AssertionError, IndexError, KeyError, TypeError, ValueError)
"""What `h2` and the parsers beneath it raise for bytes that nobody should send."""


class Reset(Exception):
    """A stream has ended without a (whole) response."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.detail)
        self.failed = failed


class Stream:
    """One exchange."""

    __slots__ = (
        "data",
        "due",
        "ended",
        "failed",
        "finished",
        "head",
        "id",
        "informed",
        "left",
        "length",
        "method",
        "told",
    )

    def __init__(self, number: int, method: str, length: int | None) -> None:
        self.id = number
        self.method = method
        self.length = length
        """Bytes of the request's body that are to come; None: it does not say how many."""
        self.finished = False
        """Whether the request is whole."""
        self.head: ResponseHead | None = None
        self.told = False
        """Whether the reader has the head."""
        self.data = bytearray()
        """Of the response's body, for the reader."""
        self.left: int | None = None
        """Bytes of the body that are to come; None: as many as come."""
        self.due = 0
        """Bytes of the window that are to be given back."""
        self.informed = 0
        self.ended = False
        """Whether the response is whole."""
        self.failed: Failed | None = None

    def __repr__(self) -> str:
        state = "failed" if self.failed else "ended" if self.ended else "answered" if self.head else "open"
        return f"<Stream {self.id}: {state}, {len(self.data)} bytes wait>"

    @property
    def over(self) -> bool:
        """Whether the peer neither says nor hears any more of it."""
        return self.ended or self.failed is not None


class Tolerance:
    """How many frames of no use are still borne."""

    MOST = 10_000.0
    A_SECOND = 100.0
    FOR_USE = 4.0

    def __init__(self) -> None:
        self._left = self.MOST / 10
        self._at: float | None = None

    def useful(self) -> None:
        """A frame carried something of a message, either way."""
        self._left = min(self.MOST, self._left + self.FOR_USE)

    def useless(self, now: float) -> bool:
        """A frame did not; False: that was one too many."""
        if self._at is not None:
            self._left = min(self.MOST, self._left + self.A_SECOND * max(0.0, now - self._at))
        self._at = now
        self._left -= 1
        return self._left >= 0


class _Http(h2.connection.H2Connection):
    """`h2` counts the open streams one by one with each request, and forgets the closed ones by the way."""

    def __init__(self, config: h2.config.H2Configuration, held: Sized) -> None:
        super().__init__(config)
        self._held = held
        """The streams that are not released: those that are open, and some that have ended."""
        self._uncounted = 0

    @property
    def open_outbound_streams(self) -> int:
        """It is counted where it matters, and after about as many requests as there are streams."""
        held, most = len(self._held), self.remote_settings.max_concurrent_streams
        self._uncounted += 1
        if held < most and self._uncounted < max(held, LEAST_UNCOUNTED):
            return held
        self._uncounted = 0
        found: int = super().open_outbound_streams
        return found


class Codec:
    """The state of one connection. What is to be sent is `outgoing`, after every call."""

    def __init__(self) -> None:
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
        self._streams: dict[int, Stream] = {}
        http = self._http = _Http(config, self._streams)
        http.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: LARGEST_FRAME,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: LARGEST_HEAD,
            },
        )
        http.max_inbound_frame_size = LARGEST_FRAME
        http.decoder.max_header_list_size = LARGEST_HEAD
        http.initiate_connection()
        http.increment_flow_control_window(CONNECTION_WINDOW - http.inbound_flow_control_window)
        self._rest = b""
        self._greeted = False
        self._block = 0
        """Bytes of the header section that is being received."""
        self._due = 0
        self._tolerance = Tolerance()
        self._next = 1
        self.failed: Failed | None = None
        """Why the connection is of no use at all any more: `RESET` or `PROTOCOL`."""
        self.leaving = False
        """Whether it takes no further request."""
        self.pinged = False
        """Whether a ping waits for its answer."""
        self.widened = False
        """Whether the peer allows more streams than before; the reader of this clears it."""

    def __repr__(self) -> str:
        state = "failed" if self.failed else "leaving" if self.leaving else "open"
        return f"<Codec: {state}, {len(self._streams)} streams>"

    @property
    def allowed(self) -> int | None:
        """Requests at a time that the peer takes; None: it has not said yet."""
        return self._http.remote_settings.max_concurrent_streams if self._greeted else None

    @property
    def usable(self) -> bool:
        """Whether a further request may be sent, if there is room for it."""
        return self.failed is None and not self.leaving

    # what is sent

    def open(self, head: RequestHead, *, whole: bool) -> Stream:
        """Begins a request; `whole`: it has no body. Unsendable; Reset: the connection takes none."""
        fields, length = request_fields(head)
        if not self.usable:
            raise Reset(Failed(Failure.RESET_BEFORE_REQUEST, "the connection takes no further request"))
        if whole and length:
            raise Unsendable("the body is shorter than its declared Content-Length")
        number = self._next
        try:
            self._http.send_headers(number, fields, end_stream=whole)
        except h2.exceptions.ProtocolError as error:
            raise Reset(
                Failed(Failure.REFUSED_STREAM, f"the peer takes no further request: {error}")
            ) from None
        self._next += 2
        if self._next >= LAST_ID:
            self.leaving = True
        self._tolerance.useful()
        stream = self._streams[number] = Stream(number, head.method, length)
        stream.finished = whole
        return stream

    def send(self, stream: Stream, data: bytes | memoryview, *, last: bool = False) -> int:
        """Sends of a part of the body as much as the peer has room for, `AT_ONCE` at most; how many bytes.

        `last`: nothing follows. Unsendable: the body is not as long as its Content-Length says.
        """
        if stream.over:
            return len(data)
        if stream.length is not None and len(data) > stream.length:
            raise Unsendable("the body is longer than its declared Content-Length")
        if last and stream.length is not None and len(data) < stream.length:
            raise Unsendable("the body is shorter than its declared Content-Length")
        http = self._http
        room = min(http.local_flow_control_window(stream.id), len(data), AT_ONCE)
        most, sent = min(PIECE, http.max_outbound_frame_size), 0
        while sent < room:
            upto = min(sent + most, room)
            stream.finished = last and upto == len(data)
            http.send_data(stream.id, data[sent:upto], end_stream=stream.finished)
            self._tolerance.useful()
            sent = upto
        if stream.length is not None:
            stream.length -= max(sent, 0)
        return max(sent, 0)

    def finish(self, stream: Stream) -> None:
        """Ends the request. Unsendable: the body is shorter than its Content-Length says."""
        if stream.over or stream.finished:
            return
        if stream.length:
            raise Unsendable("the body is shorter than its declared Content-Length")
        stream.finished = True
        self._http.end_stream(stream.id)

    def release(self, stream: Stream) -> None:
        """Nobody reads it any more; if it is not whole, the peer is told to stop."""
        if self._streams.pop(stream.id, None) is None or self.failed is not None or stream.failed is not None:
            return
        if not (stream.ended and stream.finished):
            stream.failed = Failed(Failure.RESET, "given up")
            self._reset(stream, h2.errors.ErrorCodes.CANCEL)

    def ping(self) -> None:
        """Asks for a sign of life; `pinged` until it is here."""
        if self.failed is None:
            self.pinged = True
            self._http.ping(_PING)

    def outgoing(self) -> bytes:
        """What is to be sent now."""
        return self._http.data_to_send()

    # what is received

    def next(self, stream: Stream) -> ResponseHead | bytes | Need:
        """The next part of the response. Reset: there will be none."""
        if stream.head is not None and not stream.told:
            stream.told = True
            return stream.head
        if stream.data:
            data = bytes(stream.data)
            stream.data.clear()
            self._give_back(stream, len(data))
            return data
        if stream.failed is not None:
            raise Reset(stream.failed)
        return Need.NOTHING if stream.ended else Need.DATA

    def receive(self, data: bytes, now: float) -> set[Stream]:
        """Takes bytes from the peer; none at all: it closed. Gives the streams with news; see `failed`."""
        news: set[Stream] = set()
        if self.failed is not None:
            return news
        if not data:
            return self.fail(Failure.RESET, "the peer closed the connection")
        try:
            for kind, frame in self._frames(data):
                self._take(kind, frame, now, news)
        except Malformed as error:
            return news | self.fail(Failure.PROTOCOL, str(error))
        except _BROKEN as error:
            return news | self.fail(Failure.PROTOCOL, f"not HTTP/2: {error}")
        return news

    def fail(self, how: Failure, why: str) -> set[Stream]:
        """The connection is of no use any more: it is lost (`RESET`), or `PROTOCOL`. Gives who fails."""
        self.failed = self.failed or Failed(how, why)
        if how is Failure.PROTOCOL:
            self._http.close_connection(h2.errors.ErrorCodes.PROTOCOL_ERROR)
        failing = {stream for stream in self._streams.values() if not stream.over}
        for stream in failing:
            self._fail(stream, how, why)
        return failing

    def _frames(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Whole frames and their types."""
        if self._rest:
            data = self._rest + data
        if not self._greeted and len(data) >= 4 and (data[3] != _SETTINGS or data[4:5] not in (b"", b"\0")):
            # RFC 9113, 3.4: "The server connection preface consists of a potentially empty SETTINGS frame".
            raise Malformed(f"the peer does not speak HTTP/2: {data[:20]!r}")
        at, size = 0, len(data)
        while size - at >= _FRAME_HEAD:
            length = int.from_bytes(data[at : at + 3])
            if length > LARGEST_FRAME:
                raise Malformed(f"a frame of {length} bytes; {LARGEST_FRAME} are allowed")
            end = at + _FRAME_HEAD + length
            if end > size:
                break
            # Before it is looked at: what a frame makes fail does not come again.
            self._rest = b""
            yield data[at + 3], data[at:end]
            at = end
        self._rest = data[at:]

    def _take(self, kind: int, frame: bytes, now: float, news: set[Stream]) -> None:
        number = int.from_bytes(frame[5:9]) & 0x7FFFFFFF
        stream = self._streams.get(number)
        useful = kind in (_HEADERS, _CONTINUATION) or (kind == _DATA and len(frame) > _FRAME_HEAD)
        if stream is not None and useful:
            self._tolerance.useful()
        elif self._greeted and not self._tolerance.useless(now):
            raise Malformed("the peer floods the connection with frames of no use")
        if kind == _GOAWAY:
            self._go(frame, news)
            return
        if kind in (_HEADERS, _CONTINUATION):
            self._block = len(frame) + (self._block if kind == _CONTINUATION else 0)
            if number % 2 == 0:
                raise Malformed("a stream that the peer has opened")  # `h2` would let it
            if self._block > LARGEST_HEAD:
                raise Malformed(f"a head of more than {LARGEST_HEAD} bytes")
        for event in self._http.receive_data(frame):
            self._happened(event, news)
        self._greeted = True

    def _happened(self, event: h2.events.Event, news: set[Stream]) -> None:
        match event:
            case h2.events.RemoteSettingsChanged():
                self.widened = True
                if self._http.encoder.header_table_size > TABLE:
                    self._http.encoder.header_table_size = TABLE
                news.update(self._streams.values())
                return
            case h2.events.WindowUpdated(stream_id=0):
                news.update(self._streams.values())
                return
            case h2.events.PingAckReceived():
                self.pinged = self.pinged and event.ping_data != _PING
                return
            case h2.events.DataReceived():
                self._pay_back(event.flow_controlled_length)
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if stream is None or stream.over:
            return
        news.add(stream)
        try:
            self._happened_to(stream, event)
        except Malformed as error:
            self._fail(stream, Failure.PROTOCOL, str(error))
            self._reset(stream, h2.errors.ErrorCodes.PROTOCOL_ERROR)

    def _happened_to(self, stream: Stream, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                stream.head = response_head(event.headers)
                stream.left = body_length(stream.head, stream.method)
                # For `h2` a 304 has the body that its Content-Length tells of, and a wrong length is the
                # end of the connection.
                self._http.streams[stream.id]._expected_content_length = None  # noqa: SLF001
            case h2.events.InformationalResponseReceived():
                stream.informed += 1
                # RFC 9113, 8.6: HTTP/2 does not support 101.
                if response_head(event.headers).status == 101 or stream.informed > MOST_INFORMED:
                    raise Malformed("101, or too many informational responses")
            case h2.events.TrailersReceived():
                trailers(event.headers)
            case h2.events.DataReceived():
                if stream.left is not None:
                    stream.left -= len(event.data)
                    if stream.left < 0:
                        raise Malformed("a body that is longer than it should be")
                stream.data += event.data
                self._give_back(stream, event.flow_controlled_length - len(event.data))
            case h2.events.StreamEnded():
                if stream.left:
                    raise Malformed("a body that is shorter than it should be")
                stream.ended = True
            case h2.events.StreamReset():
                self._was_reset(stream, event.error_code or 0)
            case _:
                pass

    def _was_reset(self, stream: Stream, code: int) -> None:
        # As Envoy: whatever the code, but for two, the peer has reset it.
        name = _NAMES.get(code, f"{code:#x}")
        if stream.head is not None:
            stream.failed = Failed(Failure.BROKEN_OFF, f"the peer reset the stream: {name}")
        elif code == h2.errors.ErrorCodes.REFUSED_STREAM:
            stream.failed = Failed(Failure.REFUSED_STREAM, Failure.REFUSED_STREAM.value)
        elif code == h2.errors.ErrorCodes.PROTOCOL_ERROR:
            stream.failed = Failed(Failure.PROTOCOL, f"the peer reset the stream: {name}")
        else:
            stream.failed = Failed(Failure.REMOTE_RESET, f"the peer reset the stream: {name}")

    def _go(self, frame: bytes, news: set[Stream]) -> None:
        if len(frame) < _FRAME_HEAD + 8 or frame[5:9] != bytes(4):
            raise Malformed("a GOAWAY that is none")
        self.leaving = True
        last = int.from_bytes(frame[9:13]) & 0x7FFFFFFF
        for stream in self._streams.values():
            if stream.id > last and not stream.over:
                how = Failure.BROKEN_OFF if stream.head is not None else Failure.REFUSED_STREAM
                stream.failed = Failed(how, "the peer went away before it looked at the request")
                news.add(stream)

    def _fail(self, stream: Stream, how: Failure, why: str) -> None:
        if how is Failure.PROTOCOL:
            stream.failed = Failed(how, why)
        elif stream.head is not None:
            stream.failed = Failed(Failure.BROKEN_OFF, f"the body broke off: {why}")
        else:
            stream.failed = Failed(Failure.RESET, f"{why} before a response")

    def _reset(self, stream: Stream, code: h2.errors.ErrorCodes) -> None:
        try:
            self._http.reset_stream(stream.id, code)
        except h2.exceptions.ProtocolError:
            return  # it is closed on both sides

    def _give_back(self, stream: Stream, size: int) -> None:
        """Room in the window of a stream."""
        stream.due += size
        if stream.due >= WINDOW // 2 and not stream.over and self.failed is None:
            self._http.increment_flow_control_window(stream.due, stream.id)
            stream.due = 0

    def _pay_back(self, size: int) -> None:
        """Room in the window of the connection."""
        self._due += size
        if self._due >= CONNECTION_WINDOW // 4:
            self._http.increment_flow_control_window(self._due)
            self._due = 0
