"""An endpoint at a socket of the file system, from YAML to the wire."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshlib

SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: NAME, namespace: default}
spec:
  hosts: [NAME.test]
  ports: [{number: NUMBER, name: it, protocol: PROTOCOL}]
  resolution: STATIC
  location: MESH_EXTERNAL
  endpoints: [{address: "unix://PATH"}]
"""
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlocal"


@contextlib.contextmanager
def answering(path: str) -> Iterator[list[bytes]]:
    """Answers requests at a path; gives what it was sent."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    heads: list[bytes] = []

    def run() -> None:
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(accepted,), daemon=True).start()

    def serve(accepted: socket.socket) -> None:
        with accepted, contextlib.suppress(OSError):
            while data := accepted.recv(65536):
                heads.append(data)
                accepted.sendall(ANSWER)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield heads
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "reviews.sock")


@pytest.fixture
def folder(tmp_path: Path, path: str) -> Path:
    made = tmp_path / "mesh"
    made.mkdir()
    for name, number, protocol in (("reviews", "9080", "HTTP"), ("db", "5432", "TCP")):
        text = SERVICE.replace("NAME", name).replace("NUMBER", number)
        (made / f"{name}.yaml").write_text(text.replace("PROTOCOL", protocol).replace("PATH", path))
    return made


async def test_requests_and_connections_reach_a_path(folder: Path, path: str) -> None:
    with answering(path) as heads:
        async with meshlib.connect(folder) as mesh:
            async with meshlib.AsyncClient(mesh=mesh, base_url="http://reviews.test:9080") as a:
                answers = [await a.get("/a"), await a.get("/b")]
            with meshlib.Client(mesh=mesh, base_url="http://reviews.test:9080") as c:
                answers += [await asyncio.to_thread(c.get, "/c")]
            assert [answer.text for answer in answers] == ["local"] * 3
            assert {answer.extensions["meshlib"].endpoint for answer in answers} == {path}
            assert [head.split()[1] for head in heads] == [b"/a", b"/b", b"/c"]
            reader, writer = await meshlib.open_connection("db.test", 5432, mesh=mesh)
            writer.write(b"hello")
            assert await reader.readexactly(len(ANSWER)) == ANSWER
            writer.close()
            with await asyncio.to_thread(meshlib.create_connection, ("db.test", 5432), mesh=mesh) as made:
                made.sendall(b"hello")
                assert made.recv(len(ANSWER)) == ANSWER


async def test_nobody_listens(folder: Path) -> None:
    async with meshlib.connect(folder) as mesh:
        async with meshlib.AsyncClient(mesh=mesh, base_url="http://reviews.test:9080") as a:
            with pytest.raises(meshlib.ConnectFailed, match="No such file"):
                await a.get("/")
        with (
            meshlib.Client(mesh=mesh, base_url="http://reviews.test:9080") as c,
            pytest.raises(meshlib.ConnectFailed, match="No such file"),
        ):
            await asyncio.to_thread(c.get, "/")
        with pytest.raises(ConnectionError):
            await meshlib.open_connection("db.test", 5432, mesh=mesh)
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(meshlib.create_connection, ("db.test", 5432), mesh=mesh)
