"""When a blocking socket is shut down; the clock is set by hand."""

import socket
import weakref
from collections.abc import Iterator

import pytest

from meshlib.core.actions import Facts
from meshlib.core.tcp import Flow, Linked
from meshlib.dataplane.tcp import idle
from meshlib.dataplane.tcp.idle import Keeper, _Kept
from meshlib.dataplane.tcp.link import Link


def nothing() -> Flow:
    yield from ()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    other.settimeout(5)
    with one, other:
        yield one, other


class Case:
    """A keeper without a thread, and one connection."""

    def __init__(self, connection: socket.socket, idle_timeout: float, max_duration: float) -> None:
        self.now = 100.0
        self.keeper = Keeper(lambda: self.now)
        self.link = Link(nothing(), Linked(Facts(), idle_timeout, max_duration), None)
        refs = weakref.ref(connection), weakref.ref(self.link)
        kept = _Kept(*refs, self.now, moved_at=self.now)
        self.keeper._kept[id(self.link)] = kept

    def at(self, now: float) -> tuple[list[str], float]:
        """Flags of what is closed at that time, and when it is looked next."""
        self.now = now
        ended, due = self.keeper.look()
        return [flags for _, flags in ended], due


@pytest.fixture(autouse=True)
def no_word_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "_quiet", lambda _: None)


def test_what_was_quiet_for_too_long_is_shut_down(pair: tuple[socket.socket, socket.socket]) -> None:
    case = Case(pair[0], 10.0, 0.0)
    assert case.at(105.0) == ([], 107.5)
    case.link.sent = 7
    assert case.at(108.0) == ([], 110.5)
    assert case.at(117.9)[0] == []
    assert case.at(118.0)[0] == ["-"]
    assert pair[1].recv(1) == b""
    assert pair[0].recv(1) == b""
    assert pair[0].fileno() >= 0
    assert repr(case.keeper) == "<Keeper of 0>"


def test_what_is_too_old_is_shut_down_however_busy(pair: tuple[socket.socket, socket.socket]) -> None:
    case = Case(pair[0], 0.0, 30.0)
    assert case.at(129.0) == ([], 130.0)
    assert case.at(130.0)[0] == ["DT"]
    assert pair[1].recv(1) == b""


def test_the_kernel_knows_better(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = 3.0
    monkeypatch.setattr(idle, "_quiet", lambda _: quiet)
    case = Case(pair[0], 10.0, 0.0)
    assert case.at(200.0) == ([], 207.0)
    quiet = 10.0
    assert case.at(207.0)[0] == ["-"]


def test_what_has_ended_is_let_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    ended, shut = Case(pair[0], 1.0, 0.0), Case(pair[0], 1.0, 0.0)
    ended.link.end()
    assert ended.at(1000.0)[0] == []
    shut.keeper.shut(shut.link)
    assert shut.at(1000.0)[0] == []
    pair[0].sendall(b"x")
    assert pair[1].recv(1) == b"x"


def test_a_forgotten_socket_is_not_kept() -> None:
    made = socket.socket()
    case = Case(made, 1.0, 0.0)
    made.close()
    del made
    assert case.at(1000.0)[0] == []


def test_a_child_of_a_fork_watches_nothing_of_its_parents(pair: tuple[socket.socket, socket.socket]) -> None:
    case = Case(pair[0], 1.0, 0.0)
    case.keeper.before_fork()
    case.keeper.after_fork_in_child()
    assert case.at(1000.0)[0] == []
    case.keeper.before_fork()
    case.keeper.after_fork_in_parent()


def test_without_a_limit_nothing_is_watched(pair: tuple[socket.socket, socket.socket]) -> None:
    keeper = Keeper()
    keeper.keep(pair[0], Link(nothing(), Linked(Facts(), 0.0, 0.0), None))
    assert repr(keeper) == "<Keeper of 0>"
