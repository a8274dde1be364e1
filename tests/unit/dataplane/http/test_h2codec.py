"""One connection's HTTP/2 without sockets: against `h2`'s own server, and against peers of the worst kind."""

from collections.abc import Callable, Sequence

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hpack import Encoder
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.core.request import Failed, Failure, Header, RequestHead, ResponseHead
from meshlib.dataplane.http import h2codec
from meshlib.dataplane.http.h2codec import CONNECTION_WINDOW, WINDOW, Codec, Reset, Stream
from meshlib.dataplane.http.read import Need
from meshlib.dataplane.http.syntax import Unsendable

Codes = h2.settings.SettingCodes
GET = RequestHead("GET", "http", "a:1", "/")
HEAD = RequestHead("HEAD", "http", "a:1", "/")
POST = RequestHead("POST", "http", "a:1", "/")
OK = [(b":status", b"200")]


class Peer:
    """A server, at the other end of a codec."""

    def __init__(self, settings: dict[Codes, int] | None = None) -> None:
        self.codec = Codec()
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.http.local_settings = h2.settings.Settings(client=False, initial_values=settings or {})
        self.http.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.news: set[Stream] = set()
        self.now = 0.0

    def talk(self) -> list[h2.events.Event]:
        """Until both have said all; what the server heard."""
        before = len(self.events)
        while True:
            to_peer, to_us = self.codec.outgoing(), self.http.data_to_send()
            if not to_peer and not to_us:
                return self.events[before:]
            self.events += self.http.receive_data(to_peer) if to_peer else []
            if to_us:
                self.news |= self.codec.receive(to_us, self.now)

    def heard(self, kind: type[h2.events.Event]) -> list[h2.events.Event]:
        return [event for event in self.talk() if isinstance(event, kind)]


class Wire:
    """A peer made of frames."""

    def __init__(self, head: RequestHead = GET, *, whole: bool = True) -> None:
        self.codec = Codec()
        self.encoder = Encoder()
        self.stream = self.codec.open(head, whole=whole)
        self.codec.outgoing()
        self.say(SettingsFrame(0))

    def say(self, *frames: Frame, now: float = 0.0) -> None:
        for frame in frames:
            self.codec.receive(frame.serialize(), now)

    def head(self, fields: Sequence[Header] = OK, *flags: str, number: int = 1) -> HeadersFrame:
        return HeadersFrame(number, self.encoder.encode(fields), flags=("END_HEADERS", *flags))

    def all(self) -> list[ResponseHead | bytes | Need | Failure]:
        """Every part of the response that is here."""
        found: list[ResponseHead | bytes | Need | Failure] = []
        while True:
            try:
                found.append(self.codec.next(self.stream))
            except Reset as error:
                return [*found, error.failed.how]
            if isinstance(found[-1], Need):
                return found


def read(codec: Codec, stream: Stream) -> bytes:
    data = b""
    while isinstance(part := codec.next(stream), bytes | ResponseHead):
        data += part if isinstance(part, bytes) else b""
    return data


# What both say


def test_a_request_and_its_response() -> None:
    peer = Peer()
    stream = peer.codec.open(GET, whole=True)
    asked = peer.heard(h2.events.RequestReceived)[0]
    assert dict(asked.headers)[b":path"] == b"/"
    assert asked.stream_ended is not None
    assert peer.codec.next(stream) is Need.DATA
    peer.http.send_headers(1, [(b":status", b"200"), (b"x", b"1")])
    peer.http.send_data(1, b"body", end_stream=True)
    peer.talk()
    assert stream in peer.news
    parts = [peer.codec.next(stream) for _ in range(3)]
    assert parts == [ResponseHead(200, ((b"x", b"1"),)), b"body", Need.NOTHING]
    peer.codec.release(stream)
    assert peer.codec.outgoing() == b""


def test_settings_say_that_nothing_is_pushed() -> None:
    peer = Peer()
    peer.codec.open(GET, whole=True)
    settings = peer.heard(h2.events.RemoteSettingsChanged)[0].changed_settings
    assert settings[Codes.ENABLE_PUSH].new_value == 0
    assert settings[Codes.INITIAL_WINDOW_SIZE].new_value == WINDOW
    assert peer.http.outbound_flow_control_window == CONNECTION_WINDOW


def test_a_body_waits_for_the_peers_windows() -> None:
    peer = Peer({Codes.INITIAL_WINDOW_SIZE: 10_000})
    peer.talk()
    stream = peer.codec.open(POST, whole=False)
    body, at = b"0123456789" * 5000, 0
    heard = b""
    for _ in range(20):
        at += peer.codec.send(stream, body[at:], last=True)
        for event in peer.heard(h2.events.DataReceived):
            heard += event.data
            peer.http.acknowledge_received_data(event.flow_controlled_length, 1)
        peer.talk()
    assert (heard, stream.finished) == (body, True)
    assert peer.codec.send(stream, b"", last=True) == 0


def test_what_is_not_read_stops_the_peer_and_what_is_read_lets_it_go_on() -> None:
    peer = Peer()
    stream, other = peer.codec.open(GET, whole=True), peer.codec.open(GET, whole=True)
    peer.talk()
    peer.http.send_headers(1, OK)
    sent = 0
    while (room := min(peer.http.local_flow_control_window(1), 16384)) > 0:
        peer.http.send_data(1, b"x" * room)
        sent += room
        peer.talk()
    assert (sent, len(stream.data)) == (WINDOW, WINDOW)
    peer.http.send_headers(3, OK)
    peer.http.send_data(3, b"y" * 16384, end_stream=True)
    peer.talk()
    assert len(read(peer.codec, other)) == 16384
    assert len(read(peer.codec, stream)) == WINDOW
    peer.talk()
    assert peer.http.local_flow_control_window(1) == WINDOW


def test_a_slow_reader_does_not_close_the_connections_window() -> None:
    peer = Peer()
    streams = [peer.codec.open(GET, whole=True) for _ in range(100)]
    peer.talk()
    for stream in streams:
        peer.http.send_headers(stream.id, OK)
        for _ in range(WINDOW // 16384):
            peer.http.send_data(stream.id, b"x" * 16384)
            peer.talk()
    assert peer.http.outbound_flow_control_window > CONNECTION_WINDOW // 2


def test_lengths_of_requests_are_kept() -> None:
    head = RequestHead("POST", "http", "a", "/", [(b"Content-Length", b"3")])
    for act in (
        lambda codec: codec.open(head, whole=True),
        lambda codec: codec.send(codec.open(head, whole=False), b"long"),
        lambda codec: codec.send(codec.open(head, whole=False), b"no", last=True),
        lambda codec: codec.finish(codec.open(head, whole=False)),
    ):
        with pytest.raises(Unsendable):
            act(Codec())
    codec = Codec()
    stream = codec.open(head, whole=False)
    assert [codec.send(stream, b"a"), codec.send(stream, b"bc")] == [1, 2]
    codec.finish(stream)
    assert stream.finished


def test_who_gives_up_tells_the_peer() -> None:
    peer = Peer()
    stream = peer.codec.open(POST, whole=False)
    peer.talk()
    peer.codec.release(stream)
    assert [event.error_code for event in peer.heard(h2.events.StreamReset)] == [8]
    peer.codec.release(stream)
    assert peer.talk() == []


def test_what_comes_for_a_stream_that_was_given_up_is_nobodys() -> None:
    wire = Wire()
    wire.codec.release(wire.stream)
    wire.say(wire.head(), DataFrame(1, b"x" * 1000), RstStreamFrame(1, 0), WindowUpdateFrame(1, 5))
    assert wire.codec.usable
    assert wire.codec.open(GET, whole=True).id == 3


def test_an_answer_that_is_whole_before_the_request_is() -> None:
    wire = Wire(POST, whole=False)
    wire.say(wire.head(OK, "END_STREAM"), RstStreamFrame(1, 0))
    assert wire.stream.over
    assert wire.codec.send(wire.stream, b"more") == 4
    wire.codec.finish(wire.stream)
    assert wire.all() == [ResponseHead(200), Need.NOTHING]
    wire.codec.release(wire.stream)
    assert wire.codec.usable


def test_pings_are_answered_and_asked() -> None:
    peer = Peer()
    peer.talk()
    peer.http.ping(b"01234567")
    assert [event.ping_data for event in peer.heard(h2.events.PingAckReceived)] == [b"01234567"]
    peer.codec.ping()
    assert peer.codec.pinged
    peer.talk()
    assert not peer.codec.pinged


def test_the_answer_to_another_ping_counts_for_nothing() -> None:
    wire = Wire()
    wire.codec.ping()
    wire.say(PingFrame(0, b"somebody", flags=("ACK",)))
    assert wire.codec.pinged


def test_how_many_streams_the_peer_takes() -> None:
    codec = Codec()
    assert codec.allowed is None
    codec.receive(SettingsFrame(0, {3: 7}).serialize(), 0.0)
    assert (codec.allowed, codec.widened) == (7, True)
    codec.receive(SettingsFrame(0, {3: 0}).serialize(), 0.0)
    assert codec.allowed == 0
    with pytest.raises(Reset) as raised:
        codec.open(GET, whole=True)
    assert raised.value.failed.how is Failure.REFUSED_STREAM


def test_the_peer_does_not_decide_how_much_is_remembered() -> None:
    wire = Wire()
    wire.say(SettingsFrame(0, {1: 2**32 - 1}))
    for number in range(300):
        wire.codec.open(RequestHead("GET", "http", "a", f"/{number}", [(b"x", b"y" * 100)]), whole=True)
    assert wire.codec._http.encoder.header_table_size == h2codec.TABLE
    assert wire.codec._http.encoder.header_table._current_size <= h2codec.TABLE


def test_numbers_of_streams_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h2codec, "LAST_ID", 5)
    codec = Codec()
    assert [codec.open(GET, whole=True).id for _ in range(2)] == [1, 3]
    assert not codec.usable
    with pytest.raises(Reset):
        codec.open(GET, whole=True)


# Responses, frame by frame

Step = Callable[[Wire], Sequence[Frame]]
E, NOTHING, DATA = "END_STREAM", Need.NOTHING, Need.DATA
LENGTH_5 = [*OK, (b"content-length", b"5")]
RESPONSES: list[tuple[str, RequestHead, Step, list[object]]] = [
    ("head alone", GET, lambda w: [w.head(OK, E)], [ResponseHead(200), NOTHING]),
    ("empty end", GET, lambda w: [w.head(), DataFrame(1, flags=(E,))], [ResponseHead(200), NOTHING]),
    ("open", GET, lambda w: [w.head(), DataFrame(1, b"x")], [ResponseHead(200), b"x", DATA]),
    (
        "padded",
        GET,
        lambda w: [w.head(), DataFrame(1, b"x", pad_length=200, flags=(E, "PADDED"))],
        [ResponseHead(200), b"x", NOTHING],
    ),
    (
        "informed",
        GET,
        lambda w: [w.head([(b":status", b"103"), (b"link", b"x")]), w.head(OK, E)],
        [ResponseHead(200), NOTHING],
    ),
    (
        "informed twice",
        GET,
        lambda w: [w.head([(b":status", b"100")])] * 2 + [w.head(OK, E)],
        [ResponseHead(200), NOTHING],
    ),
    (
        "trailers",
        GET,
        lambda w: [w.head(), DataFrame(1, b"x"), w.head([(b"t", b"1")], E)],
        [ResponseHead(200), b"x", NOTHING],
    ),
    ("trailers only", GET, lambda w: [w.head(), w.head([(b"t", b"1")], E)], [ResponseHead(200), NOTHING]),
    (
        "the length it says",
        GET,
        lambda w: [w.head(LENGTH_5), DataFrame(1, b"12"), DataFrame(1, b"345", flags=(E,))],
        [ResponseHead(200, ((b"content-length", b"5"),)), b"12345", NOTHING],
    ),
    (
        "HEAD",
        HEAD,
        lambda w: [w.head(LENGTH_5, E)],
        [ResponseHead(200, ((b"content-length", b"5"),)), NOTHING],
    ),
    (
        "HEAD, empty end",
        HEAD,
        lambda w: [w.head(LENGTH_5), DataFrame(1, flags=(E,))],
        [ResponseHead(200, ((b"content-length", b"5"),)), NOTHING],
    ),
    (
        "304",
        GET,
        lambda w: [w.head([(b":status", b"304"), (b"content-length", b"5")]), DataFrame(1, flags=(E,))],
        [ResponseHead(304, ((b"content-length", b"5"),)), NOTHING],
    ),
    ("in pieces", GET, lambda w: continued(w, 3, E), [ResponseHead(200, ((b"x", b"y" * 50),)), NOTHING]),
    (
        "an extension in between",
        GET,
        lambda w: [w.head(), extension(), DataFrame(1, b"x", flags=(E,))],
        [ResponseHead(200), b"x", NOTHING],
    ),
    (
        "another service",
        GET,
        lambda w: [AltSvcFrame(1, b"", b"h3=x"), w.head(OK, E)],
        [ResponseHead(200), NOTHING],
    ),
    (
        "priorities",
        GET,
        lambda w: [PriorityFrame(1, depends_on=3), w.head(OK, E)],
        [ResponseHead(200), NOTHING],
    ),
    # what is the end of the stream
    ("refused", GET, lambda w: [RstStreamFrame(1, 7)], [Failure.REFUSED_STREAM]),
    ("reset", GET, lambda w: [RstStreamFrame(1, 2)], [Failure.REMOTE_RESET]),
    ("reset for what we sent", GET, lambda w: [RstStreamFrame(1, 1)], [Failure.PROTOCOL]),
    ("reset by nothing", GET, lambda w: [RstStreamFrame(1, 0)], [Failure.REMOTE_RESET]),
    ("reset by what nobody knows", GET, lambda w: [RstStreamFrame(1, 2**32 - 1)], [Failure.REMOTE_RESET]),
    (
        "reset after the head",
        GET,
        lambda w: [w.head(), RstStreamFrame(1, 7)],
        [ResponseHead(200), Failure.BROKEN_OFF],
    ),
    (
        "reset in the body",
        GET,
        lambda w: [w.head(), DataFrame(1, b"x"), RstStreamFrame(1, 2)],
        [ResponseHead(200), b"x", Failure.BROKEN_OFF],
    ),
    (
        "too short",
        GET,
        lambda w: [w.head(LENGTH_5), DataFrame(1, b"x", flags=(E,))],
        [ResponseHead(200, ((b"content-length", b"5"),)), b"x", Failure.PROTOCOL],
    ),
    (
        "short without a body",
        GET,
        lambda w: [w.head(LENGTH_5, E)],
        [ResponseHead(200, ((b"content-length", b"5"),)), Failure.PROTOCOL],
    ),
    (
        "too long",
        GET,
        lambda w: [w.head(LENGTH_5), DataFrame(1, b"123456")],
        [ResponseHead(200, ((b"content-length", b"5"),)), Failure.PROTOCOL],
    ),
    ("a body of HEAD", HEAD, lambda w: [w.head(), DataFrame(1, b"x")], [ResponseHead(200), Failure.PROTOCOL]),
    (
        "a body of 204",
        GET,
        lambda w: [w.head([(b":status", b"204")]), DataFrame(1, b"x")],
        [ResponseHead(204), Failure.PROTOCOL],
    ),
    ("101", GET, lambda w: [w.head([(b":status", b"101")])], [Failure.PROTOCOL]),
    ("no status", GET, lambda w: [w.head([(b"x", b"1")])], [Failure.PROTOCOL]),
    ("upper case", GET, lambda w: [w.head([*OK, (b"X", b"1")])], [Failure.PROTOCOL]),
    ("a line in a value", GET, lambda w: [w.head([*OK, (b"x", b"1\r\ny: 2")])], [Failure.PROTOCOL]),
    ("of a connection", GET, lambda w: [w.head([*OK, (b"connection", b"close")])], [Failure.PROTOCOL]),
    ("pseudo trailers", GET, lambda w: [w.head(), w.head(OK, E)], [ResponseHead(200), Failure.PROTOCOL]),
    ("informed without end", GET, lambda w: [w.head([(b":status", b"103")])] * 101, [Failure.PROTOCOL]),
]


def extension() -> Frame:
    made = ExtensionFrame(0xBE, 1)
    made.parse_body(memoryview(b"x"))
    return made


def continued(wire: Wire, pieces: int, *flags: str) -> list[Frame]:
    block = wire.encoder.encode([*OK, (b"x", b"y" * 50)])
    size = -(-len(block) // pieces)
    parts = [block[at : at + size] for at in range(0, len(block), size)]
    frames: list[Frame] = [HeadersFrame(1, parts[0], flags=flags)]
    frames += [ContinuationFrame(1, part) for part in parts[1:]]
    frames[-1].flags.add("END_HEADERS")
    return frames


@pytest.mark.parametrize(
    ("head", "frames", "parts"), [case[1:] for case in RESPONSES], ids=[c[0] for c in RESPONSES]
)
def test_responses(head: RequestHead, frames: Step, parts: list[object]) -> None:
    wire = Wire(head)
    wire.say(*frames(wire))
    assert wire.all() == parts
    assert wire.codec.failed is None
    wire.codec.release(wire.stream)
    # whatever became of it: the connection is as good as before
    wire.stream = wire.codec.open(GET, whole=True)
    wire.say(wire.head(OK, E, number=3))
    assert wire.all() == [ResponseHead(200), Need.NOTHING]


@pytest.mark.parametrize(
    ("head", "frames", "parts"), [case[1:] for case in RESPONSES], ids=[c[0] for c in RESPONSES]
)
def test_the_same_a_byte_at_a_time(head: RequestHead, frames: Step, parts: list[object]) -> None:
    wire = Wire(head)
    for byte in b"".join(frame.serialize() for frame in frames(wire)):
        wire.codec.receive(bytes((byte,)), 0.0)
    assert wire.all() == parts
    assert wire.codec.failed is None


# What is the end of the connection


def frame(kind: int, body: bytes = b"", *, flags: int = 0, number: int = 0) -> bytes:
    return len(body).to_bytes(3) + bytes((kind, flags)) + number.to_bytes(4) + body


BROKEN: dict[str, Callable[[Wire], bytes]] = {
    "data on no stream": lambda w: frame(0, b"x"),
    "data before a head": lambda w: frame(0, b"x", number=1),
    "data on a stream that never was": lambda w: frame(0, b"x", number=99),
    "data with too much padding": lambda w: w.head().serialize() + frame(0, b"\xffx", flags=8, number=1),
    "a head on no stream": lambda w: frame(1, b"\x88", flags=4),
    "a head on a stream that never was": lambda w: frame(1, b"\x88", flags=4, number=99),
    "a head on a stream of its own": lambda w: frame(1, b"\x88", flags=4, number=2),
    "a head that is no HPACK": lambda w: frame(1, b"\xff\xff\xff\xff\xff\xff", flags=4, number=1),
    "a head of an index that is none": lambda w: frame(1, b"\xc0", flags=4, number=1),
    "a head that ends in a string": lambda w: frame(1, b"\x40\x7f", flags=4, number=1),
    "a table of any size": lambda w: frame(1, b"\x3f\xe1\xff\xff\x0f\x88", flags=4, number=1),
    "a head without its end": lambda w: frame(1, b"\x88", number=1) + frame(0, b"x", number=1),
    "two heads without an end": lambda w: frame(1, b"\x88", number=1) * 2,
    "a continuation of another": lambda w: frame(1, b"\x88", number=1) + frame(9, b"", flags=4, number=3),
    "a continuation of nothing": lambda w: frame(9, b"\x88", flags=4, number=1),
    "an end of what has ended": lambda w: w.head(OK, E).serialize() + w.head([(b"t", b"")], E).serialize(),
    "informed and ended": lambda w: w.head([(b":status", b"103")], E).serialize(),
    "trailers that do not end": lambda w: w.head().serialize() + w.head([(b"t", b"")]).serialize(),
    "a priority of the wrong size": lambda w: frame(2, b"x", number=1),
    "a priority of itself": lambda w: frame(2, b"\0\0\0\1\0", number=1),
    "a reset of no stream": lambda w: frame(3, bytes(4)),
    "a reset of the wrong size": lambda w: frame(3, bytes(3), number=1),
    "settings of a stream": lambda w: frame(4, b"", number=1),
    "settings of the wrong size": lambda w: frame(4, bytes(5)),
    "settings that are both": lambda w: frame(4, bytes(6), flags=1),
    "a push that may be": lambda w: frame(4, b"\0\2\0\0\0\2"),
    "a first window too large": lambda w: frame(4, b"\0\4\x80\0\0\0"),
    "frames too small": lambda w: frame(4, b"\0\5\0\0\0\1"),
    "frames too large": lambda w: frame(4, b"\0\5\1\0\0\0"),
    "a push": lambda w: PushPromiseFrame(1, 2, b"\x88", flags=("END_HEADERS",)).serialize(),
    "a ping of a stream": lambda w: frame(6, bytes(8), number=1),
    "a ping of the wrong size": lambda w: frame(6, bytes(7)),
    "a farewell of a stream": lambda w: frame(7, bytes(8), number=1),
    "a farewell of the wrong size": lambda w: frame(7, bytes(7)),
    "a window of nothing": lambda w: frame(8, bytes(4)),
    "a window of the wrong size": lambda w: frame(8, bytes(3)),
    "a window that overflows": lambda w: frame(8, b"\x7f\xff\xff\xff"),
    "a frame too large": lambda w: frame(0, bytes(65537), number=1),
    "a frame far too large": lambda w: b"\xff\xff\xff\x00\x00" + bytes(4),
    "more than the windows allow": lambda w: w.head().serialize() + frame(0, bytes(65536), number=1) * 5,
    "a head too large": lambda w: (
        frame(1, b"\x88" + bytes(60_000), number=1) + frame(9, bytes(60_000), number=1)
    ),
    "a head that unpacks too large": lambda w: frame(
        1, b"\x88\x40\x01a" + b"\x7f\x81\x1e" + b"x" * 3968 + b"\xbe" * 200, flags=4, number=1
    ),
    "continuations without end": lambda w: frame(1, b"\x88", number=1) + frame(9, b"", number=1) * 100,
    "text": lambda w: b"HTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("said", BROKEN.values(), ids=BROKEN)
def test_what_is_the_end_of_the_connection(said: Callable[[Wire], bytes]) -> None:
    wire = Wire()
    wire.codec.receive(said(wire), 0.0)
    assert wire.codec.failed is not None
    assert wire.codec.failed.how is Failure.PROTOCOL
    assert wire.stream.over
    assert not wire.codec.usable
    assert b"\x07" in wire.codec.outgoing()  # GOAWAY
    # nothing harms any more
    assert wire.codec.receive(b"\0" * 50, 0.0) == set()
    wire.codec.release(wire.stream)
    assert wire.codec.outgoing() == b""
    with pytest.raises(Reset):
        wire.codec.open(GET, whole=True)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(6, bytes(8)),
        frame(1, b"\x88", flags=4, number=1),
        b"\0\0\0\x04\x01",
    ],
)
def test_a_peer_that_does_not_begin_with_settings(said: bytes) -> None:
    codec = Codec()
    stream = codec.open(GET, whole=True)
    for at in range(len(said)):
        codec.receive(said[at : at + 1], 0.0)
    assert codec.failed is not None
    with pytest.raises(Reset, match="does not speak HTTP/2"):
        codec.next(stream)


# Loss and farewell


@pytest.mark.parametrize(
    ("frames", "parts"),
    [
        (lambda w: [], [Failure.RESET]),
        (lambda w: [w.head(), DataFrame(1, b"x")], [ResponseHead(200), b"x", Failure.BROKEN_OFF]),
        (lambda w: [w.head(OK, E)], [ResponseHead(200), Need.NOTHING]),
    ],
)
def test_a_lost_connection(frames: Step, parts: list[object]) -> None:
    wire = Wire()
    wire.say(*frames(wire))
    wire.codec.receive(b"", 0.0)
    assert wire.all() == parts
    assert wire.codec.failed == Failed(Failure.RESET, "the peer closed the connection")


def test_a_farewell_ends_what_was_not_looked_at() -> None:
    wire = Wire()
    second, third = (wire.codec.open(GET, whole=True) for _ in range(2))
    wire.say(GoAwayFrame(0, last_stream_id=2**31 - 1, error_code=0))
    assert (wire.codec.usable, wire.codec.failed, third.over) == (False, None, False)
    wire.say(GoAwayFrame(0, last_stream_id=3, error_code=0))
    assert third.failed is not None
    assert third.failed.how is Failure.REFUSED_STREAM
    wire.say(wire.head(OK, E, number=1), wire.head(OK, number=3), DataFrame(3, b"x", flags=(E,)))
    assert wire.all() == [ResponseHead(200), Need.NOTHING]
    assert read(wire.codec, second) == b"x"


# Floods


@pytest.mark.parametrize(
    "flood",
    [
        frame(6, bytes(8)),
        frame(4, b""),
        frame(4, b"", flags=1),
        frame(4, b"\0\4\0\0\xff\xff\0\4\0\0\0\1"),
        frame(2, b"\0\0\0\3\0", number=1),
        frame(8, b"\0\0\0\1"),
        frame(8, b"\0\0\0\1", number=1),
        frame(0, b"", number=1),
        frame(0xBE, b"", number=1),
        frame(3, bytes(4), number=99),
        frame(7, b"\0\0\0\1" + bytes(4)),
    ],
)
def test_a_flood_is_the_end(flood: bytes) -> None:
    wire = Wire()
    wire.say(wire.head())
    for _ in range(11):
        wire.codec.receive(flood * 1000, 0.0)
        if wire.codec.failed is not None:
            break
    assert wire.codec.failed is not None
    assert "floods" in wire.codec.failed.detail


def test_pings_now_and_then_are_borne_for_ever() -> None:
    wire = Wire()
    for second in range(3000):
        wire.say(PingFrame(0, bytes(8)), now=float(second))
        wire.codec.outgoing()
    assert wire.codec.failed is None


def test_windows_are_borne_for_as_long_as_data_goes_out() -> None:
    wire = Wire(POST, whole=False)
    for _ in range(3000):
        assert wire.codec.send(wire.stream, b"x") == 1
        wire.say(WindowUpdateFrame(0, 1), WindowUpdateFrame(1, 1))
        wire.codec.outgoing()
    assert wire.codec.failed is None


def test_data_for_streams_that_are_gone_is_borne_for_a_while() -> None:
    wire = Wire()
    wire.codec.release(wire.stream)
    wire.codec.receive(wire.head().serialize() + frame(0, b"x" * 1000, number=1) * 200, 0.0)
    assert wire.codec.failed is None
    wire.codec.receive(frame(0, b"x", number=1) * 2000, 0.0)
    assert wire.codec.failed is not None


def test_data_in_many_small_frames_takes_no_more_room_than_it_has_bytes() -> None:
    wire = Wire()
    wire.say(wire.head())
    wire.codec.receive(frame(0, b"x", number=1) * 5000, 0.0)
    assert type(wire.stream.data) is bytearray
    assert wire.all() == [ResponseHead(200), b"x" * 5000, Need.DATA]


# Whatever comes


@settings(deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_at_all(data: bytes, greeted: bool) -> None:
    codec = Codec()
    stream = codec.open(GET, whole=True)
    codec.receive((SettingsFrame(0).serialize() if greeted else b"") + data, 0.0)
    codec.outgoing()
    codec.release(stream)
    codec.outgoing()


FRAMES = st.tuples(
    st.sampled_from(range(11)), st.binary(max_size=20), st.integers(0, 255), st.sampled_from((0, 1, 2, 3, 5))
)


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=12))
def test_any_frames_at_all(frames: list[tuple[int, bytes, int, int]]) -> None:
    wire = Wire()
    second = wire.codec.open(POST, whole=False)
    for kind, body, flags, number in frames:
        wire.codec.receive(frame(kind, body, flags=flags, number=number), 0.0)
    wire.codec.send(second, b"x" * 100)
    wire.codec.finish(second)
    wire.all()
    for stream in (wire.stream, second):
        wire.codec.release(stream)
    wire.codec.outgoing()


TOKENS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=12).map(str.encode)
VALUES = st.binary(max_size=20).map(lambda b: bytes(c for c in b if c > 32 and c != 127))
SPECIAL = {b"content-length", b"connection", b"te", b"upgrade", b"host", b"keep-alive", b"transfer-encoding"}
FIELDS = st.lists(st.tuples(TOKENS.filter(lambda name: name not in SPECIAL), VALUES), max_size=8)


@settings(deadline=None)
@given(FIELDS, FIELDS, st.binary(max_size=3000), st.lists(st.integers(1, 500), max_size=20))
def test_what_is_sent_is_what_is_received(
    asked: list[Header], answered: list[Header], body: bytes, cuts: list[int]
) -> None:
    peer = Peer()
    stream = peer.codec.open(RequestHead("POST", "http", "a", "/", asked), whole=False)
    assert peer.codec.send(stream, body, last=True) == len(body)
    if not body:
        peer.codec.finish(stream)
    heard = peer.talk()
    got = next(event for event in heard if isinstance(event, h2.events.RequestReceived))
    cookies = b"cookie"  # which a server joins, and puts last
    assert [f for f in got.headers[4:] if f[0] != cookies] == [f for f in asked if f[0] != cookies]
    data = b"".join(event.data for event in heard if isinstance(event, h2.events.DataReceived))
    assert data == body
    peer.http.send_headers(1, [*OK, *answered])
    at = 0
    for cut in cuts:
        peer.http.send_data(1, body[at : at + cut])
        at += cut
    peer.http.send_data(1, body[at:], end_stream=True)
    peer.talk()
    assert peer.codec.next(stream) == ResponseHead(200, tuple(answered))
    assert read(peer.codec, stream) == body


def test_open_streams_are_not_counted_for_each_request_and_closed_ones_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = Peer({Codes.MAX_CONCURRENT_STREAMS: 600})
    peer.talk()
    held = [peer.codec.open(GET, whole=True) for _ in range(500)]
    counted = 0
    count = h2.connection.H2Connection._open_streams

    def counting(self: h2.connection.H2Connection, remainder: int) -> int:
        nonlocal counted
        counted += 1
        found: int = count(self, remainder)
        return found

    monkeypatch.setattr(h2.connection.H2Connection, "_open_streams", counting)
    for _ in range(1000):
        peer.codec.release(peer.codec.open(GET, whole=True))
    peer.codec.outgoing()
    assert counted <= 3
    assert len(peer.codec._http.streams) <= 2 * len(held) + 1
    # Where there may be too many, they are counted.
    more = [peer.codec.open(GET, whole=True) for _ in range(100)]
    with pytest.raises(Reset) as raised:
        peer.codec.open(GET, whole=True)
    assert raised.value.failed.how is Failure.REFUSED_STREAM
    peer.codec.release(more.pop())
    assert peer.codec.open(GET, whole=True).id
