"""One gRPC call, streams both ways or unary, sans-IO: messages to HTTP/2 bytes, and back.

Why not grpcio: its core has threads and sockets of its own that do not live through a fork, and it
costs every application 50 ms and 20 MiB for the one call that it makes. The wire format is that of
"gRPC over HTTP2"; rules:

- One connection carries one call. When either ends, so does the other.
- A message is refused if it is larger than `MAX_MESSAGE`, or compressed (none was offered).
- The end is one `CallEnded`, in `ended`, with gRPC's name of the status: the server's own if it said one,
  else what gRPC maps the HTTP status, the reset or the lost connection to.
- GOAWAY ends the call: a server that goes away is left, and found again.
"""

import struct
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from meshlib.errors import ControlError
from meshlib.xds.grpc_status import STATUSES

MAX_MESSAGE = 64 * 1024 * 1024
_WINDOW = 4 * 1024 * 1024
_STREAM = 1
_SETTINGS = 4
_FRAME_HEAD = 9
_PREFIX = struct.Struct(">BI")
_OF_HTTP = {
    400: "INTERNAL",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
} | dict.fromkeys((429, 502, 503, 504), "UNAVAILABLE")
_OF_RESET: dict[int, str] = {
    h2.errors.ErrorCodes.REFUSED_STREAM: "UNAVAILABLE",
    h2.errors.ErrorCodes.CANCEL: "CANCELLED",
    h2.errors.ErrorCodes.ENHANCE_YOUR_CALM: "RESOURCE_EXHAUSTED",
    h2.errors.ErrorCodes.INADEQUATE_SECURITY: "PERMISSION_DENIED",
}


class CallEnded(ControlError):
    """The call is over: gRPC's name of the status, and the reason in words."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}" if details else code)
        self.code = code
        self.details = details


class GrpcCall:
    """The client's end. `receive` and `send` change it, `to_send` gives the bytes that are due."""

    def __init__(
        self, authority: str, path: str, *, metadata: Sequence[tuple[str, str]] = (), secure: bool = False
    ) -> None:
        """Opens a call of method `path` (`/package.Service/Method`); `secure`: the connection is TLS."""
        self._http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="latin-1")
        )
        self._http.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 64 * 1024,
            },
        )
        self._http.initiate_connection()
        self._http.increment_flow_control_window(_WINDOW)
        self._http.send_headers(
            _STREAM,
            [
                (":method", "POST"),
                (":scheme", "https" if secure else "http"),
                (":path", path),
                (":authority", authority),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", "meshlib"),
                *metadata,
            ],
        )
        self._out = bytearray()
        self._finishing = False
        self._in = bytearray()
        self._frames = bytearray()
        self._greeting: bytes | None = b""
        self.ended: CallEnded | None = None
        """Why the call is over; None: it is not."""

    @property
    def blocked(self) -> bool:
        """Whether the server has not yet made room for all that was given to `send`."""
        return bool(self._out)

    def send(self, message: bytes) -> None:
        """One message; nothing happens after the end."""
        self._out += _PREFIX.pack(0, len(message)) + message

    def finish(self) -> None:
        """No message follows those that were given to `send`."""
        self._finishing = True

    def ping(self) -> None:
        """Asks the server for a sign of life."""
        self._http.ping(b"meshlib\0")

    def to_send(self) -> bytes:
        """The bytes that can be sent now, each once."""
        if self.ended is None:
            while self._out:
                room = min(
                    self._http.local_flow_control_window(_STREAM),
                    self._http.max_outbound_frame_size,
                    len(self._out),
                )
                if room <= 0:
                    break
                self._http.send_data(_STREAM, bytes(self._out[:room]))
                del self._out[:room]
            if self._finishing and not self._out:
                self._finishing = False
                self._http.end_stream(_STREAM)
        return self._http.data_to_send()

    def receive(self, data: bytes) -> list[bytes]:
        """The messages that these bytes complete; no bytes: the connection was closed. See `ended`, too."""
        if self.ended is not None:
            return []
        if not data:
            self._over("UNAVAILABLE", "the connection was closed")
        if self._greeting is not None:
            self._greeting += data[:4]
            # RFC 9113, 3.4: "The server connection preface consists of a potentially empty SETTINGS frame".
            # The parser would take a text for the head of a frame of megabytes, and wait for these.
            if len(self._greeting) >= 4:
                if self._greeting[3] != _SETTINGS:
                    self._over("INTERNAL", "it does not speak HTTP/2")
                    return []
                self._greeting = None
        try:
            for frame in self._whole_frames(data):
                for event in self._http.receive_data(frame):
                    self._happened(event)
        except h2.exceptions.ProtocolError as error:
            self._over("INTERNAL", f"it does not speak HTTP/2: {error}")
        return self._messages()

    def _whole_frames(self, data: bytes) -> Iterator[bytes]:
        """Frame by frame: what follows a farewell makes the parser raise, and the farewell would be lost."""
        self._frames += data
        while len(self._frames) >= _FRAME_HEAD:
            size = _FRAME_HEAD + int.from_bytes(self._frames[:3])
            if size > _FRAME_HEAD + self._http.max_inbound_frame_size:
                size = len(self._frames)  # too large: the parser says so
            elif len(self._frames) < size:
                return
            frame = bytes(self._frames[:size])
            del self._frames[:size]
            yield frame

    def _happened(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self._answered({str(name): str(value) for name, value in event.headers})
            case h2.events.DataReceived():
                self._in += event.data
                self._http.acknowledge_received_data(event.flow_controlled_length, _STREAM)
            case h2.events.TrailersReceived():
                self._trailed({str(name): str(value) for name, value in event.headers})
            case h2.events.StreamEnded():
                self._over("UNKNOWN", "it ended the call without a status")
            case h2.events.StreamReset():
                code = event.error_code or 0
                self._over(_OF_RESET.get(code, "INTERNAL"), f"reset ({code!r})")
            case h2.events.ConnectionTerminated():
                said = (event.additional_data or b"").decode("utf-8", "replace")
                self._over("UNAVAILABLE", f"it goes away {said}".strip())
            case _:
                pass

    def _answered(self, headers: dict[str, str]) -> None:
        status, kind = headers.get(":status", ""), headers.get("content-type", "")
        if "grpc-status" in headers:
            self._trailed(headers)
        elif status != "200":
            number = int(status) if status.isascii() and status.isdecimal() else 0
            self._over(_OF_HTTP.get(number, "UNKNOWN"), f"HTTP status {status[:20]}")
        elif not kind.startswith("application/grpc"):
            self._over("UNKNOWN", f"content-type {kind[:80]!r} is not gRPC's")

    def _trailed(self, headers: dict[str, str]) -> None:
        text = headers.get("grpc-status", "")
        known = text.isascii() and text.isdecimal() and len(text) < 3 and int(text) < len(STATUSES)
        code = STATUSES[int(text)] if known else "UNKNOWN"
        self._over(code, unquote(headers.get("grpc-message", ""))[:1000])

    def _messages(self) -> list[bytes]:
        found = []
        while len(self._in) >= _PREFIX.size:
            compressed, size = _PREFIX.unpack_from(self._in)
            if compressed or size > MAX_MESSAGE:
                why = "is compressed" if compressed else f"has {size} bytes; {MAX_MESSAGE} are allowed"
                self._in.clear()
                self._over("INTERNAL" if compressed else "RESOURCE_EXHAUSTED", f"a message {why}")
                break
            end = _PREFIX.size + size
            if len(self._in) < end:
                break
            found.append(bytes(self._in[_PREFIX.size : end]))
            del self._in[:end]
        return found

    def _over(self, code: str, details: str) -> None:
        """The first reason counts."""
        self.ended = self.ended or CallEnded(code, details)
