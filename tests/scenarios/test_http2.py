"""HTTP/2 from YAML to the wire, over mutual TLS, and with servers that other people wrote."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import pytest
from support.h2_server import H2Server, h2_server
from support.ports import free_port
from support.small_ca import SmallCa

import meshlib
from meshlib.core.actions import Attempt
from meshlib.core.balance.cluster import Upstream
from meshlib.core.http2 import Http2
from meshlib.core.mtls import ClientTls, InboundMode, SanMatch, ServerTls
from meshlib.core.request import Failed, RequestHead
from meshlib.dataplane.http import asynchronous, blocking
from meshlib.dataplane.tls import Contexts, Held

SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews.test]
  ports: [{number: 9080, name: NAME, protocol: PROTOCOL}]
  resolution: STATIC
  location: MESH_EXTERNAL
  endpoints: [{address: 127.0.0.1, ports: {NAME: PORT}}]
"""
RULE = """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews.test
  trafficPolicy: {connectionPool: {http: POOL}}
"""
REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
ALPN = ("istio-h2", "istio", "h2")
TO_REVIEWS = ClientTls(sans=((SanMatch.EXACT, REVIEWS),), sni="outbound_.9080_._.reviews", alpn=ALPN)
Send = Callable[[Held, int, bytes], Awaitable[tuple[Any, bytes]]]


@pytest.fixture
def server() -> Iterator[H2Server]:
    with h2_server() as made:
        yield made


def rules(folder: Path, port: int, protocol: str, pool: str = "") -> Path:
    name = protocol.lower()
    text = SERVICE.replace("PROTOCOL", protocol).replace("NAME", name).replace("PORT", str(port))
    (folder / "mesh").mkdir()
    (folder / "mesh" / "rules.yaml").write_text(text + (RULE.replace("POOL", pool) if pool else ""))
    return folder / "mesh"


@pytest.mark.parametrize(
    ("protocol", "pool"),
    [
        ("HTTP2", ""),
        ("GRPC", ""),
        ("HTTP", "{h2UpgradePolicy: UPGRADE}"),
        ("HTTP2", "{maxConcurrentStreams: 1, http2KeepAlive: {interval: 1s, timeout: 1s}}"),
    ],
)
def test_what_speaks_http2(tmp_path: Path, server: H2Server, protocol: str, pool: str) -> None:
    with meshlib.Client(control=str(rules(tmp_path, server.port, protocol, pool))) as client:
        answers = [client.post("http://reviews.test:9080/echo", content=b"x") for _ in range(3)]
    assert {(answer.status_code, answer.http_version, answer.content) for answer in answers} == {
        (200, "HTTP/2", b"x")
    }
    assert server.connections == 1


@pytest.mark.parametrize(
    ("protocol", "pool"),
    [("HTTP", ""), ("HTTP2", "{useClientProtocol: true}"), ("HTTP", "{h2UpgradePolicy: DEFAULT}")],
)
def test_what_does_not(tmp_path: Path, protocol: str, pool: str) -> None:
    class Old(threading.Thread):
        def run(self) -> None:
            accepted, _ = listening.accept()
            with accepted:
                self.heard = accepted.recv(1000)
                accepted.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        old = Old()
        old.start()
        folder = rules(tmp_path, listening.getsockname()[1], protocol, pool)
        with meshlib.Client(control=str(folder)) as client:
            assert client.get("http://reviews.test:9080/x").http_version == "HTTP/1.1"
        old.join()
    assert old.heard.startswith(b"GET /x HTTP/1.1\r\n")


def test_max_concurrent_streams_come_from_the_rule(tmp_path: Path, server: H2Server) -> None:
    folder = rules(tmp_path, server.port, "HTTP2", "{maxConcurrentStreams: 2}")

    async def ask() -> None:
        async with meshlib.AsyncClient(control=str(folder)) as client:
            asking = [asyncio.ensure_future(client.get("http://reviews.test:9080/wait")) for _ in range(5)]
            async with asyncio.timeout(60):
                while len(server.requests) < 5:
                    await asyncio.sleep(0.005)
            server.go.set()
            assert [(await one).text for one in asking] == ["waited"] * 5

    asyncio.run(ask())
    assert (server.connections, server.most_at_once) == (3, 2)


# Mutual TLS


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


def contexts(held: Held) -> Contexts:
    return Contexts(lambda: held)


def serving(held: Held, alpn: tuple[str, ...]) -> contextlib.AbstractContextManager[H2Server]:
    return h2_server(contexts(held).server(ServerTls(InboundMode.STRICT, alpn=alpn)))


def attempt(port: int, path: str) -> Attempt:
    head = RequestHead("POST", "http", "reviews:9080", path)
    until = time.monotonic() + 10
    return Attempt("c", ("127.0.0.1", port), head, Upstream(2.0, http2=Http2()), None, until, tls=TO_REVIEWS)


async def send_blocking(held: Held, port: int, body: bytes) -> tuple[Any, bytes]:
    def send() -> tuple[Any, bytes]:
        connections = blocking.Connections(time.monotonic, lambda: contexts(held))
        sent = connections.send(attempt(port, "/echo"), body)
        answered = b"" if isinstance(sent, Failed) else b"".join(sent)
        connections.close()
        return sent, answered

    return await asyncio.to_thread(send)


async def send_async(held: Held, port: int, body: bytes) -> tuple[Any, bytes]:
    connections = asynchronous.Connections(time.monotonic, lambda: contexts(held))
    sent = await connections.send(attempt(port, "/echo"), body)
    answered = b"" if isinstance(sent, Failed) else b"".join([chunk async for chunk in sent])
    connections.close()
    await asyncio.sleep(0.01)
    return sent, answered


@pytest.fixture(params=[send_blocking, send_async], ids=["threads", "tasks"])
def send(request: pytest.FixtureRequest) -> Send:
    found: Send = request.param
    return found


@pytest.mark.parametrize("alpn", [("h2", "http/1.1"), ("istio", "h2"), ()])
async def test_over_mutual_tls_whatever_the_server_negotiates(
    ca: SmallCa, send: Send, alpn: tuple[str, ...]
) -> None:
    body = bytes(range(256)) * 8000
    with serving(ca.held(REVIEWS), alpn) as server:
        sent, answered = await send(ca.held(PAGE), server.port, body)
    assert (sent.head.status, sent.version, answered == body) == (200, b"HTTP/2", True)


async def test_the_wrong_account_is_not_talked_to(ca: SmallCa, send: Send) -> None:
    with serving(ca.held(PAGE), ("h2",)) as server:
        sent, _ = await send(ca.held(PAGE), server.port, b"secret")
    assert isinstance(sent, Failed)
    assert "allowed is exact" in sent.detail
    assert server.requests == []


# Hypercorn


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        version = scope["http_version"].encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-version", version)]})
        await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def hypercorn_server(tls: Held | None, folder: Path) -> AsyncIterator[int]:
    config, port, stop = hypercorn.config.Config(), free_port(), asyncio.Event()
    config.bind, config.loglevel = [f"127.0.0.1:{port}"], "ERROR"
    if tls is not None:
        (folder / "key.pem").write_bytes(tls.key_pem)
        for name, text in (("chain.pem", tls.chain_pem), ("roots.pem", tls.roots_pem)):
            (folder / name).write_text(text)
        config.certfile, config.keyfile = str(folder / "chain.pem"), str(folder / "key.pem")
        config.ca_certs, config.verify_mode = str(folder / "roots.pem"), ssl.CERT_REQUIRED
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
    async with asyncio.timeout(60):
        while True:
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                break
            except OSError:
                await asyncio.sleep(0.01)
    yield port
    stop.set()
    await serving


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "mutual TLS"])
async def test_hypercorn(ca: SmallCa, send: Send, tmp_path: Path, secured: bool) -> None:
    body = b"0123456789" * 50_000
    tls = ca.held(REVIEWS) if secured else None
    async with hypercorn_server(tls, tmp_path) as port:
        if secured:
            sent, answered = await send(ca.held(PAGE), port, body)
        else:
            asked = attempt(port, "/")._replace(tls=None)
            if send is send_async:
                connections = asynchronous.Connections(time.monotonic)
                sent = await connections.send(asked, body)
                answered = b"".join([chunk async for chunk in sent])  # type: ignore[union-attr]
                connections.close()
            else:
                pool = blocking.Connections(time.monotonic)
                sent = await asyncio.to_thread(pool.send, asked, body)
                answered = await asyncio.to_thread(b"".join, sent)  # type: ignore[arg-type]
                pool.close()
    assert (sent.head.status, sent.head.header(b"x-version"), answered == body) == (200, b"2", True)
