"""A connection of a server in threads: STRICT, PERMISSIVE and DISABLE, with callers of every kind."""

import contextlib
import select
import socket
import ssl
import threading
import time
from collections import deque
from typing import Any

import pytest
from support.small_ca import SmallCa

from meshlib.core.mtls import ClientTls, InboundMode, ServerTls, Trust
from meshlib.core.request import Peer
from meshlib.dataplane.accept_blocking import MOST_HEAD, Bounded, Met, begun, meeting
from meshlib.dataplane.doorstep import Refused
from meshlib.dataplane.tls import Contexts, Held

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"


def meet(accepted: socket.socket, port: "AtPort", patience: float) -> Met:
    """All steps of a connection, which blocks in the end."""
    until, steps = time.monotonic() + patience, meeting(accepted, port)
    try:
        while True:
            if not select.select([next(steps)], [], [], max(0.0, until - time.monotonic()))[0]:
                steps.throw(Refused("too slow"))
    except StopIteration as end:
        found: Met = end.value
    found.connection.settimeout(None)
    return found


class AtPort:
    """A port that meets one connection after the other, says who it is, and echoes a line."""

    def __init__(self, mode: InboundMode, held: Held | None, patience: float = 5.0) -> None:
        self.tls = ServerTls(mode, ("cluster.local",))
        self.contexts: Contexts | None = Contexts(lambda: held) if held else None
        self.refused: list[str] = []
        self.peers: list[Peer] = []
        self._patience = patience
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.number = int(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            try:
                met = meet(accepted, self, self._patience)
            except Refused as error:
                assert accepted.fileno() == -1
                self.refused.append(str(error))
                continue
            self.peers.append(met.peer)
            with met.connection as connection, contextlib.suppress(OSError):
                assert connection.gettimeout() is None
                connection.sendall(connection.recv(100))

    def __enter__(self) -> "AtPort":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


def call(port: AtPort, context: ssl.SSLContext | None = None) -> bytes:
    """What is answered to a greeting; nothing: the connection was cut off."""
    with (
        contextlib.suppress(ConnectionError, ssl.SSLError),
        socket.create_connection(("127.0.0.1", port.number), 5) as plain,
    ):
        connection = context.wrap_socket(plain, server_hostname="reviews.local") if context else plain
        with connection:
            connection.sendall(b"hello\n")
            return connection.recv(100)
    return b""


def of(held: Held) -> ssl.SSLContext:
    return Contexts(lambda: held).client(ClientTls())


def test_permissive_takes_both(ca: SmallCa) -> None:
    with AtPort(InboundMode.PERMISSIVE, ca.held(REVIEWS)) as port:
        assert call(port) == b"hello\n"
        assert call(port, of(ca.held(PAGE))) == b"hello\n"
    plain, secured = port.peers
    assert (plain.principal, plain.tls, plain.local) == ("", False, ("127.0.0.1", port.number))
    assert (secured.principal, secured.tls, secured.sni) == (PAGE, True, "reviews.local")
    assert len(secured.fingerprint) == 64
    assert secured.address[0] == "127.0.0.1"


def test_strict_resets_plain_text(ca: SmallCa) -> None:
    with AtPort(InboundMode.STRICT, ca.held(REVIEWS)) as port:
        assert call(port) == b""
        assert call(port, of(ca.held(PAGE))) == b"hello\n"
    assert port.refused == ["plain text, and mutual TLS is STRICT"]


def test_disable_looks_at_nothing(ca: SmallCa) -> None:
    with AtPort(InboundMode.DISABLE, ca.held(REVIEWS)) as port:
        assert call(port) == b"hello\n"
        assert port.peers[0].tls is False


def test_without_a_certificate_plain_text_is_all(ca: SmallCa) -> None:
    with AtPort(InboundMode.PERMISSIVE, None) as port:
        assert call(port) == b"hello\n"
        assert call(port, of(ca.held(PAGE))) == b""
    assert port.refused == ["TLS, and there is no certificate"]


@pytest.mark.parametrize(
    ("caller", "why"),
    [
        pytest.param(lambda ca: SmallCa().held(PAGE), "its certificate is not trusted", id="another root"),
        pytest.param(lambda ca: ca.held(PAGE, ends=-10), "its certificate is not trusted", id="expired"),
        pytest.param(
            lambda ca: ca.held("spiffe://evil.local/ns/a/sa/b"),
            "its certificate is refused",
            id="trust domain",
        ),
        pytest.param(
            lambda ca: ca.held("https://cluster.local/"), "its certificate is refused", id="no identity"
        ),
    ],
)
def test_who_may_not_be_served_is_cut_off(ca: SmallCa, caller: Any, why: str) -> None:
    held = caller(ca)
    context = of(Held(held.chain_pem, held.key_pem, ca.pem))
    with AtPort(InboundMode.PERMISSIVE, ca.held(REVIEWS)) as port:
        assert call(port, context) == b""
    assert port.peers == []
    assert len(port.refused) == 1
    assert port.refused[0].startswith(why)


def test_a_caller_without_a_certificate_is_cut_off(ca: SmallCa) -> None:
    nobody = Contexts(lambda: None).client(ClientTls(mesh_identity=False, trust=Trust.NOBODY))
    with AtPort(InboundMode.PERMISSIVE, ca.held(REVIEWS)) as port:
        assert call(port, nobody) == b""
    assert (port.peers, len(port.refused)) == ([], 1)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03"], ids=["silent", "slow"])
def test_who_is_slow_is_cut_off(ca: SmallCa, sent: bytes) -> None:
    with AtPort(InboundMode.PERMISSIVE, ca.held(REVIEWS), patience=0.1) as port:
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", port.number), 5) as slow:
            slow.sendall(sent)
            with contextlib.suppress(ConnectionError):
                assert slow.recv(1) == b""
        assert time.monotonic() - begun < 3
    assert port.refused == ["too slow"]


def test_who_goes_at_once_is_forgotten(ca: SmallCa) -> None:
    with AtPort(InboundMode.PERMISSIVE, ca.held(REVIEWS)) as port:
        socket.create_connection(("127.0.0.1", port.number), 5).close()
        assert call(port) == b"hello\n"
    assert port.refused == ["it said nothing"]


def test_reads_are_bounded_together_and_what_was_read_too_early_comes_again() -> None:
    ours, theirs = socket.socketpair()
    with theirs, Bounded(fileno=ours.detach()) as connection:
        connection.unread(b"abc")
        connection.bound(0.05)
        assert (connection.recv(2), connection.recv(2)) == (b"ab", b"c")
        theirs.sendall(b"d")
        assert connection.recv(2) == b"d"
        with pytest.raises(ConnectionResetError, match="too slow"):
            connection.recv(2)
        theirs.sendall(b"e")
        connection.bound(None)
        assert (connection.recv(2), connection.gettimeout()) == (b"e", None)


@pytest.mark.parametrize(
    ("pieces", "head"),
    [
        ([b"GET / HTTP/1.1\r\n\r\n"], b"GET / HTTP/1.1\r\n\r\n"),
        (
            [b"\r\n\r\n", b"GET / HTTP/1.1\r\nx: y\r", b"\n\r", b"\nbody"],
            b"GET / HTTP/1.1\r\nx: y\r\n\r\nbody",
        ),
        ([b"GET / HTTP/1.1\nx: y\n", b"\n"], b"GET / HTTP/1.1\nx: y\n\n"),
        ([b"x" * MOST_HEAD], b"x" * MOST_HEAD),
    ],
    ids=["at once", "in pieces", "loose", "too long"],
)
def test_a_head_is_waited_for_without_a_thread(pieces: list[bytes], head: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs, Bounded(fileno=ours.detach()) as connection:
        connection.setblocking(False)
        steps = begun(connection)
        for piece in pieces:
            assert next(steps) is connection
            theirs.sendall(piece)
        with pytest.raises(StopIteration):
            next(steps)
        assert connection.recv(1 << 20) == head


@pytest.mark.parametrize("piece", [b"\r\n" * 4096, b"\r\n"], ids=["at once", "line by line"])
def test_empty_lines_without_end_are_no_head(piece: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs, Bounded(fileno=ours.detach()) as connection:
        connection.setblocking(False)
        with pytest.raises(Refused, match="empty lines"):
            deque(theirs.sendall(piece) for _ in begun(connection))
        assert connection.fileno() == -1


def test_who_goes_before_its_head_is_whole_is_left_to_the_parser() -> None:
    ours, theirs = socket.socketpair()
    with Bounded(fileno=ours.detach()) as connection:
        connection.setblocking(False)
        theirs.sendall(b"GET")
        theirs.close()
        assert list(begun(connection)) == []
        assert (connection.recv(9), connection.recv(9)) == (b"GET", b"")
