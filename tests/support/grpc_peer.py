"""A peer on loopback that answers calls as no gRPC library would: in frames, by the method that is called.

A method is words in a row, one a frame or an end: `/test.Peer/head-message-reset2` sends a head and
a message, then resets the stream with code 2. `_Connection` has the words. It counts its requests by method.
"""

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from hyperframe.frame import GoAwayFrame, HeadersFrame
from support.threaded import Threaded

PATH = "/test.Peer/"
_HEAD = [(":status", "200"), ("content-type", "application/grpc")]


class GrpcPeer(Threaded):
    """Its port, and what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def serve(self, accepted: socket.socket, number: int) -> None:
        """Streams, until the other side or a word ends it."""
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError), accepted:
            _Connection(self, accepted).run()


class _Connection:
    def __init__(self, peer: GrpcPeer, made: socket.socket) -> None:
        self.peer = peer
        self.socket = made
        config = h2.config.H2Configuration(
            client_side=False, header_encoding="latin-1", validate_outbound_headers=False
        )
        self.http = h2.connection.H2Connection(config)
        self.http.initiate_connection()
        self.done = False

    def run(self) -> None:
        self.flush()
        while not self.done and (data := self.socket.recv(65536)):
            for event in self.http.receive_data(data):
                match event:
                    case h2.events.RequestReceived():
                        method = str(dict(event.headers)[":path"]).rpartition("/")[2]
                        self.peer.asked[method] += 1
                        for word in method.split("-"):
                            name = word.rstrip("0123456789")
                            getattr(self, f"do_{name}")(event.stream_id, word.removeprefix(name))
                    case h2.events.DataReceived():
                        self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    case _:
                        pass
            self.flush()

    def flush(self) -> None:
        if data := self.http.data_to_send():
            self.socket.sendall(data)

    def do_head(self, stream: int, _: str) -> None:
        self.http.send_headers(stream, _HEAD)

    def do_named(self, stream: int, _: str) -> None:
        """A head that says something."""
        self.http.send_headers(stream, [*_HEAD, ("who", "peer")])

    def do_message(self, stream: int, _: str) -> None:
        self.http.send_data(stream, b"\0\0\0\0\2hi")

    def do_empty(self, stream: int, _: str) -> None:
        """A message of no bytes."""
        self.http.send_data(stream, b"\0\0\0\0\0")

    def do_half(self, stream: int, _: str) -> None:
        """Of a message."""
        self.http.send_data(stream, b"\0\0\0\0\x09hi")

    def do_status(self, stream: int, number: str) -> None:
        """After a head."""
        self.http.send_headers(stream, [("grpc-status", number), ("why", "told to")], end_stream=True)

    def do_only(self, stream: int, number: str) -> None:
        """A status that is the head, too."""
        self.http.send_headers(stream, [*_HEAD, ("grpc-status", number)], end_stream=True)

    def do_wait(self, stream: int, _: str) -> None:
        """What was said arrives by itself."""
        self.flush()
        time.sleep(0.03)

    def do_reset(self, stream: int, code: str) -> None:
        self.http.reset_stream(stream, int(code))

    def do_goaway(self, stream: int, _: str) -> None:
        """It goes, and has looked at nothing."""
        self.flush()
        self.socket.sendall(GoAwayFrame(0, last_stream_id=0, error_code=0).serialize())
        self.done = True

    def do_close(self, stream: int, _: str) -> None:
        self.flush()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.done = True

    def do_garbage(self, stream: int, _: str) -> None:
        self.flush()
        self.socket.sendall(b"\xff" * 200)

    def do_huge(self, stream: int, _: str) -> None:
        """A head that is too long for anybody."""
        fields = [*_HEAD, *((f"k{number}", "x" * 9000) for number in range(8))]
        self.http.send_headers(stream, fields)

    def do_unpacked(self, stream: int, _: str) -> None:
        """A head that HPACK can't read."""
        self.flush()
        self.socket.sendall(
            HeadersFrame(stream, b"\xff\xff\xff\xff\xff\xff", flags=["END_HEADERS"]).serialize()
        )


@contextlib.contextmanager
def grpc_peer() -> Iterator[GrpcPeer]:
    """A peer for as long as the block runs."""
    peer = GrpcPeer()
    accepting = threading.Thread(target=peer.run, daemon=True)
    accepting.start()
    try:
        yield peer
    finally:
        peer.stop()
        accepting.join(5)
