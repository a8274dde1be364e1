"""Copies in the background: bounded, counted, never in the caller's way, nothing left when it is closed."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from meshlib.core.actions import Attempt, Mirror
from meshlib.core.balance.cluster import Upstream
from meshlib.core.request import Failed, Failure, RequestHead
from meshlib.dataplane import mirroring
from meshlib.dataplane.body import RequestBody
from meshlib.dataplane.http.limits import Broken
from meshlib.dataplane.http.syntax import Unsendable
from meshlib.dataplane.mirroring import MOST, THREADS, AsyncMirrors, Mirrors

MIRROR = Mirror("m", ("m", 1), RequestHead("GET", "http", "a", "/"), Upstream(), 2.0)
LOST = Failed(Failure.RESET, "lost")


class Response:
    """A response whose body breaks, in both ways of reading."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"a"
        raise Broken(LOST)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"a"
        raise Broken(LOST)


class Connections:
    """Sends nothing; waits at a gate."""

    def __init__(self, result: Any = LOST) -> None:
        self.result = result
        self.gate = threading.Event()
        self.sent: list[tuple[Attempt, bytes]] = []
        self.arrived = threading.Semaphore(0)

    def send(self, attempt: Attempt, body: bytes) -> Any:
        self.sent.append((attempt, body))
        self.arrived.release()
        assert self.gate.wait(10)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class AsyncConnections(Connections):
    async def send(self, attempt: Attempt, body: bytes) -> Any:
        self.sent.append((attempt, body))
        while not self.gate.is_set():
            await asyncio.sleep(0)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def mirrors(connections: Connections) -> Mirrors:
    return Mirrors(connections, lambda: 100.0)  # type: ignore[arg-type]


def async_mirrors(connections: AsyncConnections) -> AsyncMirrors:
    return AsyncMirrors(connections, lambda: 100.0)  # type: ignore[arg-type]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "meshlib-mirror"]


def end(connections: Connections, made: Mirrors) -> None:
    connections.gate.set()
    made.close()
    for thread in threads():
        thread.join(10)
    assert threads() == []


def test_a_copy_is_one_try_with_a_limit_of_its_own() -> None:
    connections = Connections()
    made = mirrors(connections)
    made.add(MIRROR, RequestBody(b"body"))
    assert connections.arrived.acquire(timeout=10)
    end(connections, made)
    [(attempt, body)] = connections.sent
    assert body == b"body"
    assert (attempt.cluster, attempt.address, attempt.head) == ("mirror|m", ("m", 1), MIRROR.head)
    assert (attempt.upstream, attempt.try_deadline, attempt.deadline) == (MIRROR.upstream, None, 102.0)


def test_the_caller_never_waits_and_what_is_too_much_is_dropped() -> None:
    connections = Connections()
    made = mirrors(connections)
    for _ in range(THREADS):
        made.add(MIRROR, RequestBody(b""))
        assert connections.arrived.acquire(timeout=10)
    for _ in range(MOST):
        made.add(MIRROR, RequestBody(b""))
    assert (made.dropped, len(threads()), len(connections.sent)) == (THREADS, THREADS, THREADS)
    connections.gate.set()
    for _ in range(MOST - THREADS):
        assert connections.arrived.acquire(timeout=10)
    assert len(connections.sent) == MOST
    end(connections, made)
    assert made.dropped == THREADS


def test_one_that_hangs_does_not_hold_up_the_next() -> None:
    connections = Connections()
    made = mirrors(connections)
    for _ in range(3):
        made.add(MIRROR, RequestBody(b""))
    for _ in range(3):
        assert connections.arrived.acquire(timeout=10)
    end(connections, made)


def test_threads_end_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "IDLE_SECONDS", 0.001)
    connections = Connections()
    connections.gate.set()
    made = mirrors(connections)
    made.add(MIRROR, RequestBody(b""))
    for thread in threads():
        thread.join(10)
    assert repr(made) == "<Mirrors: 0 waiting, 0 threads, 0 dropped>"
    made.add(MIRROR, RequestBody(b""))
    assert connections.arrived.acquire(timeout=10)
    end(connections, made)


def test_a_body_is_copied_when_it_is_known_and_not_if_it_is_too_long() -> None:
    connections = Connections()
    connections.gate.set()
    made = mirrors(connections)
    body, long = RequestBody(iter([b"a", b"b"])), RequestBody(iter([b"a", b"b"]), limit=1)
    made.add(MIRROR, body)
    made.add(MIRROR, long)
    assert (connections.sent, made.dropped) == ([], 0)
    list(body.content())
    list(long.content())
    assert connections.arrived.acquire(timeout=10)
    end(connections, made)
    assert ([body for _, body in connections.sent], made.dropped) == ([b"ab"], 1)


def test_what_has_not_begun_is_dropped_at_the_close() -> None:
    connections = Connections()
    made = mirrors(connections)
    for _ in range(THREADS + 5):
        made.add(MIRROR, RequestBody(b""))
    made.close()
    made.add(MIRROR, RequestBody(b""))
    dropped = made.dropped
    end(connections, made)
    assert dropped == THREADS + 5 - len(connections.sent) + 1


@pytest.mark.parametrize("result", [LOST, Response(), Broken(LOST), Unsendable("no")])
async def test_failures_are_nobodys_business(result: Any, caplog: pytest.LogCaptureFixture) -> None:
    connections, aconnections = Connections(result), AsyncConnections(result)
    made, amade = mirrors(connections), async_mirrors(aconnections)
    for _ in range(2):
        made.add(MIRROR, RequestBody(b""))
        amade.add(MIRROR, RequestBody(b""))
    connections.gate.set()
    aconnections.gate.set()
    for _ in range(2):
        assert connections.arrived.acquire(timeout=10)
    await asyncio.gather(*amade._tasks)
    end(connections, made)
    assert (len(aconnections.sent), amade.dropped, made.dropped) == (2, 0, 0)
    assert caplog.records == []


async def test_a_mistake_of_ours_is_logged_and_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    connections, aconnections = Connections(ValueError("bug")), AsyncConnections(ValueError("bug"))
    made, amade = mirrors(connections), async_mirrors(aconnections)
    connections.gate.set()
    aconnections.gate.set()
    for _ in range(2):
        made.add(MIRROR, RequestBody(b""))
        amade.add(MIRROR, RequestBody(b""))
        assert connections.arrived.acquire(timeout=10)
    await asyncio.gather(*amade._tasks)
    end(connections, made)
    assert [r.getMessage() for r in caplog.records] == ["a mirrored request could not be sent"] * 4


async def test_tasks_are_bounded_and_end_with_the_client() -> None:
    connections = AsyncConnections()
    made = async_mirrors(connections)
    for _ in range(MOST + 5):
        made.add(MIRROR, RequestBody(b""))
    await asyncio.sleep(0)
    assert (made.dropped, len(connections.sent)) == (5, MOST)
    assert repr(made) == f"<AsyncMirrors: {MOST} under way, 5 dropped>"
    await made.close()
    await made.close()
    assert len(asyncio.all_tasks()) == 1
    made.add(MIRROR, RequestBody(b""))
    assert made.dropped == 6
