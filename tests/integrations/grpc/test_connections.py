"""Connections: who looks at a peer and how often, what serves meanwhile, and what a status says of them."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from support.fake_mesh import FakeMesh, fake_mesh
from support.grpc_callers import CALLERS, INTERCEPTED, Blocking, Tasks, calling, until
from support.grpc_server import PATH, Seen, grpc_server
from support.small_ca import SmallCa

import meshlib
import meshlib_grpc
from meshlib.core.mtls import ClientTls, SanMatch
from meshlib.dataplane.tls import Contexts, Held

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
EXACTLY = ClientTls(sans=((SanMatch.EXACT, REVIEWS),))
REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: connection refused"
RETRY = {"num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}

kinds = pytest.mark.parametrize("kind", CALLERS)
everywhere = pytest.mark.parametrize("kind", [*CALLERS, *INTERCEPTED])


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


@pytest.fixture(scope="module")
def started(ca: SmallCa) -> Iterator[Seen]:
    held = ca.held(REVIEWS, dns=["reviews.default.svc"])
    pair = [(held.key_pem, held.chain_pem.encode())]
    with grpc_server(credentials=grpc.ssl_server_credentials(pair, held.roots_pem.encode(), True)) as seen:
        yield seen


@pytest.fixture
def server(started: Seen) -> Seen:
    started.calls.clear()
    return started


def secured(port: int, held: Callable[[], Held], **upstream: Any) -> FakeMesh:
    mesh = fake_mesh([port], tls=EXACTLY, **upstream)
    mesh.contexts = Contexts(held)
    return mesh


class Looks:
    """Counts the looks at peers, and holds them up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from meshlib_grpc import asynchronous, blocking

        self.made = 0
        self.go = threading.Event()
        self.go.set()
        look, alook = blocking.look, asynchronous.alook

        def counted(*asked: Any) -> Any:
            self.made += 1
            assert self.go.wait(60)
            return look(*asked)

        async def acounted(*asked: Any) -> Any:
            self.made += 1
            while not self.go.is_set():
                await asyncio.sleep(0.005)
            return await alook(*asked)

        monkeypatch.setattr(blocking, "look", counted)
        monkeypatch.setattr(asynchronous, "alook", acounted)


def burst(caller: Blocking | Tasks, number: int) -> list[bytes]:
    """What so many first calls at once came to."""
    if isinstance(caller, Tasks):
        echo = caller.channel.unary_unary(PATH + "who")

        async def run() -> list[bytes]:
            return await asyncio.gather(*(echo(b"", timeout=60) for _ in range(number)))

        return caller.runner.run(run())
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda _: caller.unary("who", b"", timeout=60).messages[0], range(number)))


@kinds
def test_first_calls_share_one_look(kind: str, ca: SmallCa, server: Seen, monkeypatch: Any) -> None:
    looks, held = Looks(monkeypatch), ca.held(PAGE)
    mesh = secured(server.port, lambda: held)
    looks.go.clear()

    def open_when_all_are_there() -> None:
        until(lambda: mesh.in_flight() == 20)
        looks.go.set()

    watching = threading.Thread(target=open_when_all_are_there)
    watching.start()
    with calling(kind, mesh) as caller:
        assert burst(caller, 20) == [b"v1"] * 20
        assert (looks.made, caller.channels()) == (1, 1)
    watching.join()


@kinds
def test_what_a_look_finds_is_for_each_of_many_channels(kind: str, ca: SmallCa, server: Seen) -> None:
    held = ca.held(PAGE)
    with calling(kind, secured(server.port, lambda: held, max_requests_per_connection=1)) as caller:
        assert burst(caller, 10) == [b"v1"] * 10
        assert caller.channels() == 0


def test_a_peer_that_says_nothing_keeps_nobody_else_waiting(ca: SmallCa, server: Seen) -> None:
    held = ca.held(PAGE)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        deaf = secured(mute.getsockname()[1], lambda: held, connect_timeout=60.0)
        fine = secured(server.port, lambda: held)

        async def run() -> None:
            async with (
                meshlib_grpc.aio_channel("reviews:9080", deaf) as stuck,  # type: ignore[arg-type]
                meshlib_grpc.aio_channel("reviews:9080", fine) as channel,  # type: ignore[arg-type]
            ):
                asked = stuck.unary_unary(PATH + "who")
                waiting = [asked(b"", timeout=30) for _ in range(30)]
                await asyncio.sleep(0)
                assert await channel.unary_unary(PATH + "who")(b"", timeout=30) == b"v1"
                assert not any(one.done() for one in waiting)
                for one in waiting:
                    one.cancel()

        asyncio.run(run())


@kinds
def test_who_waits_for_a_look_waits_no_longer_than_it_may(kind: str, ca: SmallCa) -> None:
    held = ca.held(PAGE)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mesh = secured(mute.getsockname()[1], lambda: held, connect_timeout=60.0)
        with calling(kind, mesh) as caller:
            begun = time.monotonic()
            for call in (caller.unary, caller.streamed):
                with pytest.raises(meshlib.UpstreamTimedOut) as raised:
                    call("who", b"", timeout=0.05)
                assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
            assert time.monotonic() - begun < 30
            assert mesh.in_flight() == 0


@kinds
def test_a_channel_serves_until_that_by_a_new_certificate_is_there(
    kind: str, ca: SmallCa, server: Seen, monkeypatch: Any
) -> None:
    looks, held = Looks(monkeypatch), [ca.held(PAGE)]
    with calling(kind, secured(server.port, lambda: held[0])) as caller:
        caller.unary("who", b"")
        (old,) = caller.pool()._open.values()
        looks.go.clear()
        held[0] = ca.held(PAGE)
        for _ in range(5):
            assert caller.unary("who", b"", timeout=60).messages == [b"v1"]
        assert list(caller.pool()._open.values()) == [old]
        looks.go.set()
        until(lambda: caller.turn() or list(caller.pool()._open.values()) != [old])
        assert caller.unary("who", b"").messages == [b"v1"]
        assert (looks.made, caller.channels()) == (2, 1)


@kinds
def test_who_is_not_trusted_any_more_serves_no_longer(kind: str, ca: SmallCa, server: Seen) -> None:
    held = [ca.held(PAGE)]
    with calling(kind, secured(server.port, lambda: held[0])) as caller:
        caller.unary("who", b"")
        held[0] = SmallCa("others").held(PAGE)
        caller.unary("who", b"")
        until(lambda: caller.turn() or caller.channels() == 0)
        with pytest.raises(meshlib.ConnectFailed, match="not trusted"):
            caller.unary("who", b"")


@everywhere
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (14, REFUSED),
        (14, "Socket closed"),
        (14, "Stream removed (GOAWAY received; Error code: 0)"),
        (14, "db: Connection reset by peer"),
        (13, "Received RST_STREAM with error code 7"),
        (14, "Received http2 header with status: 403"),
    ],
)
def test_a_servers_status_is_its_own_whatever_its_words(kind: str, number: int, words: str) -> None:
    conditions = "connect-failure,reset,refused-stream,5xx,gateway-error,retriable-4xx"
    route = {"retry_policy": {"retry_on": conditions, **RETRY}}
    with grpc_server() as server, calling(kind, fake_mesh([server.port], route=route)) as caller:
        for call in (caller.unary, caller.streamed):
            server.calls.clear()
            with pytest.raises(grpc.RpcError) as raised:
                call("status", f"{number} {words}".encode())
            error = raised.value
            assert (error.code().value[0], error.details()) == (number, words)
            assert not isinstance(error, meshlib.RequestError)
            assert (server.calls["status"], error.meshlib.attempts) == (1, 1)


@kinds
def test_such_a_status_is_tried_again_as_what_it_is(kind: str) -> None:
    route = {"retry_policy": {"retry_on": "unavailable", **RETRY}}
    with grpc_server() as server, calling(kind, fake_mesh([server.port], route=route)) as caller:
        with pytest.raises(grpc.RpcError) as raised:
            caller.unary("status", b"14 Socket closed")
        assert (server.calls["status"], raised.value.meshlib.flag) == (3, "URX")


class Breaking:
    """Reads a request, and is gone."""

    def __init__(self) -> None:
        self.asked = 0
        self.headers: dict[str, str] = {}
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                made, _ = self.listening.accept()
            except OSError:
                return
            with made:
                self._meet(made)

    def _meet(self, made: socket.socket) -> None:
        peer = H2Connection(H2Configuration(client_side=False))
        peer.initiate_connection()
        made.sendall(peer.data_to_send())
        while data := made.recv(65536):
            for event in peer.receive_data(data):
                if isinstance(event, RequestReceived):
                    self.asked += 1
                    self.headers = {_text(name): _text(value) for name, value in event.headers}
                    return
            made.sendall(peer.data_to_send())

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self.listening.close()


@kinds
def test_a_connection_that_breaks_is_no_status(kind: str) -> None:
    route = {"retry_policy": {"retry_on": "unavailable", **RETRY}}
    breaking = Breaking()
    with contextlib.closing(breaking), calling(kind, fake_mesh([breaking.port], route=route)) as caller:
        for call in (caller.unary, caller.streamed):
            with pytest.raises(meshlib.UpstreamReset) as raised:
                call("who", b"", timeout=30)
            assert raised.value.flight.attempts == 1
        assert breaking.asked == 2


def _text(found: str | bytes) -> str:
    return found.decode() if isinstance(found, bytes) else found


def test_a_channel_may_compress() -> None:
    breaking = Breaking()
    mesh: Any = fake_mesh([breaking.port])
    gzip = grpc.Compression.Gzip

    async def run() -> None:
        async with meshlib_grpc.aio_channel("reviews:9080", mesh, compression=gzip) as channel:
            await channel.unary_unary(PATH + "who")(b"x" * 10_000)

    with contextlib.closing(breaking):
        with meshlib_grpc.channel("reviews:9080", mesh, compression=gzip) as channel:
            with pytest.raises(meshlib.UpstreamReset):
                channel.unary_unary(PATH + "who")(b"x" * 10_000)
            assert breaking.headers["grpc-encoding"] == "gzip"
            with pytest.raises(meshlib.UpstreamReset):
                channel.unary_unary(PATH + "who")(b"x" * 10_000, compression=grpc.Compression.Deflate)
            assert breaking.headers["grpc-encoding"] == "deflate"
        with pytest.raises(meshlib.UpstreamReset):
            asyncio.run(run())
        assert breaking.headers["grpc-encoding"] == "gzip"
