"""Sockets and streams of the mesh on loopback: rules, ends, limits, TLS, forks."""

import asyncio
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.commands import wait_until
from support.fake_mesh import FakeMesh, fake_connections
from support.h2_server import h2_server
from support.named_tcp import named_tcp
from support.ports import free_port
from support.tls_server import certificate

import meshlib
from meshlib.core.balance.cluster import Keepalive, Limits
from meshlib.core.http2 import Http2
from meshlib.core.tunnel import Tunnel
from meshlib.dataplane.tcp.sockets import MeshSocket

ONE = Limits(max_connections=1)


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    with named_tcp("echo") as port:
        yield port


def connect(mesh: FakeMesh, timeout: float | None = 10, **more: object) -> socket.socket:
    return meshlib.create_connection(("db", 5432), timeout, mesh=mesh, **more)  # type: ignore[arg-type]


async def opened(mesh: FakeMesh, **more: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await meshlib.open_connection("db", 5432, mesh=mesh, **more)  # type: ignore[arg-type]


def held(mesh: FakeMesh) -> tuple[int, int, int]:
    state = mesh.ledger.cluster("c")
    return state.active, state.connections, sum(host.active for host in state.hosts.values())


# Sockets


def test_a_socket_is_one(echo: int) -> None:
    mesh = fake_connections([echo])
    with connect(mesh, 7.0) as made:
        assert type(made) is MeshSocket
        assert isinstance(made, socket.socket)
        assert made.gettimeout() == 7.0
        assert select.select([made], [], [], 5)[0] == [made]
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert made.recv(5) == b"echo\n"
        made.sendall(memoryview(b"abc"))
        made.send(b"def")
        made.sendmsg([b"g", b"hi"])
        buffer, found = bytearray(9), 0
        while found < 9:  # MSG_WAITALL does not wait on a socket with a time-out
            found += made.recv_into(memoryview(buffer)[found:], 9 - found)
        assert bytes(buffer) == b"abcdefghi"
        made.sendall(b"line\n")
        assert made.makefile("rb").readline() == b"line\n"
        made.sendall(b"x" * 3)
        assert made.recvmsg(100)[0] == b"xxx"
        assert held(mesh) == (1, 1, 1)
        assert made._link is not None
        assert (made._link.sent, made._link.received) == (17, 22)
    assert held(mesh) == (0, 0, 0)


async def test_the_keep_alive_of_a_cluster(echo: int) -> None:
    mesh = fake_connections([echo], keepalive=Keepalive(5, 77, 11))
    with connect(mesh) as made:
        assert kept_alive(made) == (1, 5, 11)
    _, writer = await opened(mesh)
    assert kept_alive(writer.get_extra_info("socket")) == (1, 5, 11)
    writer.close()
    await writer.wait_closed()
    with connect(fake_connections([echo])) as made:
        assert kept_alive(made)[0] == 0
    odd = fake_connections([echo], keepalive=Keepalive(probes=100_000))
    with pytest.raises(meshlib.ConnectFailed):
        connect(odd)
    with pytest.raises(meshlib.ConnectFailed):
        await opened(odd)
    assert held(odd) == (0, 0, 0)


def kept_alive(made: socket.socket) -> tuple[int, int, int]:
    return (
        made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    )


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("how", [None, Http2()])
async def test_a_tunnel_through_a_proxy_that_speaks_http2_only(post: bool, how: Http2 | None) -> None:
    with h2_server() as proxy:
        mesh = fake_connections([proxy.port], chain={"tunnel": Tunnel("far.test:1", post)}, http2=how)
        why = "a tunnel is asked for by HTTP/1.1" if how else "no HTTP/1.1; it may be HTTP/2"
        with pytest.raises(meshlib.ConnectFailed, match=why):
            connect(mesh, 60)
        with pytest.raises(meshlib.ConnectFailed, match=why):
            await opened(mesh)
        assert proxy.connections == (0 if how else 2)
    assert held(mesh) == (0, 0, 0)


def test_a_file_of_a_socket_keeps_it_open(echo: int) -> None:
    mesh = fake_connections([echo])
    made = connect(mesh)
    file = made.makefile("rwb")
    made.close()
    assert held(mesh) == (1, 1, 1)
    assert file.readline() == b"echo\n"
    file.close()
    assert held(mesh) == (0, 0, 0)


def test_a_time_out_and_a_default_of_the_applications(echo: int) -> None:
    mesh = fake_connections([echo])
    with connect(mesh, None) as made:
        assert made.gettimeout() is None
    socket.setdefaulttimeout(3.0)
    try:
        with meshlib.create_connection(("db", 5432), mesh=mesh) as made:  # type: ignore[arg-type]
            assert made.gettimeout() == 3.0
    finally:
        socket.setdefaulttimeout(None)


def test_a_source_address(echo: int) -> None:
    with connect(fake_connections([echo]), source_address=("127.0.0.3", 0)) as made:
        assert made.getsockname()[0] == "127.0.0.3"


def test_a_forgotten_socket_gives_its_slot_back(echo: int) -> None:
    mesh = fake_connections([echo], limits=ONE)
    forgotten = [connect(mesh)]
    with pytest.raises(meshlib.NoUpstream, match=r"\[UO\]"):
        connect(mesh)
    with pytest.warns(ResourceWarning, match="unclosed"):
        forgotten.clear()
    connect(mesh).close()
    assert held(mesh) == (0, 0, 0)


def test_a_detached_descriptor_holds_the_slot_for_as_long_as_it_is_open(echo: int) -> None:
    mesh = fake_connections([echo], limits=ONE)
    descriptor = connect(mesh).detach()
    with pytest.raises(meshlib.NoUpstream):
        connect(mesh)
    os.close(descriptor)
    connect(mesh).close()
    descriptor = connect(mesh).detach()
    other = os.open("/dev/null", os.O_RDONLY)
    os.dup2(other, descriptor)  # another file under the same number
    connect(mesh).close()
    os.close(descriptor)
    os.close(other)
    assert held(mesh) == (0, 0, 0)


def test_tls_of_the_application_on_the_meshs_socket(tmp_path: Path) -> None:
    trusted, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, key)
    own = ssl.create_default_context(cafile=str(trusted))
    with named_tcp("safe", context) as port:
        mesh = fake_connections([port], limits=ONE)
        with own.wrap_socket(connect(mesh), server_hostname="localhost") as made:
            assert made.recv(5) == b"safe\n"
            with pytest.raises(meshlib.NoUpstream):
                connect(mesh)
        connect(mesh).close()
        assert held(mesh) == (0, 0, 0)


def test_what_is_refused_is_an_os_error_and_holds_nothing() -> None:
    mesh = fake_connections([free_port()])
    with pytest.raises(ConnectionError, match="Connection refused") as raised:
        connect(mesh)
    assert isinstance(raised.value, meshlib.ConnectFailed)
    assert raised.value.flight.cluster == "c"
    assert held(mesh) == (0, 0, 0)


def test_a_peer_that_does_not_answer_is_not_waited_for() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        with ExitStack() as stack:
            for filler in map(stack.enter_context, fillers):
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            mesh = fake_connections([full.getsockname()[1]], connect_timeout=0.2)
            with pytest.raises(TimeoutError, match=r"within 0\.2 s") as raised:
                connect(mesh)
            assert isinstance(raised.value, meshlib.ConnectTimedOut)
            slow = fake_connections([full.getsockname()[1]], connect_timeout=60.0)
            began = time.monotonic()
            with pytest.raises(TimeoutError, match=r"ran out|was no connection"):
                connect(slow, 0.2)
            assert time.monotonic() - began < 10
            assert held(mesh) == held(slow) == (0, 0, 0)


def test_an_idle_and_an_old_socket_are_shut_down(echo: int) -> None:
    for chain in ({"idle_timeout": 0.2}, {"idle_timeout": 0.0, "max_duration": 0.2}):
        mesh = fake_connections([echo], chain=chain)
        with connect(mesh) as made:
            assert made.recv(5) == b"echo\n"
            assert made.recv(5) == b""
            wait_until(lambda mesh=mesh: held(mesh) == (0, 0, 0), 60, "the slot")  # type: ignore[misc]
    wait_until(
        lambda: not any(t.name == "meshlib-tcp" for t in threading.enumerate()), 60, "the thread's end"
    )


def test_a_child_of_a_fork_disturbs_nobody(echo: int) -> None:
    mesh = fake_connections([echo])
    with connect(mesh) as made:
        assert made.recv(5) == b"echo\n"
        child = os.fork()
        if not child:
            try:
                made.close()
                fresh = connect(mesh)
                good = fresh.recv(5) == b"echo\n" and held(mesh) == (1, 1, 1)
                fresh.close()
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        made.sendall(b"still here")
        assert made.recv(10) == b"still here"
    assert held(mesh) == (0, 0, 0)


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(ValueError, match="can't be connected to"):
        meshlib.create_connection(("db", port), mesh=fake_connections([]))  # type: ignore[arg-type]


# Streams


async def test_streams_are_asyncios(echo: int) -> None:
    mesh = fake_connections([echo])
    reader, writer = await opened(mesh, limit=2**20)
    assert type(reader) is asyncio.StreamReader
    assert isinstance(writer, asyncio.StreamWriter)
    assert await reader.readline() == b"echo\n"
    writer.write(b"a" * 300_000)
    writer.writelines([b"b", b"c\n"])
    await writer.drain()
    assert len(await reader.readuntil(b"\n")) == 300_003
    assert held(mesh) == (1, 1, 1)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert held(mesh) == (0, 0, 0)


async def test_the_peers_end_gives_the_slot_back() -> None:
    with named_tcp("short") as port:
        mesh = fake_connections([port])
        reader, writer = await opened(mesh)
        await reader.readline()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert held(mesh) == (0, 0, 0)


async def test_cancelled_on_the_way() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        mesh = fake_connections([full.getsockname()[1]])
        task = asyncio.create_task(opened(mesh))
        while held(mesh) != (1, 1, 1):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert held(mesh) == (0, 0, 0)
        quick = fake_connections([full.getsockname()[1]], connect_timeout=0.1)
        with pytest.raises(TimeoutError):
            await opened(quick)
        assert held(quick) == (0, 0, 0)
        for filler in fillers:
            filler.close()


async def test_idle_and_old_streams_end(echo: int) -> None:
    for chain in ({"idle_timeout": 0.2}, {"idle_timeout": 0.0, "max_duration": 0.2}):
        mesh = fake_connections([echo], chain=chain)
        reader, writer = await opened(mesh)
        assert await reader.read() == b"echo\n"
        assert held(mesh) == (0, 0, 0)
        writer.close()


async def test_one_connection_more_is_refused(echo: int) -> None:
    mesh = fake_connections([echo], limits=ONE)
    _, writer = await opened(mesh)
    with pytest.raises(meshlib.NoUpstream, match=r"\[UO\]"):
        await opened(mesh)
    writer.close()
    await writer.wait_closed()
    _, writer = await opened(mesh)
    writer.close()
    await writer.wait_closed()


async def test_tls_of_the_application_within(tmp_path: Path) -> None:
    trusted, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, key)
    own = ssl.create_default_context(cafile=str(trusted))
    with named_tcp("safe", context) as port:
        mesh = fake_connections([port])
        reader, writer = await opened(mesh, ssl=own, server_hostname="localhost", limit=2**20)
        assert await reader.readline() == b"safe\n"
        writer.write(b"x" * 100_000 + b"\n")
        assert len(await reader.readuntil(b"\n")) == 100_001
        assert writer.get_extra_info("ssl_object").version()
        writer.close()
        await writer.wait_closed()
        with pytest.raises(ssl.SSLCertVerificationError):
            await opened(mesh, ssl=own)  # its certificate is not for `db`
        with pytest.raises(ssl.SSLCertVerificationError):
            await opened(mesh, ssl=True, server_hostname="localhost")
        with pytest.raises(ValueError, match="server_hostname"):
            await opened(mesh, server_hostname="localhost")
        assert held(mesh) == (0, 0, 0)
