"""The client's end of a gRPC call against an HTTP/2 server in memory."""

import struct
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from meshlib.dataplane import grpc_call
from meshlib.dataplane.grpc_call import GrpcCall


class Server:
    """The other end; `sent` is what the client's messages were."""

    def __init__(self, call: GrpcCall) -> None:
        self.call = call
        self.http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self.http.initiate_connection()
        self.headers: dict[str, str] = {}
        self.body = b""
        self.exchange()

    def exchange(self) -> list[bytes]:
        """Carries all bytes both ways; the messages that the client completed."""
        found: list[bytes] = []
        while True:
            there, back = self.call.to_send(), b""
            for event in self.http.receive_data(there) if there else ():
                self._happened(event)
            back = self.http.data_to_send()
            if back:
                found += self.call.receive(back)
            elif not there:
                return found

    def _happened(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.headers = {str(name): str(value) for name, value in event.headers}
        elif isinstance(event, h2.events.DataReceived):
            self.body += event.data
            self.http.acknowledge_received_data(event.flow_controlled_length, 1)

    def answer(self, *headers: tuple[str, str], end: bool = False) -> None:
        found = {":status": "200", "content-type": "application/grpc", **dict(headers)}
        self.http.send_headers(1, list(found.items()), end_stream=end)


def framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


@pytest.fixture
def server() -> Server:
    return Server(GrpcCall("control:15010", "/a.B/C"))


def ended(server: Server) -> str:
    server.exchange()
    assert server.call.ended is not None
    return str(server.call.ended)


def test_the_request(server: Server) -> None:
    assert server.headers == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/a.B/C",
        ":authority": "control:15010",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "meshlib",
    }


def test_messages_both_ways(server: Server) -> None:
    server.call.send(b"one")
    server.call.send(b"")
    server.answer()
    server.http.send_data(1, framed(b"yes") + framed(b"") + framed(b"no")[:4])
    assert server.exchange() == [b"yes", b""]
    server.http.send_data(1, framed(b"no")[4:])
    assert server.exchange() == [b"no"]
    assert server.body == framed(b"one") + framed(b"")
    assert server.call.ended is None


def test_large_messages_wait_for_room(server: Server) -> None:
    large = bytes(range(256)) * 4000
    server.call.send(large)
    first = server.call.to_send()
    assert server.call.blocked
    assert len(first) < 70_000
    for event in server.http.receive_data(first):
        server._happened(event)
    server.exchange()
    assert not server.call.blocked
    assert server.body == framed(large)


def test_a_large_answer(server: Server) -> None:
    server.answer()
    large, found = framed(b"x" * 3_000_000), []
    for start in range(0, len(large), 16_000):
        server.http.send_data(1, large[start : start + 16_000])
        found += server.exchange()
    assert found == [b"x" * 3_000_000]


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        ("14", "try%20later", "UNAVAILABLE: try later"),
        ("0", "", "OK"),
        ("3", "", "INVALID_ARGUMENT"),
        ("99", "x", "UNKNOWN: x"),
        ("-1", "x", "UNKNOWN: x"),
        ("²", "x", "UNKNOWN: x"),
    ],
)
def test_the_status_that_it_ends_with(server: Server, status: str, text: str, said: str) -> None:
    server.answer()
    server.http.send_data(1, framed(b"last"))
    server.http.send_headers(1, [("grpc-status", status), ("grpc-message", text)], end_stream=True)
    assert server.exchange() == [b"last"]
    assert ended(server) == said


def test_a_status_at_once(server: Server) -> None:
    server.answer(("grpc-status", "12"), ("grpc-message", "no such method"), end=True)
    assert ended(server) == "UNIMPLEMENTED: no such method"


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({":status": "503"}, "UNAVAILABLE: HTTP status 503"),
        ({":status": "404"}, "UNIMPLEMENTED: HTTP status 404"),
        ({":status": "302"}, "UNKNOWN: HTTP status 302"),
        ({"content-type": "text/html"}, "UNKNOWN: content-type 'text/html' is not gRPC's"),
    ],
)
def test_an_answer_that_is_not_grpc(server: Server, headers: dict[str, str], said: str) -> None:
    server.answer(*headers.items())
    assert ended(server) == said


def test_an_end_without_a_status(server: Server) -> None:
    server.answer()
    server.http.end_stream(1)
    assert ended(server) == "UNKNOWN: it ended the call without a status"


def test_a_reset(server: Server) -> None:
    server.http.reset_stream(1, 7)
    assert ended(server).startswith("UNAVAILABLE: reset (")


def test_an_unknown_reset(server: Server) -> None:
    server.http.reset_stream(1, 4711)
    assert ended(server).startswith("INTERNAL: reset (")


def test_going_away(server: Server) -> None:
    server.http.close_connection(additional_data=b"deploy")
    assert ended(server) == "UNAVAILABLE: it goes away deploy"


def test_a_closed_connection(server: Server) -> None:
    assert server.call.receive(b"") == []
    assert str(server.call.ended) == "UNAVAILABLE: the connection was closed"
    assert server.call.receive(b"more") == []


def test_what_is_not_http2() -> None:
    call = GrpcCall("a:1", "/a.B/C")
    assert call.receive(b"HT") == []
    assert call.ended is None
    assert call.receive(b"TP/1.1 400 Bad Request\r\n\r\n") == []
    assert str(call.ended) == "INTERNAL: it does not speak HTTP/2"


def test_what_is_not_http2_any_more(server: Server) -> None:
    assert server.call.receive(b"\0\0\1\0\0\0\0\0\0\0") == []
    assert str(server.call.ended).startswith("INTERNAL: it does not speak HTTP/2: ")


def test_a_compressed_message(server: Server) -> None:
    server.answer()
    server.http.send_data(1, framed(b"good") + b"\1" + framed(b"bad")[1:])
    assert server.exchange() == [b"good"]
    assert ended(server) == "INTERNAL: a message is compressed"


def test_a_message_that_is_too_large(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_call, "MAX_MESSAGE", 100)
    server.answer()
    server.http.send_data(1, framed(b"x" * 101)[:5])
    assert ended(server) == "RESOURCE_EXHAUSTED: a message has 101 bytes; 100 are allowed"


def test_a_ping_is_answered(server: Server) -> None:
    server.call.ping()
    server.exchange()
    server.http.ping(b"12345678")
    server.exchange()
    assert server.call.ended is None


def test_nothing_is_sent_after_the_end(server: Server) -> None:
    server.answer(("grpc-status", "0"), end=True)
    server.exchange()
    server.call.send(b"late")
    server.call.to_send()
    assert server.body == b""


def test_what_follows_a_farewell_in_the_same_bytes_does_not_hide_it() -> None:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    call = GrpcCall("control:1", "/a.B/C")
    server.initiate_connection()
    server.receive_data(call.to_send())
    server.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    server.send_headers(1, [("grpc-status", "14"), ("grpc-message", "stopping")], end_stream=True)
    ping = bytes.fromhex("000008060000000000") + b"12345678"
    goaway = bytes.fromhex("000008070000000000" + "00000001" + "00000000")
    call.receive(server.data_to_send() + goaway + ping)
    assert call.ended is not None
    assert str(call.ended) == "UNAVAILABLE: stopping"
