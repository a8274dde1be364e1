"""HTTP/2 on real sockets, from threads and tasks alike: streams are shared, limited, ended, given back."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from support.fake_mesh import FakeMesh, fake_mesh
from support.h2_server import MAX_STREAMS, H2Server, h2_server
from support.ports import free_port

import meshlib
from meshlib.core.balance.cluster import Limits
from meshlib.core.http2 import Http2

URL = "http://reviews:9080"
H2 = Http2()


@pytest.fixture
def server() -> Iterator[H2Server]:
    with h2_server() as made:
        yield made


class Both:
    """One client of either kind, used in one way: as coroutines."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.is_async = isinstance(made, httpx.AsyncClient)

    async def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        if self.is_async:
            found: httpx.Response = await self.made.request(method, path, **more)
            return found
        return await asyncio.to_thread(self.made.request, method, path, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.request("GET", path, **more)

    async def many(self, paths: list[str]) -> list[httpx.Response | BaseException]:
        """Requests at once."""
        if self.is_async:
            return await asyncio.gather(*map(self.get, paths), return_exceptions=True)

        def one(path: str) -> httpx.Response | BaseException:
            try:
                answer: httpx.Response = self.made.get(path)
                return answer
            except httpx.HTTPError as error:
                return error

        def all_of_them() -> list[httpx.Response | BaseException]:
            with ThreadPoolExecutor(len(paths)) as threads:
                return list(threads.map(one, paths))

        return await asyncio.to_thread(all_of_them)

    @property
    def pool(self) -> Any:
        return self.made._transport._sender._connections.streams._pools["c"]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Connections, requests, who waits."""
        pool = self.pool
        return pool.opened, pool.active, pool.waiting


Make = Callable[..., contextlib.AbstractAsyncContextManager[Both]]


@pytest.fixture(params=["threads", "tasks"])
def client(request: pytest.FixtureRequest) -> Make:
    @contextlib.asynccontextmanager
    async def make(mesh: FakeMesh) -> AsyncIterator[Both]:
        if request.param == "tasks":
            async with meshlib.AsyncClient(mesh=mesh, base_url=URL) as made:  # type: ignore[arg-type]
                both = Both(made)
                yield both
                assert mesh.in_flight() == 0
            assert len(asyncio.all_tasks()) == 1
        else:
            before = set(threading.enumerate())  # other tests may have left some that are about to end
            with meshlib.Client(mesh=mesh, base_url=URL) as made:  # type: ignore[arg-type]
                both = Both(made)
                yield both
                assert mesh.in_flight() == 0
            assert all("meshlib" not in one.name for one in set(threading.enumerate()) - before)
        assert both.pool.opened == 0

    return make


async def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


# What is shared


async def test_one_connection_serves_all(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        first = await c.request("POST", "/echo", content=b"x" * 100_000, headers={"X-Mixed": "As It Is"})
        assert (first.status_code, first.content, first.http_version) == (200, b"x" * 100_000, "HTTP/2")
        answers = await c.many(["/echo"] * 9)
        assert [answer.status_code for answer in answers] == [200] * 9  # type: ignore[union-attr]
        assert c.counts == (1, 0, 0)
    assert server.connections == 1
    sent = server.requests[0][1]
    assert (sent[":method"], sent[":authority"], sent["x-mixed"]) == ("POST", "reviews:9080", "As It Is")
    assert not {"connection", "host", "transfer-encoding"} & sent.keys()


async def test_requests_at_once_go_out_together(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        waiting = asyncio.ensure_future(c.many(["/wait"] * 8))
        await until(lambda: len(server.requests) == 8)
        assert c.pool.opened == 1
        server.go.set()
        assert [answer.text for answer in await waiting] == ["waited"] * 8  # type: ignore[union-attr]
    assert (server.connections, server.most_at_once) == (1, 8)


async def test_a_slow_reader_holds_up_nobody(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        if c.is_async:
            async with c.made.stream("GET", "/big/8388608") as slow:
                assert (await c.get("/big/1048576")).content[:4] == b"0123"
                assert c.counts == (1, 1, 0)
                assert len(await slow.aread()) == 8388608
        else:
            with c.made.stream("GET", "/big/8388608") as slow:
                assert (await c.get("/big/1048576")).content[:4] == b"0123"
                assert c.counts == (1, 1, 0)
                assert len(slow.read()) == 8388608
        assert c.counts == (1, 0, 0)
    assert server.connections == 1


async def test_the_peers_limit_makes_further_connections(client: Make) -> None:
    with h2_server(settings={MAX_STREAMS: 2}) as server:
        async with client(fake_mesh([server.port], http2=H2)) as c:
            assert (await c.get("/echo")).status_code == 200  # it has said its limit now
            waiting = asyncio.ensure_future(c.many(["/wait"] * 6))
            await until(lambda: len(server.requests) == 7)
            server.go.set()
            assert [answer.status_code for answer in await waiting] == [200] * 6  # type: ignore[union-attr]
        assert server.most_at_once <= 2
        assert server.connections >= 3


@pytest.mark.parametrize("most", [1, 3])
async def test_the_clusters_limits_make_requests_wait(server: H2Server, client: Make, most: int) -> None:
    mesh = fake_mesh([server.port], http2=Http2(most), limits=Limits(max_connections=2))
    async with client(mesh) as c:
        waiting = asyncio.ensure_future(c.many(["/wait"] * 8))
        await until(lambda: len(server.requests) == 2 * most and c.pool.waiting == 8 - 2 * most)
        server.go.set()
        assert [answer.status_code for answer in await waiting] == [200] * 8  # type: ignore[union-attr]
        assert c.counts == (2, 0, 0)
    assert (server.connections, server.most_at_once) == (2, most)


async def test_too_many_who_wait_overflow(server: H2Server, client: Make) -> None:
    mesh = fake_mesh([server.port], http2=Http2(1), limits=Limits(max_connections=1, max_pending=1))
    async with client(mesh) as c:
        first = asyncio.ensure_future(c.get("/wait"))
        await until(lambda: server.requests)
        second = asyncio.ensure_future(c.get("/echo"))
        await until(lambda: c.pool.waiting == 1)
        third = await c.get("/echo")
        assert (third.status_code, third.extensions["meshlib"].flag) == (503, "UO")
        server.go.set()
        assert [(await first).status_code, (await second).status_code] == [200, 200]


async def test_more_than_may_be_in_flight_overflow(server: H2Server, client: Make) -> None:
    mesh = fake_mesh([server.port], http2=H2, limits=Limits(max_requests=2))
    async with client(mesh) as c:
        held = [asyncio.ensure_future(c.get("/wait")) for _ in range(2)]
        await until(lambda: len(server.requests) == 2)
        third = await c.get("/echo")
        assert (third.status_code, third.extensions["meshlib"].flag) == (503, "UO")
        server.go.set()
        assert [(await each).status_code for each in held] == [200, 200]
        assert (await c.get("/echo")).status_code == 200


async def test_a_connection_is_not_used_after_its_duration(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2, max_connection_duration=0.05)) as c:
        used = []
        for pause in (0.0, 0.0, 0.06):
            await asyncio.sleep(pause)
            used.append((await c.get("/echo")).headers["x-connection"])
    assert used == ["1", "1", "2"]


async def test_requests_of_a_connection_are_limited(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2, max_requests_per_connection=2)) as c:
        used = [(await c.get("/echo")).headers["x-connection"] for _ in range(5)]
    assert used == ["1", "1", "2", "2", "3"]


# Bodies


async def test_bodies_of_all_sizes(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        for size in (0, 1, 16384, 65536, 3_000_000):
            body = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
            assert (await c.request("POST", "/echo", content=body)).content == body
        for size in (16, 262_144, 5_242_880):
            assert len((await c.get(f"/big/{size}")).content) == size


async def test_streamed_uploads(server: H2Server, client: Make) -> None:
    parts = [b"one", b"", b"two" * 50_000, b"three"]

    async def slowly() -> AsyncIterator[bytes]:
        for part in parts:
            await asyncio.sleep(0)
            yield part

    async with client(fake_mesh([server.port], http2=H2)) as c:
        content: Any = slowly() if c.is_async else iter(parts)
        assert (await c.request("POST", "/echo", content=content)).content == b"".join(parts)
    assert "transfer-encoding" not in server.requests[0][1]


async def test_an_upload_that_raises_resets_its_stream_only(server: H2Server, client: Make) -> None:
    class Mine(Exception):
        pass

    async def breaks() -> AsyncIterator[bytes]:
        yield b"half"
        raise Mine

    def breaks_too() -> Iterator[bytes]:
        yield b"half"
        raise Mine

    async with client(fake_mesh([server.port], http2=H2)) as c:
        other = asyncio.ensure_future(c.get("/wait"))
        await until(lambda: server.requests)
        with pytest.raises(Mine):
            await c.request("POST", "/echo", content=breaks() if c.is_async else breaks_too())
        await until(lambda: server.resets == [8])
        server.go.set()
        assert (await other).text == "waited"
        assert c.counts == (1, 0, 0)


async def test_windows_that_grow_and_shrink(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        body = b"0123456789" * 50_000
        assert (await c.request("POST", "/storm", content=body)).content == body


async def test_an_early_answer_is_heard(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        answer = await c.request("POST", "/early", content=b"x" * 5_000_000)
        assert (answer.status_code, answer.text) == (413, "too much")
        assert (await c.get("/echo")).headers["x-connection"] == "1"


async def test_informational_head_and_trailers(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        assert (await c.get("/inform")).text == "informed"
        assert (await c.get("/trailers")).text == "before"
        head = await c.request("HEAD", "/head")
        assert (head.headers["content-length"], head.content) == ("42", b"")
        assert (await c.get("/status/204")).status_code == 204
        assert (await c.request("GET", "/ping")).status_code == 200
        assert c.counts == (1, 0, 0)
    assert server.connections == 1


# What goes wrong


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("/reset/7", meshlib.UpstreamReset, "refused the stream"),
        ("/refuse", meshlib.UpstreamReset, "went away before it looked"),
        ("/reset/2", meshlib.UpstreamReset, "reset the stream: INTERNAL_ERROR"),
        ("/reset/4242", meshlib.UpstreamReset, "reset the stream: 0x1092"),
        ("/reset/1", meshlib.UpstreamProtocolError, "reset the stream: PROTOCOL_ERROR"),
        ("/halves/2", meshlib.UpstreamReset, "reset the stream: INTERNAL_ERROR"),
        ("/halves/0", meshlib.UpstreamReset, "reset the stream: NO_ERROR"),
        ("/short", meshlib.UpstreamProtocolError, "shorter than it should be"),
        ("/close", meshlib.UpstreamReset, "closed the connection before a response"),
        ("/raw/text", meshlib.UpstreamProtocolError, "a frame of 4740180 bytes"),
        ("/raw/push", meshlib.UpstreamProtocolError, "not HTTP/2"),
        ("/raw/goaway", meshlib.UpstreamProtocolError, "a GOAWAY that is none"),
        ("/empty", meshlib.UpstreamProtocolError, "floods the connection"),
    ],
)
async def test_what_a_peer_does_wrong(
    server: H2Server, client: Make, path: str, kind: type[httpx.HTTPError], said: str
) -> None:
    server.raw = {
        "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "push": b"\x00\x00\x05\x05\x04STRM\x00\x00\x00\x02\x88",
        "goaway": b"\x00\x00\x01\x07\x00\x00\x00\x00\x00\x00",
    }
    async with client(fake_mesh([server.port], http2=H2)) as c:
        with pytest.raises(kind, match=said):
            await c.get(path)
        assert (await c.get("/echo")).status_code == 200
        await until(lambda: c.counts == (1, 0, 0))


@pytest.mark.parametrize("how", ["reset/7", "refuse"])
async def test_what_was_refused_is_sent_again(server: H2Server, client: Make, how: str) -> None:
    retry = {"retry_policy": {"retry_on": "refused-stream", "num_retries": 2}}
    async with client(fake_mesh([server.port], http2=H2, route=retry)) as c:
        answer = await c.request("POST", f"/once/{how}", content=b"again", headers={"x-id": "1"})
        assert (answer.status_code, answer.content) == (200, b"again")
        assert answer.extensions["meshlib"].attempts == 2


async def test_a_peer_that_goes_away_finishes_what_it_has(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        waiting = asyncio.ensure_future(c.get("/wait"))
        await until(lambda: server.requests)
        assert (await c.get("/goaway")).text == "bye"
        assert (await c.get("/echo")).headers["x-connection"] == "2"
        server.go.set()
        answer = await waiting
        assert (answer.text, answer.headers["x-connection"]) == ("waited", "1")
        assert c.counts == (1, 0, 0)


async def test_a_connection_that_was_closed_while_idle_is_not_used(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        for _ in range(3):
            assert (await c.request("POST", "/echo", content=b"x")).status_code == 200
            server.hang_up()
            await asyncio.sleep(0.02)
    assert server.connections == 3


async def test_a_peer_that_speaks_http1_only(client: Make) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"SM\r\n\r\n")
        writer.write(b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    old = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with old, client(fake_mesh([old.sockets[0].getsockname()[1]], http2=H2)) as c:
        with pytest.raises(meshlib.UpstreamProtocolError, match="does not speak HTTP/2"):
            await c.get("/echo")
        assert c.counts == (0, 0, 0)


async def test_a_lowered_limit_holds_from_then_on(server: H2Server, client: Make) -> None:
    mesh = fake_mesh([server.port], http2=H2, limits=Limits(max_connections=1))
    async with client(mesh) as c:
        assert (await c.get("/limit/1")).text == "limited"
        waiting = asyncio.ensure_future(c.many(["/wait"] * 3))
        await until(lambda: len(server.requests) == 2 and c.pool.waiting == 2)
        server.go.set()
        assert [answer.status_code for answer in await waiting] == [200] * 3  # type: ignore[union-attr]
    assert server.connections == 1


# Who gives up


async def test_who_gives_up_harms_nobody(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        late = [asyncio.ensure_future(c.get("/wait", timeout=0.1)) for _ in range(3)]
        others = asyncio.ensure_future(c.many(["/wait"] * 4))
        for one in late:
            with pytest.raises(httpx.ReadTimeout):
                await one
        await until(lambda: len(server.resets) == 3)
        assert not others.done()
        server.go.set()
        assert [answer.text for answer in await others] == ["waited"] * 4  # type: ignore[union-attr]
        assert c.counts == (1, 0, 0)
    assert server.resets == [8, 8, 8]
    assert server.connections == 1


async def test_the_time_of_a_route_runs_out(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2, route={"timeout": "0.1s"})) as c:
        with pytest.raises(meshlib.UpstreamTimedOut):
            await c.get("/wait")
        await until(lambda: server.resets == [8])
        assert c.counts == (1, 0, 0)


async def test_a_cancelled_request_gives_its_stream_back(server: H2Server) -> None:
    mesh = fake_mesh([server.port], http2=H2)
    async with meshlib.AsyncClient(mesh=mesh, base_url=URL) as made:  # type: ignore[arg-type]
        c = Both(made)
        task = asyncio.ensure_future(c.get("/wait"))
        await until(lambda: server.requests)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.resets == [8])
        assert (c.counts, mesh.in_flight()) == ((1, 0, 0), 0)


async def test_who_is_cancelled_while_connecting_lets_others_connect(client: Make) -> None:
    """The first to come makes the connection; that it gives up fails nobody."""
    with h2_server() as server:
        mesh = fake_mesh([server.port], http2=H2)
        async with meshlib.AsyncClient(mesh=mesh, base_url=URL) as made:  # type: ignore[arg-type]
            first = asyncio.ensure_future(made.get("/echo"))
            await asyncio.sleep(0)
            others = [asyncio.ensure_future(made.get("/echo")) for _ in range(4)]
            await asyncio.sleep(0)
            first.cancel()
            assert [(await one).status_code for one in others] == [200] * 4
        assert mesh.in_flight() == 0


async def test_a_dropped_response_gives_its_stream_back(server: H2Server, client: Make) -> None:
    mesh = fake_mesh([server.port], http2=H2)
    async with client(mesh) as c:

        async def drop() -> None:
            request = c.made.build_request("GET", "/big/5242880")
            answer = c.made.send(request, stream=True)
            if isinstance(answer, Awaitable):
                answer = await answer
            assert answer.status_code == 200

        await drop()
        gc.collect()
        await until(lambda: server.resets == [8])
        assert c.counts == (1, 0, 0)
        assert (await c.get("/echo")).status_code == 200
    assert server.connections == 1


async def test_a_post_that_was_lost_on_an_idle_connection_is_the_last(server: H2Server, client: Make) -> None:
    mesh = fake_mesh([server.port], http2=H2)
    more = 0.0
    mesh.clock = lambda: time.monotonic() + more
    async with client(mesh) as c:
        await c.get("/echo")
        more += 20
        with pytest.raises(meshlib.UpstreamReset):
            await c.request("POST", "/close")
        assert (await c.request("POST", "/echo")).status_code == 200
        more += 14
        assert (await c.request("POST", "/echo")).status_code == 200
        assert server.connections == 2
        more += 16
        assert (await c.request("POST", "/echo")).status_code == 200
        assert server.connections == 3


async def test_a_dropped_response_wakes_who_waits_for_its_stream(server: H2Server, client: Make) -> None:
    limits, one = Limits(max_connections=1), Http2(max_concurrent_streams=1)
    async with client(fake_mesh([server.port], http2=one, limits=limits)) as c:
        answer = c.made.send(c.made.build_request("GET", "/big/5242880"), stream=True)
        if isinstance(answer, Awaitable):
            answer = await answer
        waits = asyncio.ensure_future(c.get("/echo", timeout=None))
        await until(lambda: c.counts == (1, 0, 1))
        del answer
        gc.collect()
        assert (await asyncio.wait_for(waits, 10)).status_code == 200
        assert c.counts == (1, 0, 0)


async def test_all_who_wait_for_a_connection_that_fails_hear_of_it(client: Make) -> None:
    async with client(fake_mesh([free_port()], http2=H2)) as c:
        answers = await c.many(["/echo"] * 8)
        assert all(isinstance(answer, meshlib.ConnectFailed) for answer in answers)
        assert c.counts == (0, 0, 0)


async def test_a_peer_that_does_not_read_makes_the_writer_wait(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2)) as c:
        assert (await c.get("/echo")).status_code == 200
        server.deaf.set()
        await asyncio.sleep(0.02)
        upload = asyncio.ensure_future(
            c.request("POST", "/echo", content=b"x" * 30_000_000, timeout=httpx.Timeout(30, write=0.2))
        )
        with pytest.raises(httpx.WriteTimeout):
            await upload
        server.deaf.clear()
        assert (await c.get("/echo")).headers["x-connection"] == "1"


async def test_a_peer_that_finds_its_tongue_is_heard(server: H2Server, client: Make) -> None:
    server.deaf.set()
    async with client(fake_mesh([server.port], http2=H2)) as c:
        with pytest.raises(httpx.ReadTimeout):
            await c.get("/echo", timeout=httpx.Timeout(30, read=0.1))
        server.deaf.clear()
        answers = await c.many(["/echo"] * 5)
        assert [answer.headers["x-connection"] for answer in answers] == ["1"] * 5


# Pings


async def test_a_peer_that_answers_no_ping_is_lost(server: H2Server, client: Make) -> None:
    server.mute = True
    how = Http2(keepalive_interval=0.02, keepalive_timeout=0.1)
    async with client(fake_mesh([server.port], http2=how)) as c:
        with pytest.raises(meshlib.UpstreamReset, match="no answer to a ping within"):
            await c.get("/wait")
        await until(lambda: c.counts == (0, 0, 0))


async def test_pings_keep_a_quiet_connection(server: H2Server, client: Make) -> None:
    how = Http2(keepalive_interval=0.02, keepalive_timeout=5.0)
    async with client(fake_mesh([server.port], http2=how)) as c:
        waiting = asyncio.ensure_future(c.get("/wait"))
        await until(lambda: server.pings >= 2)
        server.go.set()
        assert (await waiting).text == "waited"
        assert c.counts == (1, 0, 0)


# Nothing is sent


async def test_idle_connections_are_closed_though_nothing_is_sent(server: H2Server, client: Make) -> None:
    async with client(fake_mesh([server.port], http2=H2, idle_timeout=0.01)) as c:
        assert (await c.get("/echo")).status_code == 200
        await until(lambda: c.counts == (0, 0, 0) and not server.open)


async def test_connections_to_what_left_the_configuration_are_closed(server: H2Server, client: Make) -> None:
    mesh = fake_mesh([server.port], http2=H2)
    async with client(mesh) as c:
        waiting = asyncio.ensure_future(c.get("/wait"))
        await until(lambda: len(server.requests) == 1)
        c.made._transport._sender._connections.endpoints_changed(replace(mesh.view, endpoints={}), ["c"])
        server.go.set()
        assert (await waiting).text == "waited"
        await until(lambda: c.counts == (0, 0, 0) and not server.open)
