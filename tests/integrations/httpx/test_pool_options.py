"""connectionPool.tcp on real sockets: keep-alive is read back, a connection does not outlive its duration."""

import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.raw_server import RawServer, raw_server

import meshlib
from meshlib.core.balance.cluster import Keepalive
from meshlib.dataplane.http.options import set_options

URL = "http://reviews:9080"
NAMES = ("TCP_KEEPCNT", "TCP_KEEPIDLE" if sys.platform == "linux" else "TCP_KEEPALIVE", "TCP_KEEPINTVL")
SOME = Keepalive(probes=5, idle=77, interval=11)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as running:
        yield running


def client(mesh: FakeMesh) -> meshlib.Client:
    return meshlib.Client(mesh=mesh, base_url=URL)  # type: ignore[arg-type]


def async_client(mesh: FakeMesh) -> meshlib.AsyncClient:
    return meshlib.AsyncClient(mesh=mesh, base_url=URL)  # type: ignore[arg-type]


def connection(made: httpx.Client | httpx.AsyncClient) -> Any:
    """The one idle connection of a client."""
    pool = made._transport._sender._connections._pools["c"]  # type: ignore[union-attr]
    ((kept,),) = pool._idle.values()
    return kept.connection


def options(made: Any) -> tuple[bool, ...]:
    """Whether a socket is kept alive, and with which numbers."""
    numbers = [made.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in NAMES]
    return (made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0, *numbers)


def own_options() -> tuple[bool, ...]:
    """What the system gives a socket."""
    with socket.socket() as made:
        return options(made)


def test_the_keep_alive_of_a_cluster_stands_on_its_sockets(server: RawServer) -> None:
    with client(fake_mesh([server.port], keepalive=SOME)) as c:
        c.get("/echo")
        assert options(connection(c).socket) == (True, 5, 77, 11)
    with client(fake_mesh([server.port])) as c:
        c.get("/echo")
        assert options(connection(c).socket) == own_options()


async def test_the_keep_alive_of_a_cluster_stands_on_sockets_of_a_loop(server: RawServer) -> None:
    async with async_client(fake_mesh([server.port], keepalive=SOME)) as a:
        await a.get("/echo")
        made = connection(a)._transport.get_extra_info("socket")
        assert options(made) == (True, 5, 77, 11)
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_is_not_said_is_the_systems() -> None:
    with socket.socket() as made:
        _, probes, idle, interval = options(made)
        set_options(made, Keepalive(idle=33))
        assert options(made) == (True, probes, 33, interval)
    with socket.socket() as made:
        set_options(made, Keepalive())
        assert options(made) == (True, probes, idle, interval)


async def test_a_number_that_the_system_refuses_is_no_connection(server: RawServer) -> None:
    mesh = fake_mesh([server.port], keepalive=Keepalive(probes=100_000))
    with client(mesh) as c, pytest.raises(httpx.ConnectError):
        c.get("/echo")
    async with async_client(mesh) as a:
        with pytest.raises(httpx.ConnectError):
            await a.get("/echo")
    assert mesh.in_flight() == 0


async def test_a_connection_is_not_used_after_its_duration(server: RawServer) -> None:
    mesh = fake_mesh([server.port], max_connection_duration=0.05)
    with client(mesh) as c:
        for _ in range(2):
            c.get("/echo")
        assert server.connections == 1
        time.sleep(0.06)
        c.get("/echo")
        assert server.connections == 2
    async with async_client(mesh) as a:
        await a.get("/echo")
        # What is under way ends first.
        assert (await a.get("/slow/0.06")).status_code == 200
        pool = a._transport._sender._connections._pools["c"]  # type: ignore[union-attr]
        assert (server.connections, pool.opened) == (3, 0)
