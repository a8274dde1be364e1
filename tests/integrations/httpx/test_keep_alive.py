"""A peer that closes an idle connection in the moment in which it is used again: nobody notices."""

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn
from support.fake_mesh import fake_mesh

import meshlib

URL = "http://reviews:9080"


class Fickle:
    """Answers one request a connection and closes it without a word: at once, or once it has read the next
    (`waits`), whose method it notes.
    """

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self.listening.getsockname()[1]
        self.waits = False
        self.ignored: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                accepted, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        with accepted:
            try:
                if not self._read(accepted):
                    return
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                if self.waits and (ignored := self._read(accepted)):
                    self.ignored.append(ignored.split(b" ")[0].decode())
            except OSError:
                pass

    def _read(self, accepted: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := accepted.recv(65536)):
                break
            data += more
        return data

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self._thread.join(5)


@pytest.fixture
def fickle() -> Iterator[Fickle]:
    made = Fickle()
    yield made
    made.stop()


def client(mesh: Any) -> httpx.Client:
    return meshlib.Client(mesh=mesh, base_url=URL)


def async_client(mesh: Any) -> httpx.AsyncClient:
    return meshlib.AsyncClient(mesh=mesh, base_url=URL)


# A peer that closes right after the answer, and one that reads the next request and closes


@pytest.mark.parametrize("waits", [False, True])
def test_hundreds_of_requests_to_a_fickle_peer(fickle: Fickle, waits: bool) -> None:
    fickle.waits = waits
    with client(mesh := fake_mesh([fickle.port])) as c, ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda _: c.get("/").status_code, range(400)))
    assert statuses == [200] * 400
    assert mesh.in_flight() == 0


@pytest.mark.parametrize("waits", [False, True])
async def test_hundreds_of_requests_to_a_fickle_peer_for_tasks(fickle: Fickle, waits: bool) -> None:
    fickle.waits = waits
    async with async_client(mesh := fake_mesh([fickle.port])) as c:

        async def some() -> list[int]:
            return [(await c.get("/")).status_code for _ in range(20)]

        statuses = await asyncio.gather(*(some() for _ in range(20)))
    assert statuses == [[200] * 20] * 20
    assert mesh.in_flight() == 0


async def test_what_might_harm_is_not_sent_twice(fickle: Fickle) -> None:
    fickle.waits = True
    mesh = fake_mesh([fickle.port])
    with client(mesh) as c:
        c.get("/")
        with pytest.raises(meshlib.UpstreamReset):
            c.post("/", content=b"")
        c.get("/")
        assert c.put("/", content=b"").status_code == 200
    async with async_client(mesh) as a:
        await a.get("/")
        with pytest.raises(meshlib.UpstreamReset):
            await a.post("/", content=b"")
        await a.get("/")
        assert (await a.delete("/")).status_code == 200
    assert fickle.ignored == ["POST", "PUT", "POST", "DELETE"]


def test_a_new_connection_that_fails_is_not_tried_again(fickle: Fickle) -> None:
    fickle.waits = True
    with client(fake_mesh([fickle.port])) as c:
        c.get("/")
        fickle.stop()
        with pytest.raises(meshlib.ConnectFailed) as caught:
            c.get("/")
    assert caught.value.flight.attempts == 1


def test_who_never_keeps_a_connection_is_not_asked_to(fickle: Fickle) -> None:
    fickle.waits = True
    with client(fake_mesh([fickle.port])) as c:
        for _ in range(20):
            c.get("/")
    assert len(fickle.ignored) < 6


# A real server whose patience ends while it is asked


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_uvicorn_that_closes_after_a_second() -> None:
    config = uvicorn.Config(_application, port=0, timeout_keep_alive=1, log_level="critical", lifespan="off")
    server, dice = uvicorn.Server(config), random.Random(1)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listening]))
    mesh = fake_mesh([listening.getsockname()[1]])
    async with async_client(mesh) as a:

        async def ask(method: str, after: float) -> list[int]:
            await asyncio.sleep(after)
            return [(await a.request(method, "/", content=b"x")).status_code for _ in range(4)]

        found = await asyncio.gather(*(ask("PUT", 0.0) for _ in range(50)))
        found += await asyncio.gather(*(ask("PUT", dice.uniform(0.98, 1.02)) for _ in range(50)))
        # What was learned by now keeps safe what can't be sent twice.
        found += await asyncio.gather(*(ask("POST", dice.uniform(0.98, 1.02)) for _ in range(50)))
    server.should_exit = True
    await serving
    assert {status for statuses in found for status in statuses} == {200}
