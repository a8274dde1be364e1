"""What a thread sends: for as long as the peer takes it, within its limits, listening."""

import socket
from collections.abc import Iterator

import pytest

from meshlib.core.request import RequestHead
from meshlib.dataplane.http import connection_blocking
from meshlib.dataplane.http.connection_blocking import Connection
from meshlib.dataplane.http.limits import Limits, OwnTimeouts, TooSlow
from meshlib.dataplane.http.syntax import Malformed

HEAD = RequestHead("POST", "http", "a", "/", ((b"Content-Length", b"50000000"),))
BODY = bytes(50_000_000)
Ends = tuple[socket.socket, socket.socket]


class World:
    """A clock that goes on when somebody waits, and a peer that does something then."""

    def __init__(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        self.peer = peer
        self.now = 100.0
        self.waited: list[float | None] = []
        self.listened: list[bool] = []
        self.takes = 0
        """How often the peer takes something."""
        self.says = b""
        """What it says, as much as fits each time."""

    def wait(self, _: socket.socket, seconds: float | None, *, reading: bool, writing: bool) -> None:
        assert writing
        self.waited.append(seconds)
        self.listened.append(reading)
        if reading and self.says:
            self.peer.send(self.says)
        elif self.takes:
            self.takes -= 1
            self.now += 1.0
            self.peer.recv(1 << 20)
        else:
            self.now += seconds or 0.0


@pytest.fixture
def ends() -> Iterator[Ends]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def world(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(ends[1])
    monkeypatch.setattr(connection_blocking, "wait", made.wait)
    return made


@pytest.fixture
def connection(ends: Ends, world: World) -> Connection:
    return Connection(ends[0], Limits(lambda: world.now, OwnTimeouts(write=4.0), None, None))


def test_a_peer_that_takes_nothing_has_the_time_that_was_given_and_no_more(
    connection: Connection, world: World
) -> None:
    with pytest.raises(TooSlow, match="write took longer than 4 s"):
        connection.write(connection.codec.whole(HEAD, BODY))
    assert world.waited == [4.0]
    assert connection.written


def test_a_peer_that_takes_some_has_the_time_anew(connection: Connection, world: World) -> None:
    world.takes = 3
    with pytest.raises(TooSlow):
        connection.write(connection.codec.whole(HEAD, BODY))
    assert world.waited == [4.0] * 4


def test_an_early_end_is_heard(connection: Connection, world: World) -> None:
    world.says = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
    assert not connection.write(connection.codec.whole(HEAD, BODY))
    assert len(world.waited) == 1
    head = connection.next()
    assert getattr(head, "status", None) == 413
    assert connection.next() == b"no"
    assert not connection.codec.reuse()


def test_of_a_good_answer_beside_the_request_some_is_kept(
    connection: Connection, ends: Ends, world: World
) -> None:
    ends[1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
    world.says = bytes(1 << 16)
    with pytest.raises(TooSlow):
        connection.write(connection.codec.whole(HEAD, BODY))
    assert world.listened == [True] * (len(world.listened) - 1) + [False]
    assert 256 * 1024 <= connection.codec.held < 320 * 1024


def test_between_two_parts_the_peer_is_listened_to(connection: Connection, ends: Ends, world: World) -> None:
    assert connection.write(connection.codec.request(HEAD))
    assert connection.write_on(connection.codec.data(b"some"))
    ends[1].sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert connection.write_on(connection.codec.data(b"more"))
    ends[1].sendall(b"HTTP/1.1 401 Who\r\nContent-Length: 2\r\n\r\n")
    assert not connection.write_on(connection.codec.data(b"still more"))
    assert not world.waited
    assert ends[1].recv(1 << 16).endswith(b"somemore")


def test_a_peer_that_hangs_up_wants_no_more(connection: Connection, ends: Ends) -> None:
    assert connection.write(connection.codec.request(HEAD))
    ends[1].shutdown(socket.SHUT_WR)
    with pytest.raises(Malformed, match="closed the connection"):
        connection.write_on(connection.codec.data(b"some"))


def test_a_peer_that_hangs_up_in_a_good_answer_wants_no_more(connection: Connection, ends: Ends) -> None:
    assert connection.write(connection.codec.request(HEAD))
    ends[1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    assert connection.write_on(connection.codec.data(b"some"))
    ends[1].shutdown(socket.SHUT_WR)
    assert not connection.write_on(connection.codec.data(b"some"))
