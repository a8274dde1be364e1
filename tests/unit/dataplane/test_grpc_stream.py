"""A stream over a real loopback socket, against a server that is written out here."""

import contextlib
import queue
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from support.small_ca import SmallCa

from meshlib.dataplane import grpc_stream
from meshlib.dataplane.grpc_stream import KeptStream
from meshlib.dataplane.tls import control_context
from meshlib.errors import ControlError
from meshlib.xds.names import CONTROL_SERVER

HELLO = b"\0\0\0\0\5hello"


class Talk:
    """Writes down what happens; says what the test puts into `say`."""

    def __init__(self) -> None:
        self.events: queue.Queue[str] = queue.Queue()
        self.say: list[bytes] = []
        self.refuse = ""
        self.again = 0.0
        self.every = 60.0

    def opened(self) -> None:
        self.events.put("opened")

    def ask(self) -> Iterable[bytes]:
        said, self.say = self.say, []
        return said

    def take(self, message: bytes) -> None:
        self.events.put(f"took {message.decode()}")
        if self.refuse:
            raise ControlError(self.refuse)

    def pause(self) -> float:
        return self.every

    def ended(self, why: str) -> float:
        self.events.put(f"ended {why}".strip())
        return self.again

    def next(self) -> str:
        return self.events.get(timeout=60)


class Server:
    """Takes one connection at a time; the test says what to do with it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(60)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.peer: socket.socket | None = None

    def accept(self) -> "Server":
        if self.peer is not None:
            self.peer.close()
        self.peer, _ = self.listener.accept()
        self.peer.settimeout(60)
        self.body = b""
        self.http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        return self

    def greet(self) -> None:
        """Speaks HTTP/2 and answers the call."""
        self.http.initiate_connection()
        self.until(lambda event: isinstance(event, h2.events.RequestReceived))
        self.http.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
        self.flush()

    def flush(self) -> None:
        assert self.peer is not None
        self.peer.sendall(self.http.data_to_send())

    def send(self, framed: bytes) -> None:
        self.http.send_data(1, framed)
        self.flush()

    def until(self, true: Callable[[Any], bool]) -> Any:
        """Reads until an event is as wanted; None: the client closed."""
        assert self.peer is not None
        while True:
            self.flush()
            data = self.peer.recv(65536)
            if not data:
                return None
            found = None
            for event in self.http.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    self.body += event.data or b""
                    self.http.acknowledge_received_data(event.flow_controlled_length, 1)
                found = found or (event if true(event) else None)
            if found is not None:
                return found

    def heard(self, data: bytes) -> bool:
        """Whether this is what the client says next."""
        while len(self.body) < len(data):
            if self.until(lambda event: isinstance(event, h2.events.DataReceived)) is None:
                return False
        said, self.body = self.body[: len(data)], self.body[len(data) :]
        self.flush()
        return said == data

    def close(self) -> None:
        for one in (self.listener, self.peer):
            if one is not None:
                one.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def stream(server: Server, talk: Talk) -> Iterator[KeptStream]:
    made = KeptStream("meshlib-test", server.address, "/a.B/C", talk)
    yield made
    made.close()
    assert not [t for t in threading.enumerate() if t.name == "meshlib-test"]


def test_messages_both_ways_and_a_new_stream(server: Server, talk: Talk, stream: KeptStream) -> None:
    talk.say = [b"one"]
    stream.start()
    stream.start()
    server.accept().greet()
    assert server.heard(b"\0\0\0\0\3one")
    server.send(HELLO)
    assert [talk.next(), talk.next()] == ["opened", "took hello"]
    talk.say = [b"two"]
    stream.wake()
    assert server.heard(b"\0\0\0\0\3two")
    server.http.send_headers(1, [("grpc-status", "14"), ("grpc-message", "later")], end_stream=True)
    server.flush()
    assert talk.next() == "ended UNAVAILABLE: later"
    talk.say = [b"again"]
    server.accept().greet()
    assert talk.next() == "opened"
    assert server.heard(b"\0\0\0\0\5again")


def test_close_says_what_is_due(server: Server, talk: Talk, stream: KeptStream) -> None:
    stream.start()
    server.accept().greet()
    server.send(HELLO)
    assert [talk.next(), talk.next()] == ["opened", "took hello"]
    talk.say = [b"last"]
    stream.close()
    assert server.heard(b"\0\0\0\0\4last")
    assert server.until(lambda _: False) is None
    assert talk.next() == "ended"
    stream.start()
    stream.wake()
    assert not [t for t in threading.enumerate() if t.name == "meshlib-test"]


def test_a_refreshed_stream_begins_anew_at_once_and_nothing_was_lost(
    server: Server, talk: Talk, stream: KeptStream
) -> None:
    stream.refresh()  # there is none yet
    stream.start()
    server.accept().greet()
    server.send(HELLO)
    assert [talk.next(), talk.next()] == ["opened", "took hello"]
    talk.say, talk.again = [b"last"], 60.0
    stream.refresh()
    assert server.heard(b"\0\0\0\0\4last")
    talk.say = [b"first"]
    server.accept().greet()
    assert talk.next() == "opened"
    assert server.heard(b"\0\0\0\0\5first")


def test_what_is_refused_ends_the_stream(server: Server, talk: Talk, stream: KeptStream) -> None:
    talk.refuse, talk.again = "it is older", 60.0
    stream.start()
    server.accept().greet()
    server.send(HELLO)
    assert [talk.next(), talk.next(), talk.next()] == ["opened", "took hello", "ended it is older"]


def test_it_is_asked_again_after_each_pause(server: Server, talk: Talk, stream: KeptStream) -> None:
    talk.every = 0.01
    stream.start()
    server.accept().greet()
    talk.say = [b"one"]
    assert server.heard(b"\0\0\0\0\3one")
    talk.say = [b"two"]
    assert server.heard(b"\0\0\0\0\3two")


def test_a_large_message_to_a_slow_server(server: Server, talk: Talk, stream: KeptStream) -> None:
    large = b"x" * 1_000_000
    talk.say = [large]
    stream.start()
    server.accept().greet()
    assert server.heard(b"\0" + len(large).to_bytes(4, "big") + large)


@pytest.mark.parametrize("greets", [True, False])
def test_silence(server: Server, talk: Talk, monkeypatch: pytest.MonkeyPatch, greets: bool) -> None:
    monkeypatch.setattr(grpc_stream, "SILENCE", 0.02)
    monkeypatch.setattr(grpc_stream, "ANSWER", 0.1)
    talk.again = 60.0
    stream = KeptStream("meshlib-test", server.address, "/a.B/C", talk)
    stream.start()
    server.accept()
    if greets:
        server.greet()
        # A sign of life is asked for, and as long as it comes nothing ends.
        for _ in range(3):
            assert server.until(lambda event: isinstance(event, h2.events.PingReceived)) is not None
            server.flush()
    assert [talk.next(), talk.next()] == ["opened", "ended UNAVAILABLE: it does not answer"]
    stream.close()


def test_nobody_listens(talk: Talk) -> None:
    talk.again = 60.0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        stream = KeptStream("meshlib-test", address, "/a.B/C", talk)
        stream.start()
        assert [talk.next(), talk.next()] == ["opened", "ended UNAVAILABLE: Connection refused"]
        stream.close()


def test_close_while_connecting(talk: Talk) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        stream = KeptStream("meshlib-test", f"127.0.0.1:{full.getsockname()[1]}", "/a.B/C", talk)
        stream.start()
        assert talk.next() == "opened"
        stream.close()
        assert talk.next() == "ended"
        for one in waiting:
            one.close()


def test_a_bug_does_not_end_the_thread(
    server: Server, talk: Talk, stream: KeptStream, caplog: pytest.LogCaptureFixture
) -> None:
    stream.start()
    server.accept().greet()
    server.send(b"\0\0\0\0\1\xff")  # the talk of this test can't decode it
    assert [talk.next(), talk.next().partition("(")[0]] == ["opened", "ended UnicodeDecodeError"]
    assert "failed" in caplog.text
    server.accept().greet()
    assert talk.next() == "opened"


def test_a_child_closes_its_copies_and_begins_anew(server: Server, talk: Talk) -> None:
    talk.again = 60.0
    stream = KeptStream("meshlib-test", server.address, "/a.B/C", talk)
    stream.start()
    server.accept().greet()
    server.send(HELLO)
    assert [talk.next(), talk.next()] == ["opened", "took hello"]
    # As in a child, where the thread is gone; here it finds its socket closed and ends.
    thread = stream._thread
    assert thread is not None
    stream.close()
    stream.after_fork_in_child()
    stream.start()
    assert stream._thread is None
    fresh = KeptStream("meshlib-test", server.address, "/a.B/C", talk)
    fresh.after_fork_in_child()
    assert talk.next() == "ended"
    fresh.start()
    server.accept().greet()
    assert talk.next() == "opened"
    fresh.close()


@pytest.mark.parametrize("how", ["refused", "reset", "not trusted", "slow", "nobody"])
def test_who_hangs_up_before_a_word_casts_doubt_on_what_was_shown(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ca, other = SmallCa(), SmallCa("other")
    page = (other if how == "refused" else ca).held("spiffe://cluster.local/ns/default/sa/page")
    context = control_context(page, (other if how == "not trusted" else ca).pem)
    shown = ca.issue(dns=[CONTROL_SERVER])
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.verify_mode = ssl.CERT_REQUIRED
    serving.load_verify_locations(cadata=ca.pem)
    with tempfile.NamedTemporaryFile() as file:
        file.write(shown.key_pem + shown.pem.encode())
        file.flush()
        serving.load_cert_chain(file.name)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(60)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    end = threading.Event()

    def serve() -> None:
        taken, _ = listener.accept()
        with taken:
            if how == "reset":
                taken.recv(1)
            elif how == "slow":
                end.wait(5)
            else:
                with contextlib.suppress(OSError):
                    serving.wrap_socket(taken, server_side=True).recv(1)

    monkeypatch.setattr(grpc_stream, "CONNECT", 0.3 if how == "slow" else 5.0)
    thread = threading.Thread(target=serve)
    if how == "nobody":
        listener.close()
    else:
        thread.start()
    doubts: list[str] = []
    talk.again = 60.0
    stream = KeptStream("test", address, "/x/y", talk, secure=lambda: context, doubt=doubts.append)
    stream.start()
    try:
        assert talk.next() == "opened"
        assert talk.next().startswith("ended ")
        assert len(doubts) == (how not in ("slow", "nobody"))
    finally:
        end.set()
        stream.close()
        listener.close()
        if thread.ident is not None:
            thread.join(5)
