"""The pools' connections over TLS, against a real server on loopback: who answers is who was asked for."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from support.raw_server import RawServer, raw_server
from support.small_ca import SmallCa

from meshlib.core.actions import Attempt
from meshlib.core.balance.cluster import Upstream
from meshlib.core.mtls import ClientTls, InboundMode, SanMatch, ServerTls, Trust
from meshlib.core.request import Failed, Failure, RequestHead
from meshlib.dataplane.http import asynchronous, blocking
from meshlib.dataplane.tls import Contexts, Held

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
TO_REVIEWS = ClientTls(sans=((SanMatch.EXACT, REVIEWS),), sni="outbound_.9080_._.reviews")
WITHIN = Upstream(connect_timeout=2.0)
Send = Callable[[Contexts | None, Attempt], Awaitable[Any]]


@pytest.fixture(scope="module")
def ca() -> SmallCa:
    return SmallCa()


def of(held: Held | None) -> Contexts:
    return Contexts(lambda: held)


@contextlib.contextmanager
def serving(held: Held, policy: ServerTls = ServerTls(InboundMode.STRICT)) -> Iterator[RawServer]:  # noqa: B008
    with raw_server(of(held).server(policy)) as server:
        yield server


def attempt(
    port: int, tls: ClientTls | None, path: str = "/echo", authority: str = "reviews:9080"
) -> Attempt:
    head = RequestHead("GET", "http", authority, path)
    return Attempt("c", ("127.0.0.1", port), head, WITHIN, None, time.monotonic() + 5, tls=tls)


async def send_blocking(contexts: Contexts | None, asked: Attempt) -> Any:
    connections = blocking.Connections(time.monotonic, lambda: contexts)
    sent = connections.send(asked, b"")
    if not isinstance(sent, Failed):
        assert b"".join(sent)
    connections.close()
    return sent


async def send_async(contexts: Contexts | None, asked: Attempt) -> Any:
    connections = asynchronous.Connections(time.monotonic, lambda: contexts)
    sent = await connections.send(asked, b"")
    if not isinstance(sent, Failed):
        assert b"".join([chunk async for chunk in sent])
    connections.close()
    await asyncio.sleep(0.01)  # the loop closes what was refused
    return sent


@pytest.fixture(params=[send_blocking, send_async], ids=["threads", "tasks"])
def send(request: pytest.FixtureRequest) -> Send:
    found: Send = request.param
    return found


async def test_both_ends_show_who_they_are(ca: SmallCa, send: Send) -> None:
    with serving(ca.held(REVIEWS)) as server:
        sent = await send(of(ca.held(PAGE)), attempt(server.port, TO_REVIEWS))
    assert sent.head.status == 200
    assert server.callers == [PAGE]


async def test_through_an_intermediate(ca: SmallCa, send: Send) -> None:
    middle = SmallCa("middle", ca)
    with serving(middle.held(REVIEWS)) as server:
        sent = await send(of(middle.held(PAGE)), attempt(server.port, TO_REVIEWS))
    assert sent.head.status == 200


@pytest.mark.parametrize(
    ("server_is", "said"),
    [
        ("spiffe://cluster.local/ns/default/sa/ratings", "allowed is exact " + REVIEWS),
        ("spiffe://evil.local/ns/default/sa/reviews", "allowed is exact " + REVIEWS),
    ],
)
async def test_the_wrong_account_is_not_talked_to(ca: SmallCa, send: Send, server_is: str, said: str) -> None:
    with serving(ca.held(server_is)) as server:
        sent = await send(of(ca.held(PAGE)), attempt(server.port, TO_REVIEWS))
    assert isinstance(sent, Failed)
    assert sent.how is Failure.CONNECT_FAILED
    assert said in sent.detail
    assert server.heads == []


async def test_another_root_is_not_trusted(ca: SmallCa, send: Send) -> None:
    with serving(SmallCa().held(REVIEWS)) as server:
        sent = await send(of(ca.held(PAGE)), attempt(server.port, TO_REVIEWS))
    assert isinstance(sent, Failed)
    assert sent.detail.startswith("TLS: its certificate is not trusted: ")


async def test_an_expired_server_is_not_trusted(ca: SmallCa, send: Send) -> None:
    with serving(ca.held(REVIEWS, ends=-10)) as server:
        sent = await send(of(ca.held(PAGE)), attempt(server.port, TO_REVIEWS))
    assert isinstance(sent, Failed)
    assert "certificate has expired" in sent.detail


async def test_an_authority_as_a_server_is_not_trusted(ca: SmallCa, send: Send) -> None:
    with serving(ca.held(REVIEWS, authority=True)) as server:
        sent = await send(of(ca.held(PAGE)), attempt(server.port, TO_REVIEWS))
    assert isinstance(sent, Failed)
    assert "certificate of a CA" in sent.detail
    assert server.heads == []


async def test_a_server_without_tls_fails_the_handshake(ca: SmallCa, send: Send) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            accepted, _ = plain.accept()
            with accepted:
                accepted.recv(100)
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        sent = await send(of(ca.held(PAGE)), attempt(plain.getsockname()[1], TO_REVIEWS))
        thread.join()
    assert isinstance(sent, Failed)
    assert (sent.how, sent.detail) == (Failure.CONNECT_FAILED, "TLS: wrong version number")


async def test_without_an_identity_nothing_is_sent(ca: SmallCa, send: Send) -> None:
    with serving(ca.held(REVIEWS)) as server:
        for contexts in (None, of(None)):
            sent = await send(contexts, attempt(server.port, TO_REVIEWS))
            assert isinstance(sent, Failed)
            assert "no identity" in sent.detail or "no certificate" in sent.detail
    assert server.connections == 0 or server.heads == []


async def test_a_silent_peer_uses_up_the_time_to_connect(ca: SmallCa, send: Send) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = attempt(silent.getsockname()[1], TO_REVIEWS)._replace(upstream=Upstream(connect_timeout=0.1))
        begun = time.monotonic()
        sent = await send(of(ca.held(PAGE)), asked)
    assert isinstance(sent, Failed)
    assert sent.how is Failure.CONNECT_TIMED_OUT
    assert time.monotonic() - begun < 2


async def test_insecure_skip_verify_takes_whoever_answers(ca: SmallCa, send: Send) -> None:
    policy = ClientTls(trust=Trust.NOBODY, mesh_identity=False)
    with serving(SmallCa().held(REVIEWS), ServerTls(InboundMode.DISABLE)) as server:
        sent = await send(of(None), attempt(server.port, policy))
    assert sent.head.status == 200


async def test_simple_tls_by_a_file_of_roots_checks_the_host(ca: SmallCa, send: Send, tmp_path: Any) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_text(ca.pem)
    policy = ClientTls(trust=Trust.FILE, ca_file=str(roots), mesh_identity=False, verify_host=True)
    held = ca.held(REVIEWS, dns=["api.example.org"])
    with serving(held, ServerTls(InboundMode.DISABLE)) as server:
        good = await send(of(None), attempt(server.port, policy, authority="api.example.org"))
        bad = await send(of(None), attempt(server.port, policy, authority="other.example.org"))
    assert good.head.status == 200
    assert isinstance(bad, Failed)
    assert "Hostname mismatch" in bad.detail


async def test_a_missing_file_of_roots_is_a_failure_that_says_so(send: Send, ca: SmallCa) -> None:
    policy = ClientTls(trust=Trust.FILE, ca_file="/nowhere/roots.pem", mesh_identity=False)
    with serving(ca.held(REVIEWS)) as server:
        sent = await send(of(None), attempt(server.port, policy))
    assert isinstance(sent, Failed)
    assert "No such file" in sent.detail


async def test_a_minimum_version_is_kept(ca: SmallCa, send: Send) -> None:
    context = of(ca.held(REVIEWS)).server(ServerTls(InboundMode.STRICT))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    newest = ClientTls(sni="x", min_version="TLSv1_3")
    with raw_server(context) as server:
        assert (await send(of(ca.held(PAGE)), attempt(server.port, TO_REVIEWS))).head.status == 200
        assert isinstance(await send(of(ca.held(PAGE)), attempt(server.port, newest)), Failed)


def test_a_connection_is_reused_and_a_new_certificate_is_for_new_ones(ca: SmallCa) -> None:
    held = [ca.held(PAGE)]
    contexts = Contexts(lambda: held[0])
    connections = blocking.Connections(time.monotonic, lambda: contexts)

    def ask(tls: ClientTls, path: str = "/echo") -> None:
        sent = connections.send(attempt(server.port, tls, path), b"")
        assert not isinstance(sent, Failed)
        assert b"".join(sent)

    with serving(ca.held(REVIEWS)) as server:
        for _ in range(3):
            ask(TO_REVIEWS)
        assert server.connections == 1
        held[0] = ca.held("spiffe://cluster.local/ns/default/sa/renewed")
        ask(TO_REVIEWS, "/close")
        assert server.callers == [PAGE]
        ask(TO_REVIEWS)
        assert server.callers == [PAGE, "spiffe://cluster.local/ns/default/sa/renewed"]
        ask(ClientTls(sni="other"))
        assert server.connections == 3
        connections.close()


def test_an_idle_connection_is_used_again_after_the_servers_tickets(ca: SmallCa) -> None:
    contexts = of(ca.held(PAGE))
    connections = blocking.Connections(time.monotonic, lambda: contexts)
    with serving(ca.held(REVIEWS)) as server:
        for _ in range(20):
            sent = connections.send(attempt(server.port, TO_REVIEWS, "/big/65536"), b"")
            assert not isinstance(sent, Failed)
            assert len(b"".join(sent)) == 65536
        assert server.connections == 1
        connections.close()


def test_a_key_is_not_shown(ca: SmallCa) -> None:
    held = ca.held(PAGE)
    assert "PRIVATE" not in repr(held)
    assert "BEGIN" not in repr(of(held))
