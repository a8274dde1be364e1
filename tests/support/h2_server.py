"""A scripted HTTP/2 server on loopback, by prior knowledge or TLS, one thread a connection.

The path says what it does; see `_Connection`. It counts connections and keeps what it was sent. `h2` speaks
for it; what `h2` would not say is said in frames.
"""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, PingFrame, RstStreamFrame
from support.threaded import Threaded

TICK = 0.005
MAX_STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
FIRST_WINDOW = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE


class H2Server(Threaded):
    """Its port, what it saw, and how many connections came."""

    def __init__(self, tls: ssl.SSLContext | None, settings: dict[h2.settings.SettingCodes, int]) -> None:
        super().__init__()
        self.tls = tls
        self.settings = settings
        self.requests: list[tuple[int, dict[str, str]]] = []
        """Number of the connection, and the fields, of each request."""
        self.resets: list[int] = []
        """Codes of the streams that clients have reset."""
        self.most_at_once = 0
        self.pings = 0
        self.go = threading.Event()
        """Until it is set, `/wait` waits."""
        self.deaf = threading.Event()
        """While it is set nothing is read, and nothing said."""
        self.mute = False
        """Whether pings stay without an answer."""
        self.raw: dict[str, bytes] = {}
        """What `/raw/NAME` says instead of an answer."""
        self.tried: set[str] = set()

    def serve(self, accepted: socket.socket, number: int) -> None:
        """Streams, as long as both want more."""
        if accepted.family != socket.AF_UNIX:
            # What is said before a reset must not wait for the peer's acknowledgement: the reset drops it.
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError), accepted:
            made = accepted if self.tls is None else self.tls.wrap_socket(accepted, server_side=True)
            self.open.add(made)
            with made:
                _Connection(self, made, number).run()
            self.open.discard(made)


class _Connection:
    """One connection: a path's first word names a method."""

    def __init__(self, server: H2Server, made: socket.socket, number: int) -> None:
        self.server = server
        self.socket = made
        self.number = number
        config = h2.config.H2Configuration(client_side=False, header_encoding="latin-1")
        self.http = h2.connection.H2Connection(config)
        self.http.local_settings = h2.settings.Settings(client=False, initial_values=dict(server.settings))
        self.http.initiate_connection()
        self.paths: dict[int, list[str]] = {}
        self.bodies: dict[int, bytearray] = {}
        self.heads: dict[int, dict[str, str]] = {}
        self.unsent: dict[int, memoryview] = {}
        self.waiting: set[int] = set()
        self.done = False

    def run(self) -> None:
        self.socket.settimeout(TICK)
        while not self.done and not self.server.closing.is_set():
            if self.server.deaf.is_set():
                self.server.closing.wait(TICK)
                continue
            self.flush()
            if self.server.go.is_set():
                for stream in list(self.waiting):
                    self.waiting.discard(stream)
                    self.answer(stream, 200, b"waited")
                self.flush()
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return
            try:
                events = self.http.receive_data(data)
            except h2.exceptions.ProtocolError:
                self.flush()
                return
            gone = {event.stream_id for event in events if isinstance(event, h2.events.StreamReset)}
            for event in events:
                # A request that was given up in the same breath is not answered.
                if not (isinstance(event, h2.events.StreamEnded) and event.stream_id in gone):
                    self.happened(event)

    def flush(self) -> None:
        for stream in list(self.unsent):
            self.pump(stream)
        if data := self.http.data_to_send():
            self.say(data)

    def say(self, data: bytes) -> None:
        self.socket.settimeout(5)
        self.socket.sendall(data)
        self.socket.settimeout(TICK)

    def frame(self, frame: Frame) -> None:
        """One that `h2` would not send here."""
        self.flush()
        self.say(frame.serialize())

    def happened(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                head = {str(name): str(value) for name, value in event.headers}
                self.server.requests.append((self.number, head))
                self.server.most_at_once = max(self.server.most_at_once, self.http.open_inbound_streams)
                words = head[":path"].strip("/").split("/")
                if words[0] == "once":
                    again = head["x-id"] in self.server.tried
                    self.server.tried.add(head["x-id"])
                    words = ["echo"] if again else words[1:]
                self.paths[event.stream_id], self.heads[event.stream_id] = words, head
                self.bodies[event.stream_id] = bytearray()
                at_once = getattr(self, f"begin_{words[0]}", None)
                if at_once is not None:
                    at_once(event.stream_id, *words[1:])
            case h2.events.DataReceived():
                self.bodies[event.stream_id] += event.data
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                words = self.paths[event.stream_id]
                do = getattr(self, f"do_{words[0]}", None)
                if do is not None:
                    do(event.stream_id, *words[1:])
            case h2.events.StreamReset():
                self.server.resets.append(int(event.error_code))
                self.unsent.pop(event.stream_id, None)
                self.waiting.discard(event.stream_id)
            case h2.events.PingReceived():
                self.server.pings += 1
                if self.server.mute:
                    self.http.clear_outbound_data_buffer()
            case _:
                pass

    def answer(self, stream: int, status: int, body: bytes = b"", *more: tuple[str, str]) -> None:
        fields = [(":status", str(status)), ("x-connection", str(self.number)), *more]
        self.http.send_headers(stream, fields, end_stream=not body)
        if body:
            self.unsent[stream] = memoryview(body)
            self.pump(stream)

    def pump(self, stream: int) -> None:
        rest = self.unsent[stream]
        while rest:
            room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
            if room <= 0:
                self.unsent[stream] = rest
                return
            part, rest = rest[:room], rest[room:]
            self.http.send_data(stream, part, end_stream=not rest)
        del self.unsent[stream]

    # once the request is whole

    def do_echo(self, stream: int) -> None:
        self.answer(stream, 200, bytes(self.bodies[stream]), ("x-method", self.heads[stream][":method"]))

    def do_status(self, stream: int, status: str) -> None:
        self.answer(stream, int(status))

    def do_big(self, stream: int, size: str) -> None:
        self.answer(stream, 200, b"0123456789abcdef" * (int(size) // 16))

    def do_wait(self, stream: int) -> None:
        self.waiting.add(stream)

    def do_head(self, stream: int) -> None:
        self.answer(stream, 200, b"", ("content-length", "42"))

    def do_inform(self, stream: int) -> None:
        for status in ("100", "103"):
            self.http.send_headers(stream, [(":status", status), ("link", "</x>")])
        self.answer(stream, 200, b"informed")

    def do_trailers(self, stream: int) -> None:
        self.http.send_headers(stream, [(":status", "200")])
        self.http.send_data(stream, b"before")
        self.http.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    def do_short(self, stream: int) -> None:
        self.answer(stream, 200, b"short", ("content-length", "50"))

    def do_halves(self, stream: int, code: str) -> None:
        """Half of a body, then a reset."""
        self.http.send_headers(stream, [(":status", "200"), ("content-length", "8")])
        self.http.send_data(stream, b"half")
        self.http.reset_stream(stream, int(code))

    def do_goaway(self, stream: int) -> None:
        """It goes when this is done."""
        self.frame(GoAwayFrame(0, last_stream_id=stream, error_code=0))
        self.answer(stream, 200, b"bye")

    def do_leave(self, stream: int) -> None:
        """It answers, waits until `go`, goes, and what comes then is reset."""
        self.answer(stream, 200, b"bye")
        self.flush()
        self.server.go.wait(60)
        self.frame(GoAwayFrame(0, last_stream_id=stream, error_code=0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.done = True

    def do_limit(self, stream: int, most: str) -> None:
        self.http.update_settings({MAX_STREAMS: int(most)})
        self.answer(stream, 200, b"limited")

    def do_close(self, stream: int) -> None:
        """An end, no reset: what the peer still says is read."""
        self.flush()
        self.socket.shutdown(socket.SHUT_WR)
        self.socket.settimeout(5)
        while self.socket.recv(65536):
            pass
        self.done = True

    def do_raw(self, stream: int, name: str) -> None:
        self.flush()
        said = self.server.raw[name]
        self.say(said.replace(b"STRM", stream.to_bytes(4)))

    # at its head

    def begin_reset(self, stream: int, code: str) -> None:
        self.http.reset_stream(stream, int(code))

    def begin_refuse(self, stream: int) -> None:
        """It goes, and has not looked at this one."""
        self.frame(GoAwayFrame(0, last_stream_id=max(0, stream - 2), error_code=0))

    def begin_early(self, stream: int) -> None:
        """An answer that does not wait for the body."""
        self.answer(stream, 413, b"too much")
        self.frame(RstStreamFrame(stream, error_code=h2.errors.ErrorCodes.NO_ERROR))

    def begin_storm(self, stream: int) -> None:
        """Windows that grow and shrink while a body comes."""
        for size in (1, 2**20, 0, 65535, 7, 2**16, 30_000):
            self.http.update_settings({FIRST_WINDOW: size})
        self.paths[stream] = ["echo"]

    def begin_ping(self, stream: int) -> None:
        self.frame(PingFrame(0, opaque_data=b"12345678"))
        self.paths[stream] = ["echo"]

    def begin_empty(self, stream: int) -> None:
        """Empty frames without end."""
        self.http.send_headers(stream, [(":status", "200")])
        self.flush()
        while not self.server.closing.is_set():
            self.say(DataFrame(stream).serialize() * 1000)


@contextlib.contextmanager
def h2_server(
    tls: ssl.SSLContext | None = None, settings: dict[h2.settings.SettingCodes, int] | None = None
) -> Iterator[H2Server]:
    """A server for as long as the block runs."""
    server = H2Server(tls, settings or {})
    accepting = threading.Thread(target=server.run, daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        server.stop()
        accepting.join(5)
