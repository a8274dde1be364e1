"""What every client in the mesh keeps: one suite for all of them.

Routes, retries, bodies both ways, what ends early, time-outs and errors of the library's own, mutual TLS.
When a block of `calling` has ended, no slot is taken and no connection is open.
"""

import asyncio
import contextlib
import gc
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from support.clients import CALLERS, Caller, calling, until
from support.fake_mesh import FakeMesh, fake_mesh
from support.ports import free_port
from support.raw_server import RawServer, raw_server
from support.small_ca import SmallCa

import meshlib
from meshlib.core.balance.cluster import Limits
from meshlib.core.mtls import ClientTls, InboundMode, SanMatch, ServerTls
from meshlib.core.view import View
from meshlib.dataplane.decode.routes import decode_routes
from meshlib.dataplane.tls import Contexts
from meshlib.xds import pb

FIVE_MB = 5 * 1024 * 1024
REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
PAGE = "spiffe://cluster.local/ns/default/sa/productpage"
RETRY = {"retry_on": "5xx,reset", "num_retries": 2, "retry_back_off": {"base_interval": "0.001s"}}
RETRYING = {"retry_policy": RETRY}

kinds = pytest.mark.parametrize("kind", CALLERS)
tasks = pytest.mark.parametrize("kind", [kind for kind, made in CALLERS.items() if made.asynchronous])
threads = pytest.mark.parametrize("kind", [kind for kind, made in CALLERS.items() if not made.asynchronous])


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as made:
        yield made


@pytest.fixture
def mesh(server: RawServer) -> FakeMesh:
    return fake_mesh([server.port])


def told(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)
    return found


def opened(caller: Caller) -> int:
    found = caller.connections()
    return 0 if found is None else sum(pool.opened for pool in found._pools.values())


# Routing and retries


@kinds
async def test_a_header_decides_and_weights_share(kind: str, server: RawServer) -> None:
    host = {
        "name": "v",
        "domains": ["*"],
        "routes": [
            {
                "name": "jason",
                "match": {
                    "prefix": "/",
                    "headers": [{"name": "end-user", "string_match": {"exact": "jason"}}],
                },
                "route": {"cluster": "c"},
            },
            {
                "name": "all",
                "match": {"prefix": "/"},
                "route": {
                    "weighted_clusters": {
                        "clusters": [{"name": "c", "weight": 50}, {"name": "m", "weight": 50}]
                    }
                },
            },
        ],
    }
    mesh = fake_mesh([server.port], mirror_ports=[server.port])
    config = {"name": "r", "ignore_port_in_host_matching": True, "virtual_hosts": [host]}
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, config)).of("1")
    mesh.view = View("1", {"reviews:9080": table}, mesh.view.clusters, mesh.view.endpoints)
    async with calling(kind, mesh) as caller:
        chosen = await caller.call("/echo", headers={"end-user": "jason"})
        assert chosen.facts is not None
        assert (chosen.status, chosen.facts.route, chosen.facts.cluster) == (200, "jason", "c")
        found = [(await caller.call("/echo")).facts for _ in range(20)]
        assert {facts.cluster for facts in found if facts} == {"c", "m"}


@kinds
async def test_replies_of_the_meshs_own(kind: str, server: RawServer) -> None:
    async with calling(kind, fake_mesh([])) as caller:
        seen = await caller.call("/echo")
    assert (seen.status, seen.body, seen.headers["content-length"]) == (503, b"no healthy upstream", "19")
    assert seen.facts is not None
    assert seen.facts.flag == "UH"


@kinds
@pytest.mark.parametrize("body", [None, b"whole", [b"in ", b"chunks"]], ids=["none", "bytes", "stream"])
async def test_what_can_be_sent_again_is_tried_again(kind: str, server: RawServer, body: Any) -> None:
    server.tries.clear()
    async with calling(kind, fake_mesh([server.port], route=RETRYING)) as caller:
        method = "GET" if body is None else "POST"
        seen = await caller.call("/script/reset,503,200/x", method, body=body)
        assert seen.status == 200
        assert seen.facts is not None
        assert seen.facts.attempts == 3
    assert server.tries["x"] == 3


@kinds
async def test_what_can_not_be_sent_again_is_tried_once(kind: str, server: RawServer) -> None:
    server.tries.clear()
    large = [bytes(300_000)] * 4
    async with calling(kind, fake_mesh([server.port], route=RETRYING)) as caller:
        seen = await caller.call("/script/503,200/x", "POST", body=large)
        assert seen.status == 503
    assert server.tries["x"] == 1


@kinds
async def test_nobody_tries_more_often_than_the_rule_says(kind: str, server: RawServer) -> None:
    server.tries.clear()
    async with calling(kind, fake_mesh([server.port])) as caller:
        with pytest.raises(caller.errors.reset):
            await caller.call("/script/reset/x")
    assert server.tries["x"] == 1


# Bodies


@kinds
async def test_connections_are_used_again(kind: str, mesh: FakeMesh, server: RawServer) -> None:
    before = server.connections
    async with calling(kind, mesh) as caller:
        for _ in range(2):
            await caller.call("/echo", "POST", body=b"x")
            await caller.call("/echo", "HEAD")
            await caller.call("/status/204")
            await caller.call("/chunks/3")
    assert server.connections == before + 1


@kinds
async def test_an_upload_arrives_as_it_was(kind: str, mesh: FakeMesh, server: RawServer) -> None:
    async with calling(kind, mesh) as caller:
        for body, whole in ((b"abc", b"abc"), ([b"a", b"", b"bc"], b"abc"), (b"", b"")):
            seen = await caller.call("/echo", "POST", body=body)
            assert bytes.fromhex(told(seen.body)["body"]) == whole
        sent = [bytes(65536)] * 40
        seen = await caller.call("/echo", "PUT", body=sent)
        assert told(seen.body)["size"] == 40 * 65536


@kinds
async def test_headers_go_out_once_and_as_they_were(kind: str, mesh: FakeMesh) -> None:
    async with calling(kind, mesh) as caller:
        seen = await caller.call("/echo?a=1&b=%20x", headers={"X-MiXed": "A", "Host": "reviews"})
    sent = told(seen.body)["headers"]
    assert ["X-MiXed", "A"] in sent
    assert [value for name, value in sent if name.lower() == "host"] == ["reviews"]
    assert seen.headers["x-a"] == "1"


@kinds
async def test_a_response_streams_and_may_be_left(kind: str, mesh: FakeMesh) -> None:
    async with calling(kind, mesh) as caller:
        response = await caller.begin("/drip")
        assert (await caller.part(response)).startswith(b".")
        assert (mesh.in_flight(), opened(caller)) == (1, 1)
        await caller.end(response)
        await until(lambda: mesh.in_flight() == 0 and opened(caller) == 0)


@kinds
async def test_a_large_response_is_whole(kind: str, mesh: FakeMesh) -> None:
    async with calling(kind, mesh) as caller:
        response = await caller.begin(f"/big/{FIVE_MB}")
        size = 0
        while part := await caller.part(response):
            size += len(part)
        assert size == FIVE_MB
        await caller.end(response)
        assert opened(caller) == 1


@kinds
async def test_a_dropped_response_leaves_nothing(kind: str, mesh: FakeMesh) -> None:
    async with calling(kind, mesh) as caller:
        response = await caller.begin("/drip")
        assert await caller.part(response)
        del response
        # A thread may have it still for a moment.
        await until(lambda: gc.collect() >= 0 and mesh.in_flight() == 0 and opened(caller) == 0)
        assert (await caller.call("/echo")).status == 200
        assert opened(caller) == 1


@kinds
@pytest.mark.filterwarnings("ignore:Sending a large body directly")
@pytest.mark.parametrize("status", [200, 413])
@pytest.mark.parametrize("body", [bytes(20 << 20), [bytes(1 << 20)] * 20], ids=["bytes", "stream"])
async def test_who_answers_and_reads_no_further_is_heard(
    kind: str, mesh: FakeMesh, status: int, body: bytes | list[bytes]
) -> None:
    async with calling(kind, mesh) as caller:
        answer = await caller.call(f"/early/{status}", "POST", body=body, seconds=5)
        assert (answer.status, answer.body) == (status, b"no more")
        assert opened(caller) == 0


@kinds
async def test_who_answers_and_reads_on_is_sent_all(kind: str, mesh: FakeMesh) -> None:
    async with calling(kind, mesh) as caller:
        for _ in range(2):
            answer = await caller.call("/duplex", "POST", body=[bytes(1 << 20)] * 5)
            assert (answer.status, answer.body) == (200, b"0-%d" % FIVE_MB)
        assert opened(caller) == 1


@kinds
async def test_an_error_of_the_applications_body_comes_back(kind: str, mesh: FakeMesh) -> None:
    async with calling(kind, mesh) as caller:
        with pytest.raises(caller.errors.upload) as raised:
            await caller.call("/echo", "POST", body=[b"first", ValueError("no more")])
        assert "no more" in repr(raised.value)
        assert not isinstance(raised.value, meshlib.MeshError)
        await until(lambda: mesh.in_flight() == 0 and opened(caller) == 0)


@tasks
async def test_cancelled_at_any_step_nothing_is_left(kind: str, server: RawServer) -> None:
    mesh = fake_mesh([server.port], limits=Limits(max_connections=1))
    async with calling(kind, mesh) as caller:
        for path, body in (
            ("/slow/5", None),
            ("/slowbody/5", None),
            ("/deaf", [bytes(1 << 20)] * 30),
        ):
            first = asyncio.create_task(caller.call(path, "POST" if body else "GET", body=body))
            second = asyncio.create_task(caller.call("/echo"))  # waits for the connection
            await until(lambda: mesh.in_flight() == 2)
            await asyncio.sleep(0.02)
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
            assert first.cancelled()
            assert (await second).status == 200
            await until(lambda: mesh.in_flight() == 0)


# The application's own limits, and errors


@kinds
@pytest.mark.parametrize("path", ["/slow/5", "/slowbody/5"])
async def test_the_applications_own_limit_is_its_librarys(kind: str, mesh: FakeMesh, path: str) -> None:
    async with calling(kind, mesh) as caller:
        with pytest.raises(caller.errors.own_read) as raised:
            await caller.call(path, seconds=0.05)
        assert not isinstance(raised.value, meshlib.MeshError)


@kinds
async def test_the_time_of_the_route(kind: str, server: RawServer) -> None:
    async with calling(kind, fake_mesh([server.port], route={"timeout": "0.05s"})) as caller:
        for path in ("/slow/5", "/slowbody/5"):
            with pytest.raises(caller.errors.route_timed_out) as raised:
                await caller.call(path)
            assert isinstance(raised.value, meshlib.UpstreamTimedOut)
            assert raised.value.flight.cluster == "c"


@kinds
async def test_no_connection(kind: str) -> None:
    port = free_port()
    async with calling(kind, fake_mesh([port])) as caller:
        with pytest.raises(caller.errors.refused) as raised:
            await caller.call("/echo")
        assert isinstance(raised.value, meshlib.ConnectFailed)
        assert raised.value.flight.endpoint == f"127.0.0.1:{port}"
        assert raised.value.flight.attempts == 1
        assert "[UF]" in str(raised.value)


@kinds
async def test_no_connection_in_time(kind: str) -> None:
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):  # its queue is full
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        mesh = fake_mesh([listening.getsockname()[1]], connect_timeout=0.05)
        async with calling(kind, mesh) as caller:
            with pytest.raises(caller.errors.connect_timed_out) as raised:
                await caller.call("/echo")
            assert isinstance(raised.value, meshlib.ConnectTimedOut)


@kinds
async def test_a_lost_connection(kind: str, mesh: FakeMesh) -> None:
    async with calling(kind, mesh) as caller:
        for path, expected in (
            ("/hangup", caller.errors.reset),
            ("/reset", caller.errors.reset),
            ("/halfbody", caller.errors.broken_off),
        ):
            with pytest.raises(expected) as raised:
                await caller.call(path)
            assert isinstance(raised.value, meshlib.UpstreamReset)
            assert raised.value.flight.route == "x"


@kinds
@pytest.mark.parametrize("path", ["/nonsense", "/badchunk"])
async def test_a_peer_that_does_not_speak_http(kind: str, mesh: FakeMesh, path: str) -> None:
    async with calling(kind, mesh) as caller:
        with pytest.raises(meshlib.UpstreamProtocolError) as raised:
            await caller.call(path)
        assert isinstance(raised.value, caller.errors.protocol)


@kinds
async def test_nothing_is_known_of_the_host(kind: str, mesh: FakeMesh) -> None:
    for failure in (meshlib.ControlUnavailable("away"), meshlib.RefusedResource("field: bad")):
        mesh.failure = failure
        async with calling(kind, mesh) as caller:
            with pytest.raises(caller.errors.refused, match=str(failure)) as raised:
                await caller.call("/echo")
            assert isinstance(raised.value, type(failure))


@kinds
async def test_unknown_hosts_are_kept_in(kind: str) -> None:
    block = {
        "name": "elsewhere:443",
        "virtual_hosts": [
            {
                "name": "block_all",
                "domains": ["*"],
                "routes": [
                    {"name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}}
                ],
            }
        ],
    }
    table = decode_routes(pb.from_dict(pb.RouteConfiguration, block))
    async with calling(kind, FakeMesh(View("1", {"elsewhere:443": table}))) as caller:
        with pytest.raises(meshlib.ConnectFailed, match="REGISTRY_ONLY") as raised:
            await caller.call("https://elsewhere/")
        assert isinstance(raised.value, caller.errors.secure)


# What stays the library's


@kinds
async def test_redirects_cookies_and_auth(kind: str, mesh: FakeMesh) -> None:
    async with calling(kind, mesh) as caller:
        assert told((await caller.call("/redirect/302")).body)["method"] == "GET"
        seen = told((await caller.call("/redirect/307", "POST", body=b"again")).body)
        assert (seen["method"], bytes.fromhex(seen["body"])) == ("POST", b"again")
        assert (await caller.call("/basic", auth=("u", "p"))).status == 200
        await caller.call("/cookie")
        if kind != "urllib3":  # which has no cookies
            sent = dict(told((await caller.call("/echo")).body)["headers"])
            assert sorted(sent["Cookie"].split("; ")) == ["a=1", "b=2"]


# Mutual TLS


@kinds
async def test_mutual_tls(kind: str) -> None:
    ca = SmallCa()
    served = Contexts(lambda: ca.held(REVIEWS)).server(ServerTls(InboundMode.STRICT))
    with raw_server(served) as server:
        tls = ClientTls(sans=((SanMatch.EXACT, REVIEWS),), sni="outbound_.9080_._.reviews")
        mesh = fake_mesh([server.port], tls=tls)
        mesh.contexts = Contexts(lambda: ca.held(PAGE))
        async with calling(kind, mesh) as caller:
            assert (await caller.call("/echo", "POST", body=b"x")).status == 200
            response = await caller.begin("/chunks/20")
            while await caller.part(response):
                pass
            await caller.end(response)
        assert server.callers == [PAGE]
        async with calling(kind, mesh) as caller:
            for path, answered in (("/early/413", b"no more"), ("/duplex", b"0-%d" % FIVE_MB)):
                answer = await caller.call(path, "POST", body=[bytes(1 << 20)] * 5, seconds=10)
                assert answer.body == answered
        impostor = fake_mesh([server.port], tls=ClientTls(sans=((SanMatch.EXACT, PAGE),), sni="x"))
        impostor.contexts = mesh.contexts
        async with calling(kind, impostor) as caller:
            with pytest.raises(caller.errors.refused, match="TLS"):
                await caller.call("/echo")
