"""Our client against real servers: a table of exchanges, by threads and by tasks, over HTTP/1.1 and HTTP/2.

What comes of an exchange is the same whatever the server: its framing, its interim responses and its trailers
are between it and the codec. Where servers differ in what they do, the table says what may come.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from conformance.servers import NAMES, PATIENCE_MS, Listener, Servers, running
from conformance.wsgi_app import piece
from support.commands import wait_until
from support.fake_mesh import FakeMesh, fake_mesh

import meshlib
from meshlib.core.http2 import Http2
from meshlib.errors import UpstreamProtocolError, UpstreamReset

URL = "http://reviews:9080"
LARGE = 1_000_000
BLOCK = piece(50_000)
BROKEN, NOT_HTTP = "UpstreamReset", "UpstreamProtocolError"
NGINX = ("nginx-http1", "nginx-http2")
"""Before 1.29 it takes another server's 103 for its response."""
NOT_TOLD = ("hypercorn-http2",)
"""It does not end the stream of an application that raised."""
MAY_LOSE = (
    *("apache-http1", "apache-http2", "caddy-http1", "caddy-http2", "envoy-http1", "envoy-http2"),
    *("gunicorn-http1", "haproxy-http1", "hypercorn-http2", "nginx-http1", "nginx-http2"),
)
"""They close while the request is sent, or answer for a server behind them that did, and a next request on
the same connection may be lost.
"""
HIDES = ("haproxy-http2", "caddy-http1", "caddy-http2")
"""They end what another server tore as if it were whole; where there is a length, that is found out."""


@dataclass(frozen=True)
class Case:
    """An exchange and what comes of it."""

    path: str
    method: str = "GET"
    body: bytes | tuple[bytes, ...] | None = None
    """Pieces are a stream without a length."""
    headers: tuple[tuple[str, str], ...] = ()
    expected: tuple[object, ...] = ()
    """What may come: (status, the body or its length), or the name of an error."""
    pause: float = 0.0
    """Seconds between the first part of the body and the others."""
    kept: bool | None = True
    """Whether HTTP/1.1 keeps the connection; None: that is the server's business."""
    only: tuple[str, ...] = ()
    """The servers that can do this; none: all."""
    but: tuple[str, ...] = ()
    """Listeners that can't."""


def echoed(length: int, body: bytes) -> tuple[object, ...]:
    return ((200, {"length": length, "sha256": hashlib.sha256(body).hexdigest()}),)


CASES = {
    "get": Case("/bytes/5", expected=((200, b"01234"),)),
    "get-nothing": Case("/bytes/0", expected=((200, b""),)),
    "get-large": Case(f"/bytes/{LARGE}", expected=((200, LARGE),)),
    "get-large-slowly": Case(f"/bytes/{LARGE}", expected=((200, LARGE),), pause=0.03),
    "head": Case("/bytes/5", "HEAD", expected=((200, b""),)),
    "head-of-a-stream": Case("/stream/2", "HEAD", expected=((200, b""),), kept=None),
    "head-of-an-error": Case("/status/404", "HEAD", expected=((404, b""),), kept=None),
    "stream": Case("/stream/5", expected=((200, 5000),)),
    "trailers": Case("/trailers", headers=(("TE", "trailers"),), expected=((200, 200),)),
    "trailers-unasked": Case("/trailers", expected=((200, 200),)),
    "204": Case("/status/204", expected=((204, b""),)),
    "304": Case("/status/304", headers=(("If-None-Match", '"a"'),), expected=((304, b""),)),
    "404": Case("/status/404", expected=((404, b"as asked"),)),
    "500": Case("/status/500", expected=((500, b"as asked"),), kept=None),
    "early-hints": Case("/hints", expected=((200, b"hinted"),), but=NGINX),
    "many-headers": Case("/cookies", expected=((200, b"ok"),)),
    "post": Case("/echo", "POST", b"hello", expected=echoed(5, b"hello")),
    "post-nothing": Case("/echo", "POST", b"", expected=echoed(0, b"")),
    "put-large": Case("/echo", "PUT", BLOCK * 20, expected=echoed(1_000_000, BLOCK * 20)),
    "post-a-stream": Case(
        "/echo", "POST", (b"a", b"", b"bc", BLOCK), expected=echoed(50_003, b"abc" + BLOCK)
    ),
    "post-an-empty-stream": Case("/echo", "POST", (), expected=echoed(0, b"")),
    "post-expecting-100": Case(
        "/echo", "POST", b"hello", (("Expect", "100-continue"),), expected=echoed(5, b"hello")
    ),
    "post-a-stream-expecting-100": Case(
        "/echo", "POST", (b"a", BLOCK), (("Expect", "100-continue"),), expected=echoed(50_001, b"a" + BLOCK)
    ),
    "post-to-a-slow-reader": Case("/linger", "POST", (BLOCK,) * 40, expected=((200, b"2000000"),), kept=None),
    "delete": Case("/echo", "DELETE", expected=echoed(0, b"")),
    "refused-early": Case(
        "/refuse", "POST", (BLOCK,) * 20, expected=((413, b"too large"),), kept=None, but=MAY_LOSE
    ),
    "refused-early-or-lost": Case(
        *("/refuse", "POST", (BLOCK,) * 20),
        expected=((413, b"too large"), 502, 503, BROKEN),
        kept=None,
        only=("apache", "caddy", "envoy", "gunicorn", "haproxy", "hypercorn", "nginx"),
    ),
    "close": Case("/close", expected=((200, b"bye"),), kept=None),
    "cut-in-a-counted-body": Case("/abort", expected=(BROKEN, NOT_HTTP), kept=False, but=NOT_TOLD),
    "cut-in-a-stream": Case("/tear", expected=(BROKEN,), kept=False, but=NOT_TOLD + HIDES),
    "no-answer": Case(
        "/silent",
        expected=(BROKEN, 500, 502, 503),
        kept=None,
        only=("node", "nginx", "haproxy", "apache", "caddy", "envoy"),
    ),
    "http-1.0": Case("/old/bytes/5", expected=((200, b"01234"),), kept=False, only=("apache",)),
    "http-1.0-to-the-end": Case("/old/stream/5", expected=((200, 5000),), kept=False, only=("apache",)),
    "http-1.0-post": Case(
        "/old/echo", "POST", b"hello", expected=echoed(5, b"hello"), kept=False, only=("apache",)
    ),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with running(tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest.fixture
def listener(servers: Servers, request: pytest.FixtureRequest) -> Listener:
    name = request.param
    found = servers.listeners.get(name)
    if found is None:
        missing = servers.missing[name.partition("-")[0]]
        assert not os.environ.get("CI"), f"the gate needs {missing}"
        pytest.skip(f"the server is missing: {missing}")
    return found


def mesh_of(listener: Listener, **more: Any) -> FakeMesh:
    return fake_mesh([listener.port], http2=Http2() if listener.http2 else None, **more)


async def pieces(of: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for one in of:
        yield one


def arguments(case: Case, body: Any) -> dict[str, Any]:
    return {"method": case.method, "url": case.path, "content": body, "headers": list(case.headers)}


def by_threads(client: httpx.Client, case: Case) -> object:
    body = iter(case.body) if isinstance(case.body, tuple) else case.body
    try:
        with client.stream(**arguments(case, body)) as response:
            found = b""
            for part in response.iter_raw():
                if not found and case.pause:
                    time.sleep(case.pause)
                found += part
            return outcome(response, found)
    except (UpstreamReset, UpstreamProtocolError) as error:
        return type(error).__name__


async def by_tasks(client: httpx.AsyncClient, case: Case) -> object:
    body = pieces(case.body) if isinstance(case.body, tuple) else case.body
    try:
        async with client.stream(**arguments(case, body)) as response:
            found = b""
            async for part in response.aiter_raw():
                if not found and case.pause:
                    await asyncio.sleep(case.pause)
                found += part
            return outcome(response, found)
    except (UpstreamReset, UpstreamProtocolError) as error:
        return type(error).__name__


def outcome(response: httpx.Response, body: bytes) -> object:
    if response.headers.get("content-type") == "application/json" and response.status_code == 200:
        told = json.loads(body)
        return 200, {"length": told["length"], "sha256": told["sha256"]}
    if response.status_code >= 500 and body != b"as asked":  # whatever page they show
        return response.status_code
    if len(body) > 100:
        assert body[:100] == piece(100)
        return response.status_code, len(body)
    return response.status_code, body


def check(listener: Listener, case: Case, found: object, kept: int) -> None:
    assert found in case.expected, found
    if case.kept is not None and not listener.http2 and listener.server != "gunicorn":
        assert kept == int(case.kept)


def opened(client: httpx.Client | httpx.AsyncClient) -> int:
    """Connections of HTTP/1.1 that are there."""
    pool = client._transport._sender._connections._pools.get("c")  # type: ignore[union-attr]
    return 0 if pool is None else int(pool.opened)


BOTH = [name for name in NAMES if "-http" in name]


TABLE = [
    (listener, name)
    for listener in BOTH
    for name, case in CASES.items()
    if (not case.only or listener.partition("-")[0] in case.only)
    and listener not in case.but
    and not (name.startswith("http-1.0") and listener.endswith("2"))
]


@pytest.mark.parametrize(("listener", "name"), TABLE, indirect=["listener"])
async def test_the_table(listener: Listener, name: str) -> None:
    case = CASES[name]
    mesh = mesh_of(listener)

    def threads() -> None:
        with meshlib.Client(mesh=mesh, base_url=URL, timeout=10) as client:  # type: ignore[arg-type]
            for _ in range(2):
                check(listener, case, by_threads(client, case), opened(client))

    async with meshlib.AsyncClient(mesh=mesh, base_url=URL, timeout=10) as client:  # type: ignore[arg-type]
        for _ in range(2):
            check(listener, case, await by_tasks(client, case), opened(client))
    await asyncio.to_thread(threads)
    assert mesh.in_flight() == 0


MIX = [CASES[name] for name in ("get", "stream", "post", "post-a-stream", "trailers", "204", "head", "404")]
BUSY = [name for name in NAMES if "-brief" not in name]
_ON = "connect-failure,refused-stream,unavailable"
RETRIES = {"retry_policy": {"retry_on": _ON, "num_retries": 8}}
"""As Istio's default, but for the number: where a connection takes seven of many, the others go elsewhere."""


@pytest.mark.parametrize("listener", BUSY, indirect=True)
async def test_many_at_a_time(listener: Listener) -> None:
    """Also where every seventh request is a connection's last, and where settings change with each stream."""
    mesh = mesh_of(listener, route=RETRIES)
    async with meshlib.AsyncClient(mesh=mesh, base_url=URL, timeout=20) as client:  # type: ignore[arg-type]
        cases = MIX * 8
        found = await asyncio.gather(*(by_tasks(client, case) for case in cases))
    wrong = [(case, one) for case, one in zip(cases, found, strict=True) if one not in case.expected]
    assert wrong == []
    assert mesh.in_flight() == 0


@pytest.mark.parametrize("listener", BUSY, indirect=True)
def test_many_threads(listener: Listener) -> None:
    mesh = mesh_of(listener, route=RETRIES)
    with (
        meshlib.Client(mesh=mesh, base_url=URL, timeout=20) as client,  # type: ignore[arg-type]
        ThreadPoolExecutor(8) as pool,
    ):
        cases = MIX * 5
        found = list(pool.map(lambda case: by_threads(client, case), cases))
    wrong = [(case, one) for case, one in zip(cases, found, strict=True) if one not in case.expected]
    assert wrong == []
    assert mesh.in_flight() == 0


BRIEF = [name for name in NAMES if "-brief" in name]


async def test_idle_connections_that_the_servers_end_are_not_used(servers: Servers) -> None:
    """All servers at once, by tasks and by threads: each request comes when the connection has been ended."""
    case = CASES["post"]
    patience = 5 + PATIENCE_MS / 1000

    async def tasks(listener: Listener) -> object:
        async with meshlib.AsyncClient(mesh=mesh_of(listener), base_url=URL) as client:  # type: ignore[arg-type]
            found = []
            for _ in range(2):
                found.append(await by_tasks(client, case))
                end = time.monotonic() + patience
                while still_there(client, listener):
                    assert time.monotonic() < end, listener
                    await asyncio.sleep(0.01)
            return found

    def threads(listener: Listener) -> object:
        with meshlib.Client(mesh=mesh_of(listener), base_url=URL) as client:  # type: ignore[arg-type]
            found = []
            for _ in range(2):
                found.append(by_threads(client, case))
                wait_until(lambda: not still_there(client, listener), patience, str(listener))
            return found

    brief = [servers.listeners[name] for name in BRIEF if name in servers.listeners]
    with ThreadPoolExecutor(len(brief)) as pool:
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(
            *(tasks(one) for one in brief), *(loop.run_in_executor(pool, threads, one) for one in brief)
        )
    assert {
        str(one): got for one, got in zip(brief * 2, found, strict=True) if got != [*case.expected] * 2
    } == {}


def still_there(client: httpx.Client | httpx.AsyncClient, listener: Listener) -> bool:
    """Whether an idle connection could be used."""
    connections = client._transport._sender._connections  # type: ignore[union-attr]
    if not listener.http2:
        idle = connections._pools["c"]._idle
        return any(kept.connection.usable() for listed in idle.values() for kept in listed)
    lines = connections.streams._pools["c"]._lines
    return any(shared.connection.usable() for line in lines.values() for shared in line.offered)


TWO = [name for name in BOTH if name.endswith("2")]


@pytest.mark.parametrize("listener", TWO, indirect=True)
async def test_a_reader_that_stops_holds_up_nobody_else(listener: Listener) -> None:
    async with meshlib.AsyncClient(mesh=mesh_of(listener), base_url=URL, timeout=10) as client:  # type: ignore[arg-type]
        async with client.stream("GET", f"/bytes/{LARGE}") as response:
            parts = response.aiter_raw()
            size = len(await anext(parts))
            for case in MIX:
                assert await by_tasks(client, case) in case.expected
            async for part in parts:
                size += len(part)
        assert size == LARGE


@pytest.mark.parametrize("listener", BOTH, indirect=True)
async def test_a_response_that_is_given_up_leaves_the_rest_alone(listener: Listener) -> None:
    mesh = mesh_of(listener)
    async with meshlib.AsyncClient(mesh=mesh, base_url=URL, timeout=10) as client:  # type: ignore[arg-type]
        for _ in range(3):
            async with client.stream("GET", f"/bytes/{LARGE}") as response:
                await anext(response.aiter_raw())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.005):
                    await client.get("/stream/1000")
            assert await by_tasks(client, CASES["get"]) == (200, b"01234")
    assert mesh.in_flight() == 0


def test_every_server_is_there(servers: Servers) -> None:
    assert {*servers.listeners} | {name for name in NAMES if name.partition("-")[0] in servers.missing} == {
        *NAMES
    }
