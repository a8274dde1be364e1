"""Real databases through the mesh, with the drivers that people use: as docs/how-to/tcp.md shows it."""

import asyncio
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pg8000.native
import pytest
import redis
import redis.asyncio
from support.databases import postgres
from support.databases import redis as redis_server
from support.secure_control import workload
from support.secure_mesh import SecureMesh, secure_mesh
from support.tls_front import tls_front

import meshlib
from meshlib.dataplane.tcp.sockets import MeshSocket, MeshSSLSocket
from meshlib.identity.spiffe import SpiffeId

DATABASE = SpiffeId("cluster.local", "default", "database")
CALLER = "spiffe://cluster.local/ns/default/sa/shop"
WRITTEN = """
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: tcp, port: {port}}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}}}
spec: {{address: 127.0.0.1, ports: {{tcp: {at}}}, labels: {{app: {name}}}{more}}}
"""


@dataclass
class Databases:
    """A mesh with each database twice: as it is, and behind mutual TLS."""

    mesh: meshlib.Mesh
    secure: SecureMesh
    shown: list[list[str]]
    """The names that callers have shown to each of the two fronts."""


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    with ExitStack() as stack:
        ports = {"db": stack.enter_context(postgres()), "cache": stack.enter_context(redis_server())}
        known = {"db": 5432, "cache": 6379}
        secure = stack.enter_context(secure_mesh(tmp_path_factory.mktemp("mesh")))
        documents, shown = [], []
        for name, at in ports.items():
            front, callers = stack.enter_context(tls_front(at, lambda: server_context(secure)))
            shown.append(callers)
            account = f", serviceAccount: {DATABASE.service_account}"
            documents += [
                WRITTEN.format(name=name, port=known[name], at=at, more=""),
                WRITTEN.format(name=f"{name}-mutual", port=known[name], at=front, more=account),
            ]
        secure.edit(*documents)
        mesh = stack.enter_context(secure.joined("shop"))
        yield Databases(mesh, secure, shown)


def server_context(secure: SecureMesh) -> ssl.SSLContext:
    """What the front of a database shows and asks for: a certificate of the mesh."""
    key, chain = workload(secure.authority, DATABASE)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(key + chain)
        made.load_cert_chain(file.name)
    made.load_verify_locations(cadata=secure.authority.roots_pem)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


BOTH = pytest.mark.parametrize(("end", "kind"), [("", MeshSocket), ("-mutual", MeshSSLSocket)])


@BOTH
def test_postgresql_by_pg8000(databases: Databases, end: str, kind: type) -> None:
    made = meshlib.create_connection((f"db{end}", 5432), timeout=10, mesh=databases.mesh)
    assert type(made) is kind
    connection = pg8000.native.Connection("postgres", sock=made, ssl_context=False)
    try:
        assert connection.run("select 1 + 2") == [[3]]
        connection.run("create temporary table t (n int, text varchar)")
        connection.run("insert into t select n, repeat('x', 1000) from generate_series(1, 2000) as n")
        found: Any = connection.run("select sum(n), sum(length(text)), max(text) from t")
        assert found == [[2001000, 2000000, "x" * 1000]]
        everything: Any = connection.run("select n, text from t order by n")
        assert len(everything) == 2000
    finally:
        connection.close()
    (state,) = [s for name, s in databases.mesh.ledger.clusters.items() if f"|db{end}." in name]
    assert (state.active, state.connections) == (0, 0)
    if end:
        assert set(databases.shown[0]) == {CALLER}


def test_a_lost_database_is_an_error_of_the_driver(databases: Databases) -> None:
    MeshRedis.mesh = databases.mesh
    pool = redis.ConnectionPool(MeshRedis, host="cache.nowhere.invalid", port=6379, retry=None)
    client = redis.Redis(connection_pool=pool, retry=None)
    with pytest.raises(redis.exceptions.ConnectionError) as raised:
        client.ping()
    assert isinstance(raised.value.__context__ or raised.value.__cause__, meshlib.ConnectFailed)
    pool.disconnect()


class MeshRedis(redis.Connection):
    """As docs/how-to/tcp.md shows it."""

    mesh: meshlib.Mesh

    def _connect(self) -> Any:
        made = meshlib.create_connection(
            (self.host, self.port), self.socket_connect_timeout, mesh=type(self).mesh
        )
        made.settimeout(self.socket_timeout)
        return made


@BOTH
def test_redis_by_redis_py(databases: Databases, end: str, kind: type) -> None:
    MeshRedis.mesh = databases.mesh
    pool = redis.ConnectionPool(MeshRedis, host=f"cache{end}", port=6379, socket_timeout=10)
    client = redis.Redis(connection_pool=pool)
    assert client.set("a", b"1" * 100_000)
    assert client.get("a") == b"1" * 100_000
    with client.pipeline() as pipeline:
        for number in range(500):
            pipeline.set(f"k{number}", number)
        assert pipeline.execute() == [True] * 500
    listening = client.pubsub()
    listening.subscribe("news")
    assert listening.get_message(timeout=60)
    client.publish("news", "hello")
    assert (listening.get_message(timeout=60) or {}).get("data") == b"hello"
    listening.close()
    client.close()
    pool.disconnect()
    if end:
        assert set(databases.shown[1]) == {CALLER}


class AsyncMeshRedis(redis.asyncio.Connection):
    """As docs/how-to/tcp.md shows it."""

    mesh: meshlib.Mesh

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            self._reader, self._writer = await meshlib.open_connection(
                self.host, self.port, mesh=type(self).mesh
            )


@pytest.mark.parametrize("end", ["", "-mutual"])
async def test_redis_by_redis_pys_asyncio(databases: Databases, end: str) -> None:
    AsyncMeshRedis.mesh = databases.mesh
    pool = redis.asyncio.ConnectionPool(AsyncMeshRedis, host=f"cache{end}", port=6379)
    client = redis.asyncio.Redis(connection_pool=pool)
    await client.set("b", b"2" * 100_000)
    assert await client.get("b") == b"2" * 100_000
    assert await asyncio.gather(*(client.incr(f"n{end}") for _ in range(20)))
    assert await client.get(f"n{end}") == b"20"
    await client.aclose()
    await pool.disconnect()


def test_a_new_certificate_is_shown_by_new_connections_and_old_ones_go_on(databases: Databases) -> None:
    certs = databases.mesh.certs
    assert certs is not None
    old = meshlib.create_connection(("cache-mutual", 6379), timeout=10, mesh=databases.mesh)
    old.sendall(b"PING\r\n")
    assert old.recv(100) == b"+PONG\r\n"
    before = certs.held
    databases.secure.rotate_root(overlap_s=0.1, keep_s=60)
    until = time.monotonic() + 30
    while certs.held is before:
        assert time.monotonic() < until
        time.sleep(0.05)
    new = meshlib.create_connection(("cache-mutual", 6379), timeout=10, mesh=databases.mesh)
    for one in (new, old):
        one.sendall(b"PING\r\n")
        assert one.recv(100) == b"+PONG\r\n"
        one.close()
