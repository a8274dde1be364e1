"""A server's port under STRICT, PERMISSIVE and DISABLE, with real callers of every kind."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.small_ca import SmallCa

from meshlib.core.mtls import ClientTls, InboundMode, ServerTls
from meshlib.core.request import Peer
from meshlib.dataplane import accept
from meshlib.dataplane.accept import Acceptor
from meshlib.dataplane.tls import Contexts, Held

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"


class Echo(asyncio.Protocol):
    """Says who called, and then what was sent."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.transport.write(f"{self.peer.principal or 'nobody'} {self.peer.sni or '-'}\n".encode())

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class AtPort:
    """A port whose policy can be changed."""

    def __init__(self, mode: InboundMode, held: Held | None) -> None:
        self.tls = ServerTls(mode, ("cluster.local",))
        self.held = held
        self.contexts: Contexts | None = Contexts(lambda: self.held)
        self.number = 0


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


@contextlib.asynccontextmanager
async def serving(mode: InboundMode, held: Held | None, patience: float = 5.0) -> AsyncIterator[AtPort]:
    port = AtPort(mode, held)
    listening = socket.create_server(("127.0.0.1", 0))
    port.number = listening.getsockname()[1]
    acceptor = Acceptor([listening], port, Echo, patience=patience)
    try:
        yield port
    finally:
        acceptor.close()
        await acceptor.wait_closed()


async def call(port: int, context: ssl.SSLContext | None = None, name: str = "") -> bytes:
    """What is answered to a greeting; nothing: the connection was cut off."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name if context else None
    )
    try:
        writer.write(b"hello\n")
        async with asyncio.timeout(30):
            return await reader.readline() + await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def as_caller(held: Held) -> ssl.SSLContext:
    return Contexts(lambda: held).client(ClientTls())


async def test_permissive_takes_both(ca: SmallCa) -> None:
    async with serving(InboundMode.PERMISSIVE, ca.held(REVIEWS)) as port:
        assert await call(port.number) == b"nobody -\nhello\n"
        answer = await call(port.number, as_caller(ca.held(PAGE)), "outbound_.9080_._.reviews")
        assert answer == f"{PAGE} outbound_.9080_._.reviews\nhello\n".encode()


async def test_strict_resets_plain_text(ca: SmallCa) -> None:
    async with serving(InboundMode.STRICT, ca.held(REVIEWS)) as port:
        assert await call(port.number) == b""
        assert (await call(port.number, as_caller(ca.held(PAGE)))).startswith(PAGE.encode())


async def test_disable_takes_plain_text_only(ca: SmallCa) -> None:
    async with serving(InboundMode.DISABLE, ca.held(REVIEWS)) as port:
        assert await call(port.number) == b"nobody -\nhello\n"
        with pytest.raises(ssl.SSLError):
            await call(port.number, as_caller(ca.held(PAGE)))


async def test_a_change_counts_for_the_next_connection(ca: SmallCa) -> None:
    async with serving(InboundMode.PERMISSIVE, ca.held(REVIEWS)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
        writer.write(b"a\n")
        assert await reader.readline() == b"nobody -\n"
        port.tls = ServerTls(InboundMode.STRICT)
        assert await call(port.number) == b""
        assert await reader.readline() == b"a\n"
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
        writer.transport.abort()
        port.tls = ServerTls(InboundMode.PERMISSIVE)
        assert await call(port.number) == b"nobody -\nhello\n"


@pytest.mark.parametrize(
    "caller",
    [
        pytest.param(lambda ca: SmallCa().held(PAGE), id="of another root"),
        pytest.param(lambda ca: ca.held(PAGE, ends=-10), id="expired"),
        pytest.param(lambda ca: ca.held(PAGE, begins=3600, ends=7200), id="not yet valid"),
        pytest.param(lambda ca: ca.held("spiffe://evil.local/ns/a/sa/b"), id="of another trust domain"),
        pytest.param(lambda ca: ca.held("https://cluster.local/"), id="no identity"),
        pytest.param(lambda ca: ca.held(PAGE, authority=True), id="an authority"),
    ],
)
async def test_who_may_not_be_served_is_cut_off(ca: SmallCa, caller: Any) -> None:
    held = caller(ca)
    context = Contexts(lambda: Held(held.chain_pem, held.key_pem, ca.pem)).client(ClientTls())
    async with serving(InboundMode.STRICT, ca.held(REVIEWS)) as port:
        with contextlib.suppress(ssl.SSLError):
            assert await call(port.number, context) == b""


async def test_a_caller_without_a_certificate_is_cut_off(ca: SmallCa) -> None:
    context = Contexts(lambda: None).client(ClientTls(mesh_identity=False, trust=_nobody()))
    async with serving(InboundMode.PERMISSIVE, ca.held(REVIEWS)) as port:
        with contextlib.suppress(ssl.SSLError):
            assert await call(port.number, context) == b""


def _nobody() -> Any:
    from meshlib.core.mtls import Trust

    return Trust.NOBODY


async def test_openssl_and_curl(ca: SmallCa, tmp_path: Path) -> None:
    held = ca.held(PAGE)
    pem, roots = tmp_path / "page.pem", tmp_path / "roots.pem"
    pem.write_bytes(held.key_pem + held.chain_pem.encode())
    roots.write_text(ca.pem)
    async with serving(InboundMode.STRICT, ca.held(REVIEWS)) as port:
        for arguments, good in (
            (["-cert", str(pem), "-CAfile", str(roots), "-verify_return_error"], True),
            (["-CAfile", str(roots)], False),
        ):
            found = await asyncio.to_thread(_s_client, port.number, arguments)
            assert (PAGE.encode() in found) is good


def _s_client(port: int, arguments: list[str]) -> bytes:
    command = ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{port}", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        line = running.stdout.readline()
        running.kill()
        return line


async def test_silent_and_slow_callers_are_cut_off(ca: SmallCa) -> None:
    async with serving(InboundMode.PERMISSIVE, ca.held(REVIEWS), patience=0.1) as port:
        silent, other = await asyncio.open_connection("127.0.0.1", port.number)
        slow, writer = await asyncio.open_connection("127.0.0.1", port.number)
        writer.write(b"\x16\x03")
        begun = time.monotonic()
        for reader in (silent, slow):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert time.monotonic() - begun < 3
        for one in (other, writer):
            one.transport.abort()
        await asyncio.sleep(0)


async def test_strangers_make_room_for_others(ca: SmallCa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "MOST_STRANGERS", 5)
    async with serving(InboundMode.PERMISSIVE, ca.held(REVIEWS)) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port.number) for _ in range(20)]
        assert await call(port.number) == b"nobody -\nhello\n"

        async def cut(reader: asyncio.StreamReader) -> bytes:
            with contextlib.suppress(ConnectionError):
                return await reader.read()
            return b""

        ends = [asyncio.create_task(cut(reader)) for reader, _ in silent]
        async with asyncio.timeout(30):
            while sum(one.done() for one in ends) < 14:
                await asyncio.sleep(0.01)
        assert {one.result() for one in ends if one.done()} == {b""}
        for one in ends:
            one.cancel()
        await asyncio.wait(ends)
        for _, writer in silent:
            writer.transport.abort()


async def test_without_a_certificate_plain_text_is_all(ca: SmallCa) -> None:
    async with serving(InboundMode.PERMISSIVE, None) as port:
        port.contexts = None
        assert await call(port.number) == b"nobody -\nhello\n"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await call(port.number, as_caller(ca.held(PAGE)))
