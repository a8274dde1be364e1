"""What a connection holds in messages that are not whole, by the frames of a real HTTP/2 stack."""

from collections.abc import Iterable

import h2.config
import h2.connection
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.control.serve.unfinished import COST_OF_FRAME, COST_OF_STREAM, PREFACE, Unfinished

HEADERS = [(":method", "POST"), (":scheme", "https"), (":path", "/a.B/C"), (":authority", "x")]


class Pair:
    """A client and a server, and the bytes that each has said."""

    def __init__(self) -> None:
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.client.initiate_connection()
        self.server.initiate_connection()
        self.it = Unfinished()

    def open(self, number: int, *, end: bool = False) -> None:
        self.client.send_headers(number, HEADERS, end_stream=end)

    def held(self) -> int:
        """All that was said goes over."""
        said = self.client.data_to_send()
        self.server.receive_data(said)
        self.it.heard(said)
        back = self.server.data_to_send()
        self.client.receive_data(back)
        return self.it.told(back)


def message(size: int) -> bytes:
    return b"\0" + size.to_bytes(4) + b"x" * size


def test_a_message_counts_until_it_is_whole() -> None:
    it = Pair()
    it.open(1)
    assert it.held() == COST_OF_STREAM
    whole = message(1000)
    it.client.send_data(1, whole[:3])
    assert it.held() == COST_OF_STREAM + COST_OF_FRAME + 3
    it.client.send_data(1, whole[3:600])
    assert it.held() == COST_OF_STREAM + 2 * COST_OF_FRAME + 600
    it.client.send_data(1, whole[600:])
    assert it.held() == COST_OF_STREAM
    it.client.send_data(1, message(0) + message(5) + message(7)[:6])
    assert it.held() == COST_OF_STREAM + 6


@pytest.mark.parametrize("who", ["client resets", "client ends", "server resets", "server ends"])
def test_a_stream_that_is_over_holds_nothing(who: str) -> None:
    it = Pair()
    it.open(1)
    it.open(3)
    for number in (1, 3):
        it.client.send_data(number, message(1000)[:500])
    one = COST_OF_STREAM + COST_OF_FRAME + 500
    assert it.held() == 2 * one
    match who:
        case "client resets":
            it.client.reset_stream(1)
        case "client ends":
            it.client.end_stream(1)
            assert it.held() == one + COST_OF_STREAM
            it.server.reset_stream(1)
        case "server resets":
            it.server.reset_stream(1)
        case _:
            it.server.send_headers(1, [(":status", "200")])
            assert it.held() == 2 * one
            it.server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    assert it.held() == one


def test_what_comes_for_a_stream_that_is_over_does_not_count() -> None:
    it = Unfinished()
    opened, data, reset = frame(1, 4, 1), frame(0, 0, 1, message(100)[:50]), frame(3, 0, 1, b"\0\0\0\0")
    it.heard(b"x" * PREFACE + opened + data + reset + data + opened + data)
    assert it.held == 0


def test_padding_is_no_part_of_a_message() -> None:
    it = Unfinished()
    whole = message(10)
    padded = frame(0, 8, 1, bytes([200]) + whole[:8] + b"\0" * 200)
    it.heard(b"x" * PREFACE + frame(1, 4, 1) + padded)
    assert it.held == COST_OF_STREAM + COST_OF_FRAME + 8
    it.heard(frame(0, 8, 1, bytes([3]) + whole[8:] + b"\0\0\0"))
    assert it.held == COST_OF_STREAM
    it.heard(frame(0, 8, 1, bytes([255]) + b"\0" * 10))  # more padding than there is: gRPC's to refuse
    assert it.held <= COST_OF_STREAM + COST_OF_FRAME + 11


def test_small_frames_and_many_streams_cost_too() -> None:
    it = Unfinished()
    it.heard(b"x" * PREFACE + frame(1, 4, 1))
    for _ in range(1000):
        it.heard(frame(0, 0, 1, b""))
    assert it.held == COST_OF_STREAM + 1000 * COST_OF_FRAME
    for number in range(3, 1003, 2):
        it.heard(frame(1, 4, number))
    assert it.held == 501 * COST_OF_STREAM + 1000 * COST_OF_FRAME


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body


@given(
    said=st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.integers(0, 300)), max_size=12),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_it_does_not_matter_where_the_bytes_are_cut(said: Iterable[tuple[int, int]], cuts: list[int]) -> None:
    pair = Pair()
    for number in (1, 3, 5):
        pair.open(number)
    for number, size in said:
        pair.client.send_data(number, message(200)[:size], pad_length=size % 7 or None)
    data, whole, piecewise = pair.client.data_to_send(), Unfinished(), Unfinished()
    whole.heard(data)
    turn = 0
    while data:
        size = cuts[turn % len(cuts)]
        piecewise.heard(data[:size])
        data, turn = data[size:], turn + 1
    assert piecewise.held == whole.held


@given(st.binary(max_size=400))
def test_garbage_breaks_nothing(data: bytes) -> None:
    it = Unfinished()
    it.heard(b"x" * PREFACE + data)
    it.told(data)
    assert it.held >= 0
