"""The TLS front by itself: half-open handshakes, limits, back-pressure, half-closing, renewal."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.secure_control import CART, DOMAIN, Secure, call, secure, workload

from meshlib.control.ca.authority import Authority
from meshlib.control.serve.credentials import Credentials, server_names
from meshlib.control.serve.front import Front, FrontLimits, Peer
from meshlib.control.serve.strangers import StrangerLimits
from meshlib.identity.keys import make_csr, make_key
from meshlib.xds import pb
from meshlib.xds.names import CONTROL_SERVER, TRUST_ROOTS

LIMITS = FrontLimits(strangers=StrangerLimits(bytes=2**30, all_bytes=2**30))
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@dataclass
class Behind:
    """A front with a server of ours behind it, in gRPC's place."""

    front: Front
    authority: Authority
    peers: list[Peer | None] = field(default_factory=list)

    def client(self, who: bool = False, alpn: str = "h2") -> ssl.SSLContext:
        """As a client of the mesh has it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.authority.roots_pem)
        context.set_alpn_protocols([alpn])
        if who:
            show(context, *workload(self.authority, CART))
        return context

    async def connect(
        self, context: ssl.SSLContext | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection with its handshake done."""
        return await asyncio.open_connection(
            "127.0.0.1", self.front.port, ssl=context or self.client(), server_hostname=CONTROL_SERVER
        )

    def plain(self) -> socket.socket:
        """A connection that says nothing."""
        return socket.create_connection(("127.0.0.1", self.front.port), 5)


def show(context: ssl.SSLContext, key: bytes, chain: bytes) -> None:
    """Makes a context show a certificate."""
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(key + b"\n" + chain)
        file.flush()
        context.load_cert_chain(file.name)


@asynccontextmanager
async def behind(
    folder: Path, serve: Serve, limits: FrontLimits = LIMITS, wall: Callable[[], float] = time.time
) -> AsyncIterator[Behind]:
    authority = Authority.open(folder / "state", trust_domain=DOMAIN, now=wall())
    credentials = Credentials(authority, server_names("127.0.0.1"), wall=wall)
    front = Front("127.0.0.1", 0, credentials, limits=limits)
    it = Behind(front, authority)

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        it.peers.append(front.who(f"unix:{writer.get_extra_info('peername')}"))
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(served, front.private().removeprefix("unix:"))
    front.start()
    try:
        yield it
    finally:
        await front.stop()
        server.close()
        await server.wait_closed()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What is read until the connection is ended by the other side."""
    async with asyncio.timeout(30):
        try:
            return await reader.read()
        except OSError:
            return b""


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


async def closed(sock: socket.socket) -> bool:
    """Whether the other side ended it, within half a minute."""
    sock.setblocking(False)
    try:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 30) == b""
    except ConnectionError:
        return True
    finally:
        sock.close()


async def test_bytes_go_through_unchanged_and_the_peer_is_known(tmp_path: Path) -> None:
    async with behind(tmp_path, echo) as it:
        for who in (False, True):
            reader, writer = await it.connect(it.client(who))
            sent = bytes(range(256)) * 8192
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent
            writer.close()
            await writer.wait_closed()
        first, second = it.peers
        assert first is not None
        assert (first.identity, first.refusal) == (None, "")
        assert second is not None
        assert second.identity == CART
        assert second.host == "127.0.0.1"


async def test_who_came_by_another_way_is_nobody(tmp_path: Path) -> None:
    async with behind(tmp_path, echo) as it:
        folder = it.front._folder
        assert folder is not None
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "grpc").stat().st_mode & 0o777 == 0o600
        _, writer = await asyncio.open_unix_connection(str(folder / "grpc"))
        await until(lambda: len(it.peers) == 1)
        assert it.peers == [None]
        writer.close()
    assert not folder.exists()


async def test_a_name_is_forgotten_with_its_connection_and_never_used_again(tmp_path: Path) -> None:
    async with behind(tmp_path, echo) as it:
        names = set()
        for _ in range(3):
            _, writer = await it.connect()
            await until(lambda: len(it.front._known) == 1)
            names |= it.front._known.keys()
            writer.close()
            await until(lambda: not it.front._known)
        assert len(names) == 3


async def test_handshakes_that_dawdle_end_and_hold_nobody_up(tmp_path: Path) -> None:
    limits = FrontLimits(handshakes_per_address=50, handshake_seconds=2.5)
    async with behind(tmp_path, echo, limits) as it:
        lazy = [it.plain() for _ in range(200)]
        await until(lambda: len(it.front._pending) <= 50)
        began = time.monotonic()
        reader, writer = await it.connect()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        assert time.monotonic() - began < 2.5
        for one in lazy:
            assert await closed(one)
        assert it.front.connections == 1
        writer.close()


async def test_a_byte_now_and_then_is_dawdling_too(tmp_path: Path) -> None:
    async with behind(tmp_path, echo, FrontLimits(handshake_seconds=0.5)) as it:
        one = it.plain()
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in bytes.fromhex("160301020001") + b"\0" * 500:
                one.send(bytes([byte]))
                await asyncio.sleep(0.02)
        assert 0.4 < time.monotonic() - began < 8
        one.close()


async def test_connections_are_bounded(tmp_path: Path) -> None:
    async with behind(tmp_path, echo, FrontLimits(per_address=3)) as it:
        held = [await it.connect() for _ in range(3)]
        assert await closed(it.plain())
        held[0][1].close()
        await until(lambda: it.front.connections == 2)
        reader, writer = await it.connect()
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        for _, each in (*held[1:], (reader, writer)):
            each.close()


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16" + b"\xff" * 600]
)
async def test_what_is_no_handshake_is_ended(said: bytes, tmp_path: Path) -> None:
    async with behind(tmp_path, echo) as it:
        one = it.plain()
        one.sendall(said)
        await until(lambda: it.front.connections == 0)
        one.close()


async def test_who_does_not_read_is_not_read_for(tmp_path: Path) -> None:
    written = 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            written += 65536

    async with behind(tmp_path, pour) as it:
        _, writer = await it.connect()
        last = -1
        while written != last or not written:
            last = written
            await asyncio.sleep(0.3)
        assert 0 < written < 32 * 1024 * 1024
        writer.transport.abort()


async def test_who_is_not_read_from_is_held_back(tmp_path: Path) -> None:
    over = asyncio.Event()

    async def ignore(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await over.wait()

    async with behind(tmp_path, ignore) as it:
        _, writer = await it.connect()
        sent = 0
        try:
            async with asyncio.timeout(1):
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
                    sent += 65536
        except TimeoutError:
            pass
        assert sent < 32 * 1024 * 1024
        over.set()
        writer.transport.abort()


async def test_what_was_written_before_a_close_arrives(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        writer.write(b"y" * 3_000_000)
        await writer.drain()

    async with behind(tmp_path, answer) as it:
        reader, writer = await it.connect()
        writer.write(b"hello")
        assert len(await reader.read(-1)) == 3_000_000
        writer.close()


async def test_a_client_that_ends_its_half_hears_the_rest(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.read(-1)
        await asyncio.sleep(0.1)
        writer.write(b"answer to " + said)

    async with behind(tmp_path, answer) as it:

        def talk() -> bytes:
            plain = it.plain()
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = it.client().wrap_bio(incoming, outgoing, server_hostname=CONTROL_SERVER)

            def until_done(step: Callable[[], Any]) -> Any:
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        if outgoing.pending:
                            plain.sendall(outgoing.read())
                        incoming.write(plain.recv(65536))

            until_done(tls.do_handshake)
            tls.write(b"hello")
            plain.sendall(outgoing.read())
            plain.shutdown(socket.SHUT_WR)
            try:
                return bytes(until_done(lambda: tls.read(100)))
            finally:
                plain.close()

        assert await asyncio.to_thread(talk) == b"answer to hello"


# Certificates


async def handshake(it: Behind, key: bytes, chain: bytes) -> str:
    """What a client with that certificate is told: in TLS 1.3 it learns it after the handshake."""
    context = it.client()
    show(context, key, chain)
    try:
        reader, writer = await it.connect(context)
        writer.write(b"x")
        await reader.read(1)
    except ssl.SSLError as error:
        return error.reason or ""
    except ConnectionError as error:
        return repr(error)
    writer.close()
    return ""


async def test_a_stranger_says_little_and_not_for_long_and_who_is_known_goes_on(tmp_path: Path) -> None:
    limits = FrontLimits(strangers=StrangerLimits(seconds=2.0, bytes=1000, all_bytes=1500))
    async with behind(tmp_path, echo, limits) as it:
        known, writing = await it.connect(it.client(True))
        talker, talking = await it.connect(it.client(False))
        talking.write(b"x" * 1001)
        assert await ended(talker) == b""
        one, ones = await it.connect(it.client(False))
        ones.write(b"x" * 900)
        assert await one.readexactly(900) == b"x" * 900
        other, others = await it.connect(it.client(False))
        others.write(b"y" * 700)  # together too much: the one that said most goes
        assert await ended(one) == b""
        assert await other.readexactly(700) == b"y" * 700
        assert await ended(other) == b""  # its time is over
        async with asyncio.timeout(30):
            while len(it.front.strangers):
                await asyncio.sleep(0.01)
        writing.write(b"z" * 5000)
        assert await known.readexactly(5000) == b"z" * 5000


async def test_who_proves_who_it_is_is_no_stranger_any_more(tmp_path: Path) -> None:
    limits = FrontLimits(strangers=StrangerLimits(seconds=1.5, bytes=100))
    async with behind(tmp_path, echo, limits) as it:
        reader, writer = await it.connect(it.client(False))
        writer.write(b"x")
        await reader.readexactly(1)
        (peer,) = it.peers
        assert peer is not None
        peer.prove("spiffe://x")
        await asyncio.sleep(1.7)
        writer.write(b"x" * 200)
        assert await reader.readexactly(200) == b"x" * 200


async def test_a_certificate_of_another_root_is_told_why(tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "other", trust_domain=DOMAIN, now=time.time())
    async with behind(tmp_path, echo) as it:
        assert await handshake(it, *workload(it.authority, CART)) == ""
        assert await handshake(it, *workload(other, CART)) == "TLSV1_ALERT_UNKNOWN_CA"


async def test_an_expired_certificate_is_told_so(tmp_path: Path) -> None:
    async with behind(tmp_path, echo) as it:
        key = make_key()
        old = it.authority.sign(make_csr(key, None).decode(), CART, 1, time.time() - 10)
        assert await handshake(it, key, "".join(old[:-1]).encode()) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"


async def test_a_server_certificate_without_client_use_is_refused(tmp_path: Path) -> None:
    async with behind(tmp_path, echo) as it:
        made = it.authority.server_certificate(["x.example"], time.time())
        assert (
            await handshake(it, made.key_pem, made.chain_pem.encode())
            == "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"
        )


async def test_the_server_certificate_and_the_roots_change_under_open_connections(tmp_path: Path) -> None:
    now = time.time() - 13 * 3600
    async with behind(tmp_path, echo, wall=lambda: now) as it:
        reader, writer = await it.connect()

        async def shown() -> bytes:
            _, other = await it.connect()
            found: bytes = other.get_extra_info("ssl_object").getpeercert(binary_form=True)
            other.close()
            return found

        first = await shown()
        assert await shown() == first
        now += 13 * 3600  # past half of its life
        second = await shown()
        assert second != first
        it.authority.rotate_root(now, overlap_s=0, keep_s=3600)
        key, chain = workload(it.authority, CART)  # by the new root
        third = await shown()
        assert third != second
        assert await handshake(it, key, chain) == ""
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()


# Real peers


def s_client(it: Secure, *options: str) -> str:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", it.server.address, "-servername", CONTROL_SERVER, *options],
        input="Q\n",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=20,
        check=False,
    )
    return done.stdout + done.stderr


async def test_openssl_sees_what_it_should(tmp_path: Path) -> None:
    async with secure(tmp_path) as it:
        roots = tmp_path / "roots.pem"
        roots.write_text(it.authority.roots_pem)
        trusting = ("-CAfile", str(roots), "-verify_hostname", CONTROL_SERVER, "-alpn", "h2")
        said = await asyncio.to_thread(s_client, it, *trusting)
        assert "Verify return code: 0 (ok)" in said
        assert "ALPN protocol: h2" in said
        assert "TLSv1.3" in said
        assert "No client certificate CA names sent" not in said or "Verification: OK" in said
        assert "Protocol  : TLSv1.2" in await asyncio.to_thread(s_client, it, "-tls1_2", *trusting)
        old = await asyncio.to_thread(s_client, it, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
        assert "alert protocol version" in old


async def test_grpc_streams_live_on_while_the_certificate_changes(tmp_path: Path) -> None:
    now = time.time() - 13 * 3600
    async with secure(tmp_path, wall=lambda: now) as it, it.channel() as old:
        before = await call(old, TRUST_ROOTS, pb.Struct(), pb.Struct)
        stream = old.stream_stream(pb.LRS, request_serializer=lambda m: m.SerializeToString())(
            metadata=it.bearer(CART, 86400 * 2, now=now)
        )
        await stream.write(pb.LoadStatsRequest())
        await asyncio.wait_for(stream.read(), 30)
        now += 13 * 3600
        it.authority.rotate_root(now, overlap_s=0)
        async with it.channel(CART) as new:
            after = await call(new, TRUST_ROOTS, pb.Struct(), pb.Struct)
        assert pb.to_dict(after)["roots"].startswith(pb.to_dict(before)["roots"])
        assert pb.to_dict(after) != pb.to_dict(before)
        await stream.write(pb.LoadStatsRequest())
        assert not stream.done()
        assert pb.to_dict(await call(old, TRUST_ROOTS, pb.Struct(), pb.Struct)) == pb.to_dict(after)
        stream.cancel()


@pytest.mark.parametrize("name", ["a b", "ä%", "long" * 25])
async def test_any_folder_for_temporary_files_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (odd := tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    async with secure(tmp_path / "state") as it, it.channel(CART) as channel:
        csr = pb.IstioCertificateRequest(csr=make_csr(make_key(), None).decode())
        await call(channel, pb.CREATE_CERTIFICATE, csr, pb.IstioCertificateResponse)
    assert list(odd.iterdir()) == []
