"""TLS at a port and at the pools' connections over real sockets: much data, slow peers, new keys."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.raw_server import raw_server
from support.small_ca import SmallCa

from meshlib.core.actions import Attempt
from meshlib.core.balance.cluster import Upstream
from meshlib.core.mtls import ClientTls, InboundMode, ServerTls
from meshlib.core.request import Failed, Failure, Peer, RequestHead
from meshlib.dataplane.accept import Acceptor
from meshlib.dataplane.http import asynchronous, blocking
from meshlib.dataplane.tls import Contexts, Held

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
MUCH = 1_000_000


class AtPort:
    """STRICT."""

    def __init__(self, held: Held) -> None:
        self.tls = ServerTls(InboundMode.STRICT, ("cluster.local",))
        self.contexts = Contexts(lambda: held)


class Echo(asyncio.Protocol):
    """Sends back what it is sent, at the pace of the slower side; `all` makes it send much and end."""

    def __init__(self, _: Peer) -> None:
        self.clogged = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if data == b"all\n":
            self.transport.write(b"x" * MUCH)
            self.transport.close()
            return
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.clogged += 1
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


@contextlib.asynccontextmanager
async def port(ca: SmallCa, protocols: list[Echo] | None = None) -> AsyncIterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # the kernel is not to hide who is slow
    made = protocols if protocols is not None else []

    def make(peer: Peer) -> Echo:
        made.append(Echo(peer))
        return made[-1]

    acceptor = Acceptor([listening], AtPort(ca.held(REVIEWS)), make)
    try:
        yield listening.getsockname()[1]
    finally:
        acceptor.close()
        await acceptor.wait_closed()


def caller(ca: SmallCa) -> ssl.SSLContext:
    held = ca.held(PAGE)
    return Contexts(lambda: held).client(ClientTls())


async def call(ca: SmallCa, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of asyncio's own, that takes little at a time."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", number))
    return await asyncio.open_connection(sock=made, ssl=caller(ca), server_hostname="")


async def test_much_goes_both_ways_through_a_peer_that_reads_late(ca: SmallCa) -> None:
    protocols: list[Echo] = []
    async with port(ca, protocols) as number:
        reader, writer = await call(ca, number)
        data = bytes(range(256)) * (MUCH // 256)
        writer.write(data)
        async with asyncio.timeout(20):
            while not protocols or not protocols[0].clogged:
                await asyncio.sleep(0)
            assert await reader.readexactly(len(data)) == data
        writer.transport.abort()
        await asyncio.sleep(0)


async def test_an_end_brings_all_that_was_written_before(ca: SmallCa) -> None:
    async with port(ca) as number:
        reader, writer = await call(ca, number)
        writer.write(b"all\n")
        async with asyncio.timeout(20):
            assert len(await reader.read()) == MUCH
        writer.transport.abort()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("version", "command", "said", "goes_on"),
    [
        pytest.param("-tls1_3", b"k\n", b"KEYUPDATE", True, id="a new key of the peer's"),
        pytest.param("-tls1_3", b"K\n", b"KEYUPDATE", True, id="new keys of both"),
        pytest.param("-tls1_2", b"R\n", b"RENEGOTIATING", False, id="another handshake"),
    ],
)
async def test_keys_may_be_new_and_handshakes_not(
    ca: SmallCa, tmp_path: Path, version: str, command: bytes, said: bytes, goes_on: bool
) -> None:
    held = ca.held(PAGE)
    pem, roots = tmp_path / "page.pem", tmp_path / "roots.pem"
    pem.write_bytes(held.key_pem + held.chain_pem.encode())
    roots.write_text(ca.pem)
    async with port(ca) as number, asyncio.timeout(20):
        arguments = ["-connect", f"127.0.0.1:{number}", "-cert", str(pem), "-CAfile", str(roots), version]
        running = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert running.stdin is not None
        assert running.stdout is not None
        found = b""
        for line, answer in ((b"before\n", b"before"), (command, said), (b"after\n", b"after")):
            running.stdin.write(line)
            while answer not in found and (piece := await running.stdout.read(4096)):
                found += piece
        if running.returncode is None and goes_on:
            running.kill()
        await running.wait()
    assert b"before" in found
    assert (b"after" in found) is goes_on


def attempt(number: int, path: str, body: bool = False, patience: float = 2.0) -> Attempt:
    headers = [(b"content-length", str(MUCH).encode())] if body else []
    head = RequestHead("POST" if body else "GET", "http", "reviews:9080", path, headers)
    until = time.monotonic() + 20
    return Attempt("c", ("127.0.0.1", number), head, Upstream(patience), None, until, tls=ClientTls())


@pytest.fixture
def contexts(ca: SmallCa) -> Contexts:
    held = ca.held(PAGE)
    return Contexts(lambda: held)


def test_threads_send_and_read_much(ca: SmallCa, contexts: Contexts) -> None:
    held, data = ca.held(REVIEWS), bytes(range(250)) * (MUCH // 250)
    with raw_server(Contexts(lambda: held).server(ServerTls(InboundMode.STRICT))) as server:
        connections = blocking.Connections(time.monotonic, lambda: contexts)
        sent = connections.send(attempt(server.port, f"/big/{MUCH}"), b"")
        assert not isinstance(sent, Failed), sent
        assert len(b"".join(sent)) == MUCH
        sent = connections.send(attempt(server.port, "/echo", body=True), data)
        assert not isinstance(sent, Failed), sent
        assert b"".join(sent)
        connections.close()
    assert server.bodies[-1] == data
    assert server.connections == 1


async def test_tasks_read_much(ca: SmallCa, contexts: Contexts) -> None:
    held = ca.held(REVIEWS)
    with raw_server(Contexts(lambda: held).server(ServerTls(InboundMode.STRICT))) as server:
        connections = asynchronous.Connections(time.monotonic, lambda: contexts)
        sent = await connections.send(attempt(server.port, f"/big/{MUCH}"), b"")
        assert not isinstance(sent, Failed), sent
        assert sum([len(piece) async for piece in sent]) == MUCH
        connections.close()
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def dripping() -> Iterator[int]:
    """A server that begins a handshake and sends a byte at a time, for ever."""
    end = threading.Event()

    def drip(listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        with accepted, contextlib.suppress(OSError):
            accepted.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")
            while not end.wait(0.002):
                accepted.sendall(b"\x00")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            end.set()
            thread.join()


async def test_a_handshake_by_the_byte_uses_up_the_time_to_connect(contexts: Contexts) -> None:
    for kind in (blocking, asynchronous):
        with dripping() as number:
            connections = kind.Connections(time.monotonic, lambda: contexts)
            begun = time.monotonic()
            sent: Any = connections.send(attempt(number, "/", patience=0.2), b"")
            if kind is asynchronous:
                sent = await sent
            connections.close()
        assert isinstance(sent, Failed)
        assert sent.how is Failure.CONNECT_TIMED_OUT
        assert time.monotonic() - begun < 3
    await asyncio.sleep(0.01)
